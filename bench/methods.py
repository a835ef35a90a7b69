"""What each method of the shelf adds to plain replay: `python bench/methods.py`, about 35 minutes.

Each method trains in a process of its own, a whole run with its records written, and they take
turns, among them plain replay. What is timed is the second phase, as most methods have nothing to
hold in the first; what is done once between phases (a Fisher of 256 samples, a copy) is not in it.
FLOPs are those that the run charges itself with. A turn is 20 steps, as CoSO acts at every 20th.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import tomli_w
import torch
from common import alternate, ratio, report
from turns import begun
from work import LENGTH, ROWS, VOCABULARY

from treering import build, config, shelf
from treering.demo import texts

HERE = Path(__file__).parent
FIRST, WARM, TURN = 8, 4, 20  # steps: of the first phase, not counted, of a turn
PAST = {"share": 0.25, "memory": {"kind": "everything", "over": "past"}}
ADAPTER = {"rank": 16, "alpha": 32}
ARMS: dict[str, dict[str, Any]] = {
    "replay": {},
    "no replay": {"replay": {"share": 0.0}},
    "average": {"update": {"kind": "average", "decays": [0.98]}},
    "latest": {"update": {"kind": "latest", "every": 3, "last": 6, "averages": ["sma"]}},
    "reptile": {"update": {"kind": "reptile", "every": 10, "rate": 0.5}},
    "outer, Nesterov": {"update": {"kind": "outer", "every": 10, "rate": 0.7,
                                   "optimizer": "nesterov", "momentum": 0.9}},
    "outer, Adam": {"update": {"kind": "outer", "every": 10, "rate": 1e-3, "optimizer": "adam"}},
    "agem": {"update": {"kind": "agem"}, "replay": PAST},
    "gem": {"update": {"kind": "gem", "strength": 0.5}, "replay": PAST},
    "coso": {"update": {"kind": "coso", "rank": 64, "sketch": 64, "every": 20, "energy": 0.5,
                        "capacity": 0.5, "start": "second"}},
    "per_sample": {"update": {"kind": "per_sample"},
                   "batch": {"tokens": ROWS * LENGTH, "micro": LENGTH}},
    "l2": {"penalties": [{"kind": "l2", "weight": 1e-3, "anchor": "phase"}]},
    "ewc": {"penalties": [{"kind": "ewc", "weight": 1e3, "samples": 256}]},
    "mas": {"penalties": [{"kind": "mas", "weight": 1e-3, "samples": 256}]},
    "teacher": {"objective": {"teacher": {"weight": 1.0, "from": "phase"}}},
    "teacher, every 4": {"objective": {"teacher": {"weight": 1.0, "from": "phase", "every": 4}}},
    "der": {"objective": {"der": {"weight": 1.0, "top": 32}}},
    "weights, z": {"objective": {"replayed": 2.0, "normalize": "weights", "z": 1e-4}},
    "lora": {"adapter": {"kind": "lora", **ADAPTER}},
    "codyra": {"adapter": {"kind": "codyra", "threshold": 25.0, "gates": "normal", **ADAPTER}},
    "probe, every 25": {"probe": {"every": 25}},
}  # fmt: skip


def prepare(folder: Path, size: str, names: list[str], steps: int) -> dict[str, str]:
    """A recipe for each arm; their paths. Their corpora are prepared in the folder's cache."""
    corpora, found = list(texts.collect(folder / "text")), {}
    step = ROWS * LENGTH
    for number, name in enumerate(names):
        table = {
            "length": LENGTH,
            "tokenizer": {"train": VOCABULARY},
            "model": {"preset": size},
            "corpora": {c: {"train": f"text/{c}.jsonl", "validation": 0.05} for c in corpora},
            "phases": [
                {"name": "first", "tokens": FIRST * step, "mixture": {corpora[0]: 1.0}},
                {"name": "second", "tokens": steps * step, "mixture": {corpora[1]: 1.0}},
            ],
            "replay": {"share": 0.25, "memory": {"kind": "everything", "over": "all"}},
            "schedule": {"kind": "constant", "peak": 1e-3},
            "batch": {"tokens": step},
            "evaluate": {"tokens": step},
        }
        path = folder / f"{number}.toml"
        path.write_text(tomli_w.dumps(table | ARMS[name]))
        found[name] = str(path)
        recipe = config.load(path)
        shelf.check(recipe)
    build.data(recipe, folder / "cache")
    return found


def main(size: str, rounds: int, names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipes = prepare(folder, size, names, 1 + WARM + TURN * rounds)
        ours = [sys.executable, str(HERE / "ours.py")]
        commands = {name: [*ours, path, str(FIRST + 1)] for name, path in recipes.items()}
        sides = begun(commands, folder, WARM)
        took = alternate({name: lambda s=s: s.train(TURN) for name, s in sides.items()}, rounds)
        ends = {name: side.end() for name, side in sides.items()}
    plain = ends["replay"]
    figures: dict[str, Any] = {"torch": torch.__version__, "model": size, "rounds": rounds}
    figures["replay, ms of a step"] = statistics.median(took["replay"]) / TURN * 1e3
    figures["replay, peak memory of training, MiB"] = plain["above"]
    for name in names[1:]:
        figures[f"{name}, time"] = ratio(took, name, "replay")
        figures[f"{name}, FLOPs"] = ends[name]["flops"] / plain["flops"]
        figures[f"{name}, peak memory of training, MiB more"] = ends[name]["above"] - plain["above"]
    report("methods", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(ARMS))
    parser.add_argument("--size", default="1m", help="a preset")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    main(options.size, options.rounds, ["replay", *(options.methods or list(ARMS)[1:])])
