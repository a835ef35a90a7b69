"""The verdict can be read on any console and as Markdown."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from treering.report.table import markdown, show

METRICS = {
    "retained": {"value": 2.9333, "per_corpus": {"en": 3.2, "fr": 2.5}, "reason": None},
    "learned": {"value": 2.75, "per_corpus": {"en": 3.0, "fr": 2.5}, "reason": None},
    "forgetting": {"value": 0.2, "per_corpus": {"en": 0.2}, "reason": None},
    "bwt": {"value": -0.2, "per_corpus": {"en": -0.2}, "reason": None},
    "fwt": {"value": None, "per_corpus": {}, "reason": "no corpus was learned after that"},
}


def summary(**changes: Any) -> dict[str, Any]:
    """Two corpora in two phases, as analysis.forgetting.summary has it."""
    judged = {
        "unit": "nats/token",
        "direction": "lower",
        "values": [[8.0, 8.0], [3.0, 5.0], [3.2, 2.5]],
        "metrics": METRICS,
    }
    bits = {**judged, "unit": "bits/byte", "values": [[2.0, None], [1.0, None], [1.25, None]]}
    rows = [("base", 0, 0), ("en", 300, 1_228_800), ("fr", 600, None)]
    whole: dict[str, Any] = {
        "end": "finished",
        "corpora": ["en", "fr"],
        "rows": [dict(zip(("label", "step", "tokens"), row, strict=True)) for row in rows],
        "learned": {"en": 1, "fr": 2},
        "loss": judged,
        "bits_per_byte": bits,
        "step": 600,
        "tokens": 2_457_600,
        "fresh_tokens": 1_843_200,
        "asked_share": 0.25,
        "replayed_share": 0.25,
        "flops": 1.234e15,
        "seconds": 612.4,
        "throughput": SPEED,
    }
    return {**whole, **changes}


SPEED = {
    "tokens_per_second": 41_000.0,
    "peak_tflops": 989.0,
    "full": {"tflops": 440.0, "mfu": 0.4449},
    "causal": {"tflops": 396.0, "mfu": 0.4004},
}


def shown(found: dict[str, Any], *, width: int = 120, metric: str = "loss") -> str:
    out = io.StringIO()
    show(found, Console(file=out, width=width), metric=metric)
    return out.getvalue()


def line(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(start))


def test_a_row_shows_each_score_its_change_and_the_best() -> None:
    text = shown(summary())
    assert line(text, "base").split() == ["base", "0", "0", "8.000", "8.000"]
    assert line(text, "en").split()[3:] == ["*3.000", "-5.000", "5.000", "-3.000"]
    assert line(text, "fr").split() == ["fr", "600", "-", "3.200", "+0.200", "*2.500", "-2.500"]
    assert "nats/token (lower is better)" in text


def test_each_metric_has_a_line_with_its_corpora_or_the_reason_why_not() -> None:
    text = shown(summary())
    assert "2.933  en 3.200  fr 2.500  (after" in line(text, "retained")
    assert line(text, "forgetting").split()[:4] == ["forgetting", "+0.200", "en", "+0.200"]
    assert line(text, "bwt").split()[1] == "-0.200"
    assert line(text, "fwt").split(maxsplit=2)[1:] == ["-", "no corpus was learned after that"]


def test_what_was_spent_is_shown() -> None:
    text = shown(summary())
    assert "25.00% of the tokens (asked 25.00%)" in line(text, "replayed")
    assert "2,457,600 (1,843,200 fresh)" in line(text, "tokens     ")
    assert "1.23e+15" in line(text, "FLOPs")
    assert "finished" in line(text, "end")


def test_speed_is_shown_in_both_conventions_and_with_its_peak() -> None:
    text = shown(summary())
    assert "41,000 tokens/s" in line(text, "speed")
    assert "440 (attention in full), 396 (halved: causal)" in line(text, "TFLOP/s")
    assert "44.5% and 40.0% of 989 TFLOP/s" in line(text, "MFU")
    unknown = {each: SPEED[each] | {"mfu": None} for each in ("full", "causal")}
    text = shown(summary(throughput=SPEED | unknown | {"peak_tflops": None}))
    assert "TFLOP/s" in text and "MFU" not in text
    none = {"tflops": None, "mfu": None}
    bare = {"tokens_per_second": None, "peak_tflops": None, "full": none, "causal": none}
    text = shown(summary(throughput=bare))
    assert not {"speed", "TFLOP/s", "MFU"} & set(text.split())


def test_a_narrow_console_loses_no_figure() -> None:
    for width in (80, 40, 20):
        text = shown(summary(), width=width)
        for figure in ("1,228,800", "*3.000", "-5.000", "+0.200", "*2.500", "-2.500"):
            assert figure in text
        assert "…" not in text


def test_bits_per_byte_that_are_missing_are_dashes() -> None:
    text = shown(summary(), metric="bits_per_byte")
    assert "bits/byte" in text
    assert line(text, "fr").split() == ["fr", "600", "-", "1.250", "+0.250", "-"]


def test_a_change_is_against_the_best_until_then_and_higher_can_be_better() -> None:
    scores = [[0.1, 0.1], [0.9, 0.2], [0.7, None], [0.8, 0.1]]
    accuracy = {**summary()["loss"], "values": scores, "direction": "higher", "unit": "accuracy"}
    rows = [{"label": f"r{at}", "step": at, "tokens": at} for at in range(4)]
    text = shown(summary(loss=accuracy, rows=rows))
    assert line(text, "r1").split()[3:] == ["*0.900", "+0.800", "*0.200", "+0.100"]
    assert line(text, "r2").split()[3:] == ["0.700", "-0.200", "-"]
    assert line(text, "r3").split()[3:] == ["0.800", "-0.100", "0.100", "-0.100"]


def test_names_are_shown_as_they_are_whatever_they_contain() -> None:
    text = shown(summary(corpora=["[red]x", "a|b"]))
    assert "[red]x" in text and "a|b" in text
    assert "a\\|b" in markdown(summary(corpora=["[red]x", "a|b"]))


def test_a_run_that_has_only_begun_can_be_shown() -> None:
    nothing: Any = {"value": None, "per_corpus": {}, "reason": "no corpus is learned yet"}
    begun = {
        **summary()["loss"],
        "values": [[None, None]],
        "metrics": dict.fromkeys(METRICS, nothing),
    }
    spent = dict.fromkeys(
        ("end", "tokens", "fresh_tokens", "replayed_share", "flops", "seconds"), None
    )
    text = shown(summary(loss=begun, rows=summary()["rows"][:1], **spent))
    assert line(text, "base").split() == ["base", "0", "0", "-", "-"]
    assert "not reached" in text and "no corpus is learned yet" in text


def test_markdown_is_a_table_with_one_line_a_row() -> None:
    lines = markdown(summary()).splitlines()
    assert lines[0] == "| after | step | tokens | en | fr |"
    assert lines[1] == "|---|---:|---:|---:|---:|"
    assert lines[3] == "| en | 300 | 1,228,800 | \\*3.000 -5.000 | 5.000 -3.000 |"
    assert {text.count("|") for text in lines[:5]} == {6} and lines[5] == ""
    assert (
        lines[-1] == "Means: retained 2.933, learned 2.750, forgetting +0.200, bwt -0.200, fwt -."
    )


def test_branches_are_named_beneath_the_metrics_of_the_run() -> None:
    worse = METRICS | {"retained": {"value": None, "per_corpus": {}, "reason": "missing"}}
    found = summary(branches={"average 0.99": {"loss": METRICS}, "<b>|": {"loss": worse}})
    text = shown(found)
    said = "average 0.99: retained 2.933, learned 2.750, forgetting +0.200"
    assert said in text and "<b>|: retained -, learned 2.750" in text
    assert f"- {said}" in markdown(found) and "- \\<b>\\|: retained -" in markdown(found)
