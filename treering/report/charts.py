"""Charts of the report as Vega-Lite specifications: plain dictionaries with their data inside.

Text and axes take the page's own colour (currentColor), so that light, dark and print need no
second drawing. An arm has the same colour and dashes in every chart. A line is one value, which
Vega-Lite flattens to its points: so a page of many arms stays small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treering.report.series import POINTS, Floats, Line, View, picked, thinned

Spec = dict[str, Any]
COLOURS = (
    "#3b82c4", "#e07b39", "#2f9e77", "#c2578f", "#8a6fd1", "#b8952b", "#4aa3b8", "#8c8c8c",
    "#d1495b", "#6a994e", "#9c6644", "#5e60ce",
)  # fmt: skip
# Of the arms beyond each dozen: strokes and gaps, in the width of a line or so.
DASHES: tuple[tuple[int, ...], ...] = (
    (), (6, 3), (2, 2), (8, 2, 2, 2), (12, 4), (8, 2, 2, 2, 2, 2), (4, 6), (12, 2, 4, 2), (2, 6),
)  # fmt: skip
LEAST = 12  # points of a line, however many lines there are
PANELS = 12  # corpora with a panel of their own; the table has them all


@dataclass(frozen=True)
class Chart:
    """A specification with what stands above it."""

    title: str
    spec: Spec


def colour(i: int) -> str:
    """That of an arm, by its place; after all colours they begin anew, with other dashes."""
    return COLOURS[i % len(COLOURS)]


def dash(i: int) -> tuple[int, ...]:
    """An arm's strokes and gaps; none where the line is whole."""
    return DASHES[i // len(COLOURS) % len(DASHES)]


def charts(views: Sequence[View], points: int = POINTS) -> list[Chart]:
    """Every chart of the page for which there is a point to draw, in its order; about so many
    points a line."""
    found = [
        Chart(f"Held-out loss: {corpus}", held_out(views, corpus, points))
        for corpus in panels(views)
    ]

    def line(title: str, key: str, unit: str) -> Chart:
        return Chart(title, _along(views, [view.steps[key] for view in views], unit, points))

    found.append(line("Training loss", "loss", "nats/token"))
    found.append(line("Rate", "rate", "learning rate"))
    found.append(Chart("Share of replay: achieved, and asked for (pale)", _share(views, points)))
    found.append(line("Throughput", "tokens_per_second", "tokens/s"))
    title = "Cosine of gradients: new and earlier samples"
    cosines = _along(views, [view.cosine for view in views], "cosine", points)
    found.append(Chart(title, cosines))
    return [chart for chart in found if chart.spec["layer"][-1]["data"]["values"]]


def panels(views: Sequence[View]) -> list[str]:
    """The corpora that get a panel: all, or of many those whose loss moved the most."""
    corpora = list(dict.fromkeys(corpus for view in views for corpus in view.corpora))
    if len(corpora) <= PANELS:
        return corpora

    def moved(corpus: str) -> float:
        values = np.concatenate([v.held_out[corpus].y for v in views if corpus in v.held_out])
        known = values[np.isfinite(values)]
        return -float(np.ptp(known)) if len(known) else 0.0

    chosen = sorted(corpora, key=moved)[:PANELS]
    return [corpus for corpus in corpora if corpus in chosen]


def held_out(views: Sequence[View], corpus: str, points: int) -> Spec:
    """A corpus's held-out loss over tokens: a line for each arm, the base dotted, phases ruled."""
    lines = [
        (v.name, picked(v.held_out[corpus], points, [tokens for tokens, _ in v.boundaries]))
        for v in views
        if corpus in v.held_out
    ]
    layers = [_boundaries(views)]
    base = {y for _, line in lines for y in _short(line.y[:1]) if np.isfinite(y)}
    layers.append(_rule([{"y": y} for y in sorted(base)], {"strokeDash": [1, 3], "opacity": 0.6}))
    ranges = [(name, line) for name, line in lines if np.any(line.high > line.low)]
    layers.append(_band(ranges))
    return _spec(views, [*layers, _layer(lines, "nats/token", dotted=True)])


def _along(views: Sequence[View], lines: Sequence[Line], unit: str, points: int) -> Spec:
    """Numbers of steps: a line for each arm, phases ruled."""
    return _spec(views, [_boundaries(views), _layer(_few(views, lines, points), unit)])


def _share(views: Sequence[View], points: int) -> Spec:
    asked = [{"y": view.asked, "arm": view.name} for view in views if not view.branch]
    pale = _rule(asked, {"opacity": 0.45})
    pale["encoding"] |= _look(views)
    lines = _few(views, [view.steps["share"] for view in views], points)
    return _spec(views, [pale, _layer(lines, "share of tokens", form=".0%")])


def _few(views: Sequence[View], lines: Sequence[Line], points: int) -> list[tuple[str, Line]]:
    return [(v.name, thinned(line, points)) for v, line in zip(views, lines, strict=True)]


def _spec(views: Sequence[View], layers: list[Spec]) -> Spec:
    look = _look(views)
    for layer in layers:
        if layer["mark"]["type"] == "area":
            layer["encoding"]["color"] = look["color"]
        elif layer["mark"]["type"] == "line":
            layer["encoding"] |= look
    return frame([layer for layer in layers if layer["data"]["values"] or layer is layers[-1]])


def frame(layers: list[Spec], height: int = 210) -> Spec:
    """Layers as a specification as wide as its place on the page; `height` in pixels."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": layers,
    }


def _look(views: Sequence[View]) -> Spec:
    """What tells the arms apart."""
    names, places = [view.name for view in views], range(len(views))

    def channel(each: list[Any]) -> Spec:
        scale = {"domain": names, "range": each}
        return {"field": "arm", "type": "nominal", "scale": scale, "legend": None}

    dashes = [list(dash(i)) or [1, 0] for i in places]
    return {"color": channel([colour(i) for i in places]), "strokeDash": channel(dashes)}


def _layer(
    lines: Sequence[tuple[str, Line]], unit: str, *, dotted: bool = False, form: str = "~r"
) -> Spec:
    y = {"field": "y", "type": "quantitative", "title": unit, "scale": {"zero": False}}
    return {
        **_data([(name, {"x": line.x, "y": line.y}) for name, line in lines]),
        "mark": {"type": "line", "strokeWidth": 1.6, "point": {"size": 16} if dotted else False,
                 "tooltip": True},
        "encoding": {"x": _x(), "y": {**y, "axis": {"format": form}}},
    }  # fmt: skip


def _data(lines: Sequence[tuple[str, dict[str, Floats]]]) -> Spec:
    """The lines that have points, a value each, and how to make points of them."""
    values = []
    for name, numbers in lines:
        known = np.all([np.isfinite(each) for each in numbers.values()], axis=0)
        if known.any():
            values.append({"arm": name} | {k: _short(each[known]) for k, each in numbers.items()})
    flat = [{"flatten": list(numbers)} for _, numbers in lines[:1]]
    return {"data": {"values": values}, "transform": flat}


def _short(values: Floats) -> list[float]:
    """To 5 significant digits, in as few characters."""
    rounded = [float(f"{value:.5g}") for value in values.tolist()]
    return [int(v) if v.is_integer() and abs(v) < 1e15 else v for v in rounded]


def _x() -> Spec:
    axis = {"format": "~s", "tickCount": 5}
    return {"field": "x", "type": "quantitative", "title": "tokens", "axis": axis}


def _band(lines: Sequence[tuple[str, Line]]) -> Spec:
    return {
        **_data([(name, {"x": v.x, "low": v.low, "high": v.high}) for name, v in lines]),
        "mark": {"type": "area", "opacity": 0.18},
        "encoding": {
            "x": _x(),
            "y": {"field": "low", "type": "quantitative"},
            "y2": {"field": "high"},
            "detail": {"field": "arm"},
        },
    }


def _rule(values: list[Spec], look: Spec) -> Spec:
    return {
        "data": {"values": values},
        "mark": {"type": "rule", "color": "currentColor", **look},
        "encoding": {"y": {"field": "y", "type": "quantitative"}},
    }


def _boundaries(views: Sequence[View]) -> Spec:
    """A thin line where a phase ends, in the longest of the arms."""
    longest = max(views, key=lambda view: len(view.rows))
    values = [{"x": tokens, "phase": name} for tokens, name in longest.switches]
    return {
        "data": {"values": values},
        "mark": {"type": "rule", "color": "currentColor", "opacity": 0.35, "tooltip": True},
        "encoding": {"x": {"field": "x", "type": "quantitative"}},
    }
