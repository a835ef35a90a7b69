"""The report as a file: a page, figures, or the figures' numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from treering.analysis import cells, forgetting
from treering.analysis.runs import Arm
from treering.atomic import replacing
from treering.config import Invalid
from treering.report import comparison
from treering.report import table as text_of
from treering.report.comparison import Comparison
from treering.report.page import page


def report(
    arms: Sequence[Arm], out: Path, form: str = "html", *, table: Comparison | None = None
) -> None:
    """Write the report of some arms, whole or not at all.

    form: "html", "png" or "svg" (charts), "csv" (a line for each run), "md" (tables); table: of
    `page.compared`, for those that show it. Raises Invalid where the folder is missing.
    """
    if not out.parent.is_dir():
        raise Invalid(f"--out {out}: no such folder as {out.parent}; make it first")
    if out.is_dir():
        raise Invalid(f"--out {out}: is a folder; name a file")
    with replacing(out) as beside:
        if form == "html":
            beside.write_text(page(arms, table), encoding="utf-8")
        elif form == "md":
            beside.write_text(markdown(arms, table), encoding="utf-8")
        elif form == "csv":
            whole = [arm for arm in arms if arm.branch is None]  # a run's lines have its branches
            runs = [(arm.name, run) for arm in whole for run in arm.runs.values()]
            cells.write(beside, [line for name, run in runs for line in cells.lines(name, {}, run)])
        else:
            from treering.report.figures import draw

            draw(arms, beside, form)


def markdown(arms: Sequence[Arm], table: Comparison | None) -> str:
    """Every run's matrix and metrics, and the comparison of the arms, as Markdown."""
    parts = []
    for arm in arms:
        for seed, run in arm.runs.items() if arm.branch is None else ():
            parts.append(
                f"### {text_of.escaped(arm.name)}, seed {seed}\n\n"
                f"{text_of.markdown(forgetting.summary(run))}"
            )
    return "\n".join([*parts, *([comparison.markdown(table)] if table else [])])
