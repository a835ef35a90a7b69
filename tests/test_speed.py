"""Tokens/s, TFLOP/s and MFU by hand, in both conventions; none for a device that is not known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from treering import config, journal, records
from treering.batch import Batch, Refs
from treering.ledger import Ledger, flops_per_token
from treering.loop import Trained
from treering.protocols import Metrics
from treering.speed import PEAKS, Speed, peak


def test_a_published_figure_is_met() -> None:
    """TinyLlama, 1.1B, at 24,000 tokens/s on an A100: 56% in full and 52% in the causal one."""
    layers, width, length, multiplying = 22, 2048, 2048, 1_034_512_384
    full = flops_per_token(multiplying, layers=layers, width=width, length=length)
    speed = Speed(full, full - 6 * layers * width * length, 1, PEAKS["NVIDIA A100-SXM4-40GB"])
    found = speed.of(24_000, 1.0)
    assert found["tokens_per_second"] == 24_000
    assert found["mfu"] == pytest.approx(0.563, abs=0.002)
    causal = found["mfu"] * speed.causal_flops_per_token / full
    assert causal == pytest.approx(0.520, abs=0.002)


def test_it_is_that_of_one_device() -> None:
    one, eight = Speed(6e9, 5e9, 1, 100.0).of(1000, 2.0), Speed(6e9, 5e9, 8, 100.0).of(8000, 2.0)
    assert one["tflops"] == eight["tflops"] == 3.0 and one["mfu"] == eight["mfu"] == 0.03
    assert eight["tokens_per_second"] == 4000


def test_what_the_device_computes_when_the_host_is_done_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Four steps of 0.1 s of the host; then the device is waited for, 2 s."""
    clock = [0.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: clock[0])

    class Loss:
        def __float__(self) -> float:
            clock[0] += 2.0 if clock[0] == 0.0 else 0.0
            return 0.5

    metrics = Metrics(*[Loss()] * 5, 0.0)  # type: ignore[arg-type]
    zero = np.zeros(4, np.int64)
    batch = Batch(np.zeros((4, 26), np.int64), Refs(zero, zero), zero > 0, 0, 0, False)
    recipe = config.load(tiny.place(tmp_path) / "recipe.toml")
    log = journal.Journal(tmp_path / "records.jsonl", recipe, Speed(6e9, 5e9, 1, None))
    for _ in range(4):
        log.step(Trained(batch, None, 1e-3, metrics), Ledger(), 0.1, 1.0)  # type: ignore[arg-type]
    left = log.progress(14).seconds_left
    log.close()
    found = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [r["tokens_per_second"] for r in found] == pytest.approx([100 / 0.6] * 4)
    assert log.tokens_per_second == pytest.approx(100 / 0.6)
    assert left == pytest.approx(13 * 0.6)  # by steps, whatever a step has of tokens


def test_no_mfu_rather_than_a_wrong_one() -> None:
    assert peak("NVIDIA H200", "bf16") == 989.0
    assert peak("NVIDIA H200 NVL", "bf16") is None and peak("NVIDIA H200", "fp32") is None
    assert Speed(6e9, 5e9, 1, None).of(1000, 1.0)["mfu"] is None


def test_a_run_names_convention_and_peak(place: Path, tmp_path: Path) -> None:
    summary = tiny.run(place / "recipe.toml", tmp_path)
    found = records.read(tmp_path)
    header = next(record for record in found if record["kind"] == "header")
    assert "attention in full" in header["speed"]["convention"]
    assert header["speed"]["peak_tflops"] is None and header["speed"]["peak_source"] is None
    steps = [record for record in found if record["kind"] == "step"]
    assert all(record["mfu"] is None and record["tflops"] > 0 for record in steps)
    both = summary["throughput"]
    ratio = header["speed"]["causal_flops_per_token"] / header["speed"]["flops_per_token"]
    assert both["causal"]["tflops"] / both["full"]["tflops"] == pytest.approx(ratio)
    assert both["full"]["mfu"] is None
