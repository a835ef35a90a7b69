"""The finished cells of a study as a CSV: one line for each run and branch, figures only."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from treering.analysis.curves import spent
from treering.analysis.differences import METRICS
from treering.analysis.matrix import branches_of, header_of, matrix
from treering.atomic import replacing
from treering.records import Record

Line = dict[str, Any]
NAMES = ("arm", "branch", "commit")  # columns that are never numbers


def lines(arm: str, axes: Mapping[str, Any], records: Sequence[Record]) -> list[Line]:
    """A run's lines: arm, branch, seed, axes, metrics, each corpus's part of them, and costs."""
    header = header_of(records)
    probes = [r["cosine"] for r in records if r.get("kind") == "probe"]
    cosines = [cosine for cosine in probes if cosine is not None]
    found = []
    for branch in (None, *branches_of(records)):
        scores, last = matrix(records, branch=branch), spent(records, branch)
        line: Line = {"arm": arm, "branch": branch, "seed": header["recipe"]["seed"]}
        line |= {key: _axis(value) for key, value in axes.items() if key != "seed"}
        judged = {name: metric(scores) for name, metric in METRICS.items()}
        line |= {name: metric.value for name, metric in judged.items()}
        for name, metric in judged.items():
            line |= {f"{name} {corpus}": value for corpus, value in metric.per_corpus.items()}
        line |= {key: last.get(key) for key in ("step", "tokens", "fresh_tokens", "flops")}
        line |= {"cosine": float(np.mean(cosines)) if cosines else None}
        line |= {"seconds": last.get("seconds"), "parameters": header.get("parameters")}
        found.append(line | {"commit": header.get("commit")})
    return found


def _axis(value: Any) -> Any:
    """What is neither a number nor a word stands as JSON."""
    return json.dumps(value) if isinstance(value, bool | list | dict) else value


def write(path: Path, found: Sequence[Line]) -> None:
    """The lines as CSV, whole or not at all; several processes may do so at once."""
    keys = list(dict.fromkeys(key for line in found for key in line))
    with replacing(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: "" if v is None or v != v else v for k, v in f.items()} for f in found)


def read(path: str | Path) -> list[Line]:
    """The lines of such a CSV: numbers and tables as such, what is empty as None."""
    with open(path, newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        return [{key: _value(key, text) for key, text in line.items()} for line in lines]


def _value(key: str, text: str) -> Any:
    try:
        return text if key in NAMES and text else json.loads(text)
    except ValueError:
        return text or None
