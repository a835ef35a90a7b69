"""Training by Treering against the Trainer of transformers: `python bench/trainer.py`.

The same weights, the same samples in the same order, AdamW, clipping, rate, compilation; each side
trains in a process of its own, and they take turns. Treering runs as `treering run` does, its
records written; Trainer has its batches at hand, and neither logs nor saves.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
import work
from common import alternate, ratio, report
from transformers import Trainer, TrainerCallback, TrainingArguments
from turns import Turns, begun

from treering import build
from treering.forward import precision

CASES = {("3m", "auto"): 6, ("3m", "fp32"): 6, ("20m", "auto"): 1}  # steps of a turn
WARM = 3  # steps of the first turn, which is not counted
HERE = Path(__file__).parent


class Between(TrainerCallback):
    """Takes turns."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._turns.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._turns.stepped()


def trainer(folder: Path) -> None:
    """Trainer over the same, taking turns."""
    turns = Turns()
    recipe, data = work.load(folder)
    model, inner = build.start(recipe, data), recipe.optimizer
    samples = [
        {"input_ids": tokens[:-1], "labels": tokens[1:], "shift_labels": tokens[1:]}
        for tokens in torch.from_numpy(work.samples(folder))
    ]
    on_cpu = not torch.cuda.is_available()
    device = torch.device("cpu" if on_cpu else "cuda")
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=len(samples) // recipe.rows,
        per_device_train_batch_size=recipe.rows,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,  # shift_labels would be one
        learning_rate=float(recipe.schedule["peak"]),
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta1=inner.betas[0],
        adam_beta2=inner.betas[1],
        adam_epsilon=inner.eps,
        weight_decay=inner.decay,
        max_grad_norm=inner.clip,
        bf16=precision(recipe.compute.precision, device) is not None,
        torch_compile=True,
        use_cpu=on_cpu,
        logging_strategy="no",
        logging_nan_inf_filter=False,  # which would wait for the device at each step
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    made = Trainer(model, arguments, train_dataset=samples, callbacks=[Between(turns)])
    step = made.training_step

    def kept(*given: Any, **named: Any) -> torch.Tensor:
        loss = step(*given, **named)
        turns.loss(loss)
        return loss

    made.training_step = kept  # type: ignore[method-assign]
    made.train()


def compare(size: str, precision: str, steps: int, rounds: int) -> dict[str, float]:
    """The figures of one model in one precision."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work.prepare(folder, size, precision, WARM + steps * (rounds + 1))
        commands = {
            "treering": [sys.executable, str(HERE / "ours.py"), f"{name}/recipe.toml"],
            "trainer": [sys.executable, __file__, "--in", name],
        }
        sides = begun(commands, folder, WARM)
        took = alternate({name: lambda s=s: s.train(steps) for name, s in sides.items()}, rounds)
        ends = {name: side.end() for name, side in sides.items()}
    tokens = steps * work.ROWS * work.LENGTH
    ours, theirs = ends["treering"], ends["trainer"]
    apart = zip(ours["losses"], theirs["losses"], strict=True)
    return {
        **{f"{name}, tokens/s": tokens / statistics.median(took[name]) for name in sides},
        "tokens/s, treering / trainer": ratio(took, "trainer", "treering"),
        **{f"{name}, peak memory, MiB": ends[name]["memory"] for name in sides},
        **{f"{name}, peak memory of training, MiB": ends[name]["above"] for name in sides},
        "memory of training, treering / trainer": ends["treering"]["above"]
        / ends["trainer"]["above"],
        "largest difference of a step's loss": max(abs(a - b) for a, b in apart),
        "first loss": ours["losses"][0],
        "last loss": ours["losses"][-1],
    }


def main(rounds: int, cases: Mapping[tuple[str, str], int]) -> None:
    figures: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    for (size, kind), steps in cases.items():
        found = compare(size, kind, steps, rounds)
        figures |= {f"{size} {kind}, {name}": value for name, value in found.items()}
    report("trainer", figures | {"rounds": rounds})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", choices=sorted(work.SIZES), help="this one alone")
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        trainer(options.folder)
    else:
        asked = {case: n for case, n in CASES.items() if options.size in (None, case[0])}
        main(options.rounds, asked)
