"""The report's charts for papers and pull requests, by matplotlib: PNG or SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from treering.analysis.runs import Arm
from treering.report.charts import colour, dash, panels
from treering.report.series import Line, View, view

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS, WIDTH, HEIGHT = 3, 3.6, 2.5  # panels in a row; of a panel, in inches


def draw(arms: Sequence[Arm], path: Path, form: str) -> None:
    """One figure of all panels: matrices, held-out losses, training loss, rate, share, speed.

    form: "png" or "svg".
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    views = [view(arm) for arm in arms]
    parts: list[Callable[[Axes], None]] = [partial(_matrix, shown=shown) for shown in views]
    parts += [partial(_held_out, views=views, corpus=corpus) for corpus in panels(views)]
    units = {"loss": "training loss, nats/token", "rate": "learning rate",
             "share": "replayed share of tokens", "tokens_per_second": "tokens/s"}  # fmt: skip
    parts += [partial(_steps, views=views, key=key, title=unit) for key, unit in units.items()]
    rows = -(-len(parts) // COLUMNS)
    size = (WIDTH * COLUMNS, HEIGHT * rows)
    figure, grid = pyplot.subplots(rows, COLUMNS, figsize=size, squeeze=False, layout="constrained")
    for axes, part in zip(grid.flat, parts, strict=False):
        part(axes)
    for axes in grid.flat[len(parts) :]:
        axes.set_axis_off()
    if len(views) > 1:
        handles = [Line2D([], [], **style(i)) for i in range(len(views))]
        names = [_plain(v.name) for v in views]
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": 3, "handlelength": 4}
        figure.legend(handles, names, frameon=False, **place)
    figure.savefig(path, format=form, dpi=160, metadata={"Date": None} if form == "svg" else None)
    pyplot.close(figure)


def _matrix(axes: Axes, shown: View) -> None:
    """Corpora over time, each cell with its loss; colours within a corpus."""
    values = shown.values
    known = np.ma.masked_invalid(values)
    heat = (known - known.min(axis=0)) / np.ma.maximum(np.ma.ptp(known, axis=0), 1e-12)
    axes.imshow(heat, cmap="Oranges", aspect="auto", vmin=0, vmax=2)
    if len(shown.corpora) <= 8:
        for row, column in np.ndindex(values.shape):
            text = "-" if np.isnan(values[row, column]) else f"{values[row, column]:.2f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7)
        axes.set_xticks(range(len(shown.corpora)), [_plain(c) for c in shown.corpora], fontsize=7)
    axes.set_yticks(range(len(shown.rows)), [_plain(r.label) for r in shown.rows], fontsize=7)
    axes.set_title(_plain(shown.name), fontsize=8)


def _held_out(axes: Axes, views: Sequence[View], corpus: str) -> None:
    for i, shown in enumerate(views):
        if corpus not in shown.held_out:
            continue
        line = shown.held_out[corpus]
        _line(axes, i, line, marker=".")
        if len(line.y):
            axes.axhline(line.y[0], color="grey", linestyle=":", linewidth=0.8)
    _finish(axes, views, f"held-out loss of {_plain(corpus)}, nats/token")


def _steps(axes: Axes, views: Sequence[View], key: str, title: str) -> None:
    for i, shown in enumerate(views):
        _line(axes, i, shown.steps[key])
        if key == "share" and not shown.branch:
            axes.axhline(shown.asked, **style(i), alpha=0.45, linewidth=0.8)
    _finish(axes, views, title)


def _line(axes: Axes, i: int, line: Line, marker: str = "") -> None:
    axes.plot(line.x, line.y, **style(i), linewidth=1.1, marker=marker, markersize=3)
    axes.fill_between(line.x, line.low, line.high, color=colour(i), alpha=0.18, linewidth=0)


def _finish(axes: Axes, views: Sequence[View], title: str) -> None:
    from matplotlib.ticker import EngFormatter

    longest = max(views, key=lambda v: len(v.rows))
    for tokens, _ in longest.switches:
        axes.axvline(tokens, color="grey", linewidth=0.6)
    axes.set_title(title, fontsize=8)
    axes.set_xlabel("tokens", fontsize=7)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=7)


def style(i: int) -> dict[str, Any]:
    """Colour and dashes of an arm's line, those of the page."""
    return {"color": colour(i), "linestyle": (0, dash(i)) if dash(i) else "-"}


def _plain(name: str) -> str:
    """Matplotlib takes what stands between two dollars for mathematics."""
    return name.replace("$", r"\$")
