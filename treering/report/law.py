"""A law of loss with the points that it was fitted to, by matplotlib: PNG or SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from treering.analysis.laws.bootstrap import Resampled
from treering.analysis.laws.form import Array
from treering.analysis.laws.holdout import Mask
from treering.config import Invalid
from treering.report.charts import COLOURS

FORMS = ("png", "svg")
SPREAD = 1.1  # numbers of tokens so near are one level


def form_of(path: Path) -> str:
    """ "png" or "svg". Raises Invalid for a file that is no picture."""
    form = path.suffix.removeprefix(".")
    if form not in FORMS:
        raise Invalid(f"--figure {path}: give a name that ends in .png or .svg")
    return form


def draw(laws: Resampled, points: Mapping[str, Array], path: Path, corpus: str) -> None:
    """A panel for each size: loss by the corpus's share, a line and a 95% band for each number of
    tokens that was sampled often; and one of residuals by tokens. Raises Invalid as `form_of`."""
    form = form_of(path)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = np.unique(points["N"])
    figure, row = pyplot.subplots(
        1, len(sizes) + 1, figsize=(3.4 * (len(sizes) + 1), 3.0), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    shares = np.linspace(points["share"].min(), points["share"].max(), 101)
    for axes, size in zip(row[0], sizes, strict=False):
        own = points["N"] == size
        for i, tokens in enumerate(levels(points["D"][own])):
            colour = COLOURS[i % len(COLOURS)]
            at = {"N": np.full(101, size), "D": np.full(101, tokens), "share": shares}
            low, high = laws.interval(at)
            axes.plot(shares, laws.fit.predict(at), color=colour, label=f"{tokens:.3g} tokens")
            axes.fill_between(shares, low, high, color=colour, alpha=0.15, linewidth=0)
            here = own & of_level(points["D"], tokens)
            axes.plot(points["share"][here], points["loss"][here], "o", color=colour, markersize=3)
        axes.set_title(f"N = {size:,.0f}", fontsize=8)
        axes.set_xlabel(f"share of {corpus}", fontsize=8)
        axes.legend(fontsize=6, frameon=False)
    row[0][0].set_ylabel(f"held-out loss of {corpus}, nats/token", fontsize=8)
    residuals = np.log(points["loss"] / laws.fit.predict(points))
    last = row[0][-1]
    for i, size in enumerate(sizes):
        own = points["N"] == size
        last.plot(points["D"][own], 100 * residuals[own], "o", color=COLOURS[i % len(COLOURS)],
                  markersize=3, label=f"N = {size:.3g}")  # fmt: skip
    last.axhline(0, color="grey", linewidth=0.8)
    last.set_xscale("log")
    ticks = levels(points["D"])
    last.set_xticks(ticks, [f"{tokens:.2g}" for tokens in ticks])
    last.set_xticks([], minor=True)
    last.set_title("residuals, %", fontsize=8)
    last.set_xlabel("tokens", fontsize=8)
    last.legend(fontsize=6, frameon=False)
    for axes in row[0]:
        axes.tick_params(labelsize=7)
    figure.savefig(path, format=form, dpi=160, metadata={"Date": None} if form == "svg" else None)
    pyplot.close(figure)


def levels(tokens: Array, most: int = 5) -> list[float]:
    """The numbers of tokens that points have, each the least of those 10% above it: of many
    `most`, spread evenly."""
    found: list[float] = []
    for each in np.sort(tokens):
        if not found or each > found[-1] * SPREAD:
            found.append(float(each))
    places = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))
    return [found[place] for place in places]


def of_level(tokens: Array, level: float) -> Mask:
    """Which of `tokens` belong to the level that begins at `level`, as booleans."""
    return (tokens >= level) & (tokens <= level * SPREAD)
