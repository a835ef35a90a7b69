"""One accelerator: `python bench/gpu.py`, a few minutes; `--smoke` on a CPU, to see that it runs.

Llamas over random tokens in bf16, compiled. Arms share a model and take turns; each turn ends when
the device is done. FLOPs are counted in both conventions of treering/speed.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import Arm, arm, learner
from common import alternate, ratio, report, synthetic
from gpu_checks import checks

from treering import tables
from treering.evaluate import HeldOut, score
from treering.learner import Learner
from treering.methods.updates import Descent, Reptile
from treering.model import shape
from treering.speed import CONVENTION, PEAKS, Speed

EVERY = 50
VOCABULARY = 32_000
#         model, rows, length
SIZES = {
    "160m": (tables.Model(depth=12, width=768, heads=12, mlp=3072, tied=False), 16, 2048),
    "1b": (tables.Model(preset="1b"), 8, 2048),
}
TINY = {"tiny": (tables.Model(depth=1, width=32, heads=2, mlp=64, tied=True), 2, 64)}
ON_GPU = torch.cuda.is_available()
COMPUTE = tables.Compute(precision="bf16", compile=ON_GPU)  # the smoke is over before a compiler


def seconds(arm: Arm, steps: int) -> float:
    began = time.perf_counter()
    arm.train(steps)
    return time.perf_counter() - began


def peak_memory() -> float | None:
    """GiB that tensors took at most since the last call; None on a CPU."""
    if not ON_GPU:
        return None
    found = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return found


def speed(own: Learner, length: int) -> Speed:
    """What a model's speed is measured in, on this device."""
    layers, width = shape(own.forward.root.model)
    full = own.flops_per_token
    top = PEAKS.get(torch.cuda.get_device_name()) if ON_GPU else None
    return Speed(full, full - 6.0 * layers * width * length, 1, top)


def waits(plain: Arm, steps: int) -> float | None:
    """How often a step waits for the device; None on a CPU."""
    if not ON_GPU:
        return None
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            next(plain.steps)
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught) / steps


def measured(name: str, rounds: int, turn: int, folder: Path) -> dict[str, Any]:
    """The figures of one size: plain training, and what is added to it."""
    wanted, rows, length = {**SIZES, **TINY}[name]
    own = learner(wanted, COMPUTE, rows, length, vocabulary=VOCABULARY)
    plain = arm(own, folder / "plain", Descent(), rows=rows, length=length)
    first = seconds(plain, 1)
    peak_memory()
    again = seconds(plain, 5) / 5
    memory = peak_memory()
    mer = arm(own, folder / "mer", Reptile(EVERY, 0.5), share="0.25", rows=rows, length=length)
    mer.train(1)
    text = HeldOut("random", held_out(folder, length), None)
    score(own.forward, text)
    took = alternate(
        {
            "plain": lambda: plain.train(turn),
            "mer": lambda: mer.train(turn),
            "evaluation": lambda: score(own.forward, text),
        },
        rounds,
    )
    step = statistics.median(took["plain"]) / turn
    of = speed(own, length)
    rate = of.of(rows * length, step)
    causal = Speed(of.causal_flops_per_token, 0.0, 1, of.peak).of(rows * length, step)
    return {
        "rows": rows,
        "length": length,
        "tokens/s": rate["tokens_per_second"],
        "TFLOP/s": rate["tflops"],
        "MFU": rate["mfu"],
        "MFU, attention halved": causal["mfu"],
        "peak memory of a step, GiB": memory,
        "and with replay and the anchor, GiB": peak_memory(),
        "first step, s longer than the next": first - again,
        f"replay and Reptile every {EVERY} / plain": ratio(took, "mer", "plain"),
        f"evaluation of {text.tokens.size - len(text.tokens):,} tokens, in steps": (
            statistics.median(took["evaluation"]) / step
        ),
        **anchors(own, step),
        "waits for the device in a step": waits(plain, 10),
    }


def held_out(folder: Path, length: int) -> np.ndarray:
    """Windows of as many tokens as an evaluation has by default."""
    windows = max(1, tables.Evaluate().tokens // length)
    store = synthetic(folder, "held out", windows * length + 1)
    return store.read(np.arange(windows), length).astype(np.int64)


def anchors(own: Learner, step: float) -> dict[str, float]:
    """Meta-updates with the anchor on the device and on the host."""
    found = {}
    for place in ("device", "cpu"):
        update = Reptile(EVERY, 0.5, anchor=place)
        update._window.opens(own)
        times = []
        for _ in range(5):
            began = time.perf_counter()
            update._meta_update(own)
            update._window.opens(own)
            own.params[0].flatten()[0].item()  # waits
            times.append(time.perf_counter() - began)
        took, what = statistics.median(times), f"meta-update, anchor on {place}"
        found[f"{what}, ms"] = took * 1e3
        found[f"{what}, every {EVERY}, share of time"] = took / (EVERY * step)
    return found


def against_plain(name: str, rounds: int, turn: int, folder: Path) -> dict[str, Any]:
    """Document attention and fp8 against plain training: models of their own, taking turns."""
    wanted, rows, length = {**SIZES, **TINY}[name]
    make = partial(learner, wanted, COMPUTE, rows, length, vocabulary=VOCABULARY)
    models = {"plain": make(), "document attention": make(documents=True)}
    why = without_fp8()
    if why is None:
        models["fp8"] = make(change=to_fp8)
    arms = {
        each: arm(own, folder / each, Descent(), rows=rows, length=length)
        for each, own in models.items()
    }
    for each in arms.values():
        each.train(3)
    took = alternate({n: lambda a=a: a.train(turn) for n, a in arms.items()}, rounds)
    figures: dict[str, Any] = {
        f"{each} / plain, time": ratio(took, each, "plain") for each in list(arms)[1:]
    }
    return figures if why is None else figures | {"fp8": f"not measured: {why}"}


def without_fp8() -> str | None:
    """Why fp8 cannot be measured here, or None."""
    if not ON_GPU or torch.cuda.get_device_capability() < (8, 9):
        return "the device has none"
    return None if find_spec("torchao") else "torchao is not installed"


def to_fp8(model: torch.nn.Module) -> None:
    """Products of layers in fp8, scaled by tensor, by torchao; the head stays as it is."""
    from torchao.float8 import convert_to_float8_training

    convert_to_float8_training(model, module_filter_fn=lambda _, name: "lm_head" not in name)


def main(rounds: int, *, smoke: bool) -> int:
    found = checks(rows=2 if smoke else 16)
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if ON_GPU else "cpu",
        "torch": torch.__version__,
        "convention": CONVENTION,
        **{f"holds in bf16: {what}": holds for what, holds in found.items()},
    }
    turn = 2 if smoke else EVERY
    with tempfile.TemporaryDirectory() as folder:
        for name in TINY if smoke else SIZES:
            for number, part in enumerate((measured, against_plain)):
                if part is against_plain and name == "1b" and without_fp8():
                    continue
                place = Path(folder) / f"{name} {number}"
                place.mkdir()
                own = part(name, rounds, turn, place)
                figures |= {f"{name}, {what}": value for what, value in own.items()}
                torch.compiler.reset()
    if smoke:
        print(json.dumps(figures, indent=1))
    else:
        report("gpu", figures)
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="a model of nothing, two steps a turn")
    options = parser.parse_args()
    sys.exit(main(options.rounds, smoke=options.smoke))
