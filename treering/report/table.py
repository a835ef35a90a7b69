"""A run's verdict as text: the corpus x time matrix and its metrics, on screen or as Markdown.

    after   step     tokens              en              fr
    base       0          0           9.012           9.010
    en       300  1,228,800   *4.103 -4.909    6.882 -2.128
    fr       600  2,457,600    6.498 +2.395   *3.911 -2.971

A score's change is against the corpus's best until then; `*` marks the best of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Summary = Mapping[str, Any]  # what analysis.forgetting.summary returns, or summary.json holds

METRICS = {
    "retained": "after the last phase",
    "learned": "when each was learned",
    "forgetting": "> 0 forgot",
    "bwt": "backward transfer, < 0 forgot",
    "fwt": "forward transfer, > 0 earlier phases helped",
}
NONE = "-"
LEGEND = "* best of all; signed: against the best until then"


def show(summary: Summary, console: Console, *, metric: str = "loss") -> None:
    """Print the matrix, a line for each metric, and what the run spent.

    metric: "loss" or "bits_per_byte".
    """
    wide = console.options.update(max_width=10_000)
    table = _table(summary, metric)
    if console.measure(table, options=wide).maximum > console.width:
        table = _table(summary, metric, gap="\n")
    table.width = console.measure(table, options=wide).maximum  # a cut-off figure is a wrong one
    judged = summary[metric]
    for line in (_title(judged), LEGEND):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(table, crop=False)
    for line in (*_metric_lines(judged), *_branch_lines(summary, metric)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    tasks = _task_rows(summary)
    if tasks:
        small = _plain(tasks)
        small.width = console.measure(small, options=wide).maximum
        console.print(small, crop=False)
    for line in ["", *_cost_lines(summary)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def markdown(summary: Summary, *, metric: str = "loss") -> str:
    """The matrix as a Markdown table, with the metrics' means in a line below it."""
    corpora, judged = summary["corpora"], summary[metric]
    lines = [
        "| " + " | ".join(["after", "step", "tokens", *(escaped(name) for name in corpora)]) + " |",
        "|" + "|".join(["---", *["---:"] * (2 + len(corpora))]) + "|",
    ]
    for row, cells in zip(summary["rows"], _cells(summary, metric), strict=True):
        marked = [cell.replace("*", "\\*").strip() for cell in cells]
        names = [escaped(row["label"]), str(row["step"]), _count(row["tokens"])]
        lines.append("| " + " | ".join([*names, *marked]) + " |")
    means = ", ".join(
        f"{name} {_number(judged['metrics'][name]['value'], signed=_is_difference(name))}"
        for name in METRICS
    )
    note = f"{_title(judged)}; {LEGEND}.".replace("*", "\\*")
    beside = [f"- {escaped(line)}" for line in _branch_lines(summary, metric)]
    said = [note, f"Means: {means}.", *([""] if beside else []), *beside, *_task_markdown(summary)]
    return "\n".join([*lines, "", *said, ""])


def _table(summary: Summary, metric: str, gap: str = " ") -> Table:
    """The matrix; `gap` parts a score from its change."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("after", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    for corpus in summary["corpora"]:
        table.add_column(Text(corpus), justify="right", no_wrap=True)
    for row, cells in zip(summary["rows"], _cells(summary, metric, gap), strict=True):
        names = (row["label"], str(row["step"]), _count(row["tokens"]))
        table.add_row(*(Text(name) for name in names), *(Text(cell) for cell in cells))
    return table


def _task_rows(summary: Summary) -> list[list[str]]:
    """Downstream tasks as text, a line for each metric: its name, then its value at each row."""
    tasks = summary.get("tasks", {"columns": []})  # older summaries know of none
    if not tasks["columns"]:
        return []
    rows = [["task", *(row["label"] for row in summary["rows"])]]
    for i, column in enumerate(tasks["columns"]):
        each = zip(tasks["values"], tasks["stderr"], strict=True)
        rows.append([column, *(_with_error(values[i], errors[i]) for values, errors in each)])
    return rows


def _with_error(value: float | None, stderr: float | None) -> str:
    return _number(value) if value is None or stderr is None else f"{value:.3f} ±{stderr:.3f}"


def _plain(rows: list[list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(rows[0]):
        table.add_column(Text(name), justify="right" if i else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _task_markdown(summary: Summary) -> list[str]:
    rows = _task_rows(summary)
    lines = ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in rows]
    return ["", lines[0], "|---|" + "---:|" * (len(rows[0]) - 1), *lines[1:]] if rows else []


def _title(judged: Summary) -> str:
    kind = "loss" if judged["unit"] == "nats/token" else "score"
    return f"held-out {kind}, {judged['unit']} ({judged['direction']} is better)"


def _cells(summary: Summary, metric: str, gap: str = " ") -> list[list[str]]:
    """The scores as text, row by row: mark of the best, score, change against the best so far."""
    judged = summary[metric]
    better = max if judged["direction"] == "higher" else min
    columns = [_column(list(scores), better, gap) for scores in zip(*judged["values"], strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def _column(scores: list[float | None], better: Callable[..., float], gap: str) -> list[str]:
    """One corpus's cells, from row 0 on."""
    best = better((score for score in scores if score is not None), default=None)
    so_far: float | None = None
    cells = []
    for score in scores:
        mark = "*" if score is not None and score == best else " "
        cells.append(f"{mark}{_number(score)}")
        if score is not None and so_far is not None:
            cells[-1] += gap + _number(score - so_far, signed=True)
        if score is not None:
            so_far = score if so_far is None else better(so_far, score)
    return cells


def _metric_lines(judged: Summary) -> list[str]:
    lines = []
    for name, meaning in METRICS.items():
        metric = judged["metrics"][name]
        signed = _is_difference(name)
        if metric["value"] is None:
            lines.append(f"{name:<11}{NONE:>8}  {metric['reason']}")
            continue
        each = "  ".join(
            f"{corpus} {_number(value, signed=signed)}"
            for corpus, value in metric["per_corpus"].items()
        )
        lines.append(f"{name:<11}{_number(metric['value'], signed=signed):>8}  {each}  ({meaning})")
    return lines


def _branch_lines(summary: Summary, metric: str) -> list[str]:
    """The weights scored beside the trained ones; older summaries know of none."""
    lines = []
    for branch, units in summary.get("branches", {}).items():
        found = ((n, units[metric][n]["value"]) for n in ("retained", "learned", "forgetting"))
        each = (f"{n} {_number(value, signed=_is_difference(n))}" for n, value in found)
        lines.append(f"{branch}: {', '.join(each)}")
    return lines


def _cost_lines(summary: Summary) -> list[str]:
    asked, achieved = summary["asked_share"], summary["replayed_share"]
    flops, seconds = summary["flops"], summary["seconds"]
    share = NONE if achieved is None else f"{achieved:.2%}"
    return [
        f"replayed   {share} of the tokens (asked {asked:.2%})",
        f"tokens     {_count(summary['tokens'])} ({_count(summary['fresh_tokens'])} fresh)",
        f"FLOPs      {NONE if flops is None else f'{flops:.3g}'}",
        *_speed_lines(summary["throughput"]),
        *_rank_lines(summary.get("ranks", {})),
        f"seconds    {NONE if seconds is None else f'{seconds:,.0f}'}",
        f"end        {summary['end'] or 'not reached'}",
    ]


def _speed_lines(found: Summary) -> list[str]:
    """Tokens/s, and TFLOP/s of a device with the convention and the peak named."""
    if found["tokens_per_second"] is None:
        return []
    lines = [f"speed      {found['tokens_per_second']:,.0f} tokens/s (median of steps)"]
    each = ", ".join(
        f"{found[name]['tflops']:.3g} {meaning}"
        for name, meaning in (("full", "(attention in full)"), ("causal", "(halved: causal)"))
        if found[name]["tflops"] is not None
    )
    if each:
        lines.append(f"TFLOP/s    {each}")
    if found["peak_tflops"]:
        shares = " and ".join(f"{found[name]['mfu']:.1%}" for name in ("full", "causal"))
        lines.append(f"MFU        {shares} of {found['peak_tflops']:,.0f} TFLOP/s")
    return lines


def _rank_lines(found: Summary) -> list[str]:
    """What was waited for, and the height of memory; older summaries know of neither."""
    if not found.get("memory"):
        return []
    waits = [f"{found['waited_for_text']:.1%} of the time for text"]
    several = found["processes"] > 1
    if several and found["waited_for_slowest"] is not None:
        waits.append(f"{found['waited_for_slowest']:.1%} for rank {found['slowest']}, the slowest")
    of = " on the rank that held most" if several else ""
    return [
        f"waited     {', '.join(waits)}",
        f"memory     {found['memory'] / 2**20:,.0f} MiB at most{of}",
    ]


def _is_difference(metric: str) -> bool:
    return metric not in ("retained", "learned")


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return NONE
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def _count(tokens: int | None) -> str:
    return NONE if tokens is None else f"{tokens:,}"


def escaped(name: str) -> str:
    """A name as text in Markdown and its tables, whatever it contains."""
    return name.replace("\\", "\\\\").replace("|", "\\|").replace("<", "\\<")
