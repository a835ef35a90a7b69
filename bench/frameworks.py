"""Training by Treering against litgpt, which is in `.venv-bench`: `python bench/frameworks.py`.

As `trainer.py`: the same weights and samples, processes that take turns. litgpt trains by its own
`pretrain`, which compiles; it decays the weights of norms, too, and on a CPU its AdamW is not
fused. torchtitan is asked whether it can train here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import work
from common import alternate, ratio, report
from trainer import WARM
from turns import begun

from treering import build
from treering.forward import precision

HERE = Path(__file__).parent


def describe(folder: Path) -> None:
    """Say in `shape.json` and `weights.pt` what is trained, for those who know no recipe."""
    recipe, data = work.load(folder)
    model, inner = build.start(recipe, data), recipe.optimizer
    torch.save(model.state_dict(), folder / "weights.pt")
    shape = {
        "vocab_size": model.config.vocab_size,
        "padded_vocab_size": model.config.vocab_size,
        "n_layer": model.config.num_hidden_layers,
        "n_head": model.config.num_attention_heads,
        "n_embd": model.config.hidden_size,
        "intermediate_size": model.config.intermediate_size,
        "norm_eps": model.config.rms_norm_eps,
    }
    adamw = {
        "lr": recipe.schedule["peak"],
        "betas": inner.betas,
        "eps": inner.eps,
        "weight_decay": inner.decay,
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = {
        "shape": shape,
        "adamw": adamw,
        "clip": inner.clip,
        "rows": recipe.rows,
        "length": recipe.length,
        "bf16": precision(recipe.compute.precision, device) is not None,
    }
    (folder / "shape.json").write_text(json.dumps(wanted))


def compare(python: str, size: str, steps: int, rounds: int) -> dict[str, Any]:
    """The figures of one model against litgpt."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work.prepare(folder, size, "auto", WARM + steps * (rounds + 1))
        describe(folder)
        commands = {
            "treering": [sys.executable, str(HERE / "ours.py"), f"{name}/recipe.toml"],
            "litgpt": [python, str(HERE / "theirs.py"), "litgpt", name],
        }
        sides = begun(commands, folder, WARM)
        took = alternate({name: lambda s=s: s.train(steps) for name, s in sides.items()}, rounds)
        ends = {name: side.end() for name, side in sides.items()}
    ours, theirs = ends["treering"], ends["litgpt"]
    apart = zip(ours["losses"], theirs["losses"], strict=True)
    tokens = steps * work.ROWS * work.LENGTH
    return {
        **{f"{name}, tokens/s": tokens / statistics.median(took[name]) for name in sides},
        "tokens/s, treering / litgpt": ratio(took, "litgpt", "treering"),
        "memory of training, treering / litgpt": ours["above"] / theirs["above"],
        "first loss, treering": ours["losses"][0],
        "first loss, litgpt": theirs["losses"][0],
        "largest difference of a step's loss": max(abs(a - b) for a, b in apart),
    }


def torchtitan(python: str) -> str:
    """Whether its trainer can be made here, or the last line of why not."""
    asked = [python, str(HERE / "theirs.py"), "torchtitan", "."]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return "can be made; not measured" if done.returncode == 0 else done.stderr.splitlines()[-1]


def versions(python: str) -> dict[str, str]:
    """Of the frameworks."""
    ask = "from importlib.metadata import version as v\n"
    ask += "print(v('litgpt'), v('torchtitan'), v('torch'))"
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    return dict(zip(("litgpt", "torchtitan", "their torch"), done.stdout.split(), strict=True))


def main(python: str, rounds: int, sizes: list[str]) -> None:
    figures: dict[str, Any] = {"torch": torch.__version__, **versions(python)}
    for size in sizes:
        found = compare(python, size, 6 if size == "3m" else 1, rounds)
        figures |= {f"{size}, {name}": value for name, value in found.items()}
    figures["torchtitan's trainer here"] = torchtitan(python)
    report("frameworks", figures | {"rounds": rounds})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    usual = str(HERE.parent / ".venv-bench/bin/python")
    parser.add_argument("--python", default=usual, help="an interpreter that has the frameworks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=sorted(work.SIZES), help="this one alone")
    options = parser.parse_args()
    main(options.python, options.rounds, [options.size] if options.size else list(work.SIZES))
