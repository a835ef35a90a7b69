"""What a run's time and memory went into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from treering.analysis.matrix import header_of
from treering.records import Record


def throughput(records: Sequence[Record]) -> dict[str, Any]:
    """Medians over steps: tokens/s of all devices; of one device TFLOP/s and, where its peak is
    known, MFU, with attention counted in full and halved for causality."""
    speed = header_of(records).get("speed", {})
    every = (r.get("tokens_per_second") for r in records if r.get("kind") == "step")
    rates = [each for each in every if each is not None]
    rate = float(np.median(rates)) if rates else None
    found: dict[str, Any] = {"tokens_per_second": rate, "peak_tflops": speed.get("peak_tflops")}
    devices, peak = speed.get("devices"), speed.get("peak_tflops")
    for name, key in (("full", "flops_per_token"), ("causal", "causal_flops_per_token")):
        known = rate is not None and devices and speed.get(key) is not None
        tflops = rate * speed[key] / devices / 1e12 if known else None
        found[name] = {"tflops": tflops, "mfu": tflops / peak if tflops and peak else None}
    return found


def ranks(records: Sequence[Record]) -> dict[str, Any]:
    """Shares of the time between scorings that the ranks waited, for text (that which waited most)
    and for the slowest of them (in the mean); which was the slowest most often; the most bytes that
    one held. Of a run that went on with another number of processes these are the last ones'; None
    where there is no record."""
    every = [r for r in records if r.get("kind") == "ranks" and _is_whole(r)]
    found = [r for r in every if len(r["memory"]) == len(every[-1]["memory"])]
    seconds = sum(r["seconds"] for r in found)
    slowest = [r["slowest"] for r in found if r.get("slowest") is not None]
    behind = [r["waited_for_slowest"] for r in found if r.get("waited_for_slowest") is not None]
    text = np.sum([r["waited_for_text"] for r in found], axis=0) if found else []
    return {
        "waited_for_text": float(np.max(text)) / seconds if seconds else None,
        "waited_for_slowest": sum(behind) / seconds if behind and seconds else None,
        "slowest": max(set(slowest), key=slowest.count) if slowest else None,
        "memory": max((max(r["memory"]) for r in found), default=None),
        "processes": len(found[-1]["memory"]) if found else None,
    }


def _is_whole(record: Record) -> bool:
    """Whether there is a time, and of each process what it waited and held."""
    waited, memory = record["waited_for_text"], record["memory"]
    return None not in (record["seconds"], *waited) and 0 < len(memory) == len(waited)
