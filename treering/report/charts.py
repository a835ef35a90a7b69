"""Charts of the report as Vega-Lite specifications: plain dictionaries with their data inside.

Text and axes take the page's own colour (currentColor), so that light, dark and print need no
second drawing. An arm has the same colour in every chart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treering.report.series import Line, View

Spec = dict[str, Any]
COLOURS = (
    "#3b82c4", "#e07b39", "#2f9e77", "#c2578f", "#8a6fd1", "#b8952b", "#4aa3b8", "#8c8c8c",
    "#d1495b", "#6a994e", "#9c6644", "#5e60ce",
)  # fmt: skip
PANELS = 12  # corpora with a panel of their own; the table has them all


@dataclass(frozen=True)
class Chart:
    """A specification with what stands above it."""

    title: str
    spec: Spec


def charts(views: Sequence[View]) -> list[Chart]:
    """Every chart of the page for which there is a point to draw, in its order."""
    found = [Chart(f"Held-out loss: {corpus}", held_out(views, corpus)) for corpus in panels(views)]
    found.append(Chart("Training loss", _lines(views, "loss", "nats/token")))
    found.append(Chart("Rate", _lines(views, "rate", "learning rate")))
    found.append(Chart("Share of replay: achieved, and asked for (dashed)", _share(views)))
    found.append(Chart("Throughput", _lines(views, "tokens_per_second", "tokens/s")))
    cosines = [(view.name, view.cosine) for view in views]
    title = "Cosine of gradients: new and earlier samples"
    found.append(Chart(title, _spec(views, [_boundaries(views), _layer(cosines, "cosine")])))
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


def held_out(views: Sequence[View], corpus: str) -> Spec:
    """A corpus's held-out loss over tokens: a line for each arm, the base dashed, phases ruled."""
    lines = [(v.name, v.held_out[corpus]) for v in views if corpus in v.held_out]
    layers = [_boundaries(views)]
    base = [float(line.y[0]) for _, line in lines if len(line.y) and np.isfinite(line.y[0])]
    if base:
        layers.append(_rule([{"y": value} for value in sorted(set(base))]))
    if any(np.any(line.high > line.low) for _, line in lines):
        layers.append(_band(lines))
    return _spec(views, [*layers, _layer(lines, "nats/token", points=True)])


def _lines(views: Sequence[View], key: str, unit: str) -> Spec:
    lines = [(view.name, view.steps[key]) for view in views]
    return _spec(views, [_boundaries(views), _layer(lines, unit)])


def _share(views: Sequence[View]) -> Spec:
    lines = [(view.name, view.steps["share"]) for view in views]
    asked = [{"y": view.asked, "arm": view.name} for view in views]
    dashed = _rule(asked)
    dashed["encoding"]["color"] = _colour(views)
    return _spec(views, [dashed, _layer(lines, "share of tokens", form=".0%")])


def _spec(views: Sequence[View], layers: list[Spec]) -> Spec:
    for layer in layers:
        if layer["mark"]["type"] in ("line", "area"):
            layer["encoding"]["color"] = _colour(views)
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


def _colour(views: Sequence[View]) -> Spec:
    names = [view.name for view in views]
    palette = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
    scale = {"domain": names, "range": palette}
    return {"field": "arm", "type": "nominal", "scale": scale, "legend": None}


def _layer(
    lines: Sequence[tuple[str, Line]], unit: str, *, points: bool = False, form: str = "~r"
) -> Spec:
    values = [
        {"arm": name, "x": x, "y": y}
        for name, line in lines
        for x, y in zip(line.x.tolist(), line.y.tolist(), strict=True)
        if np.isfinite(x) and np.isfinite(y)
    ]
    y = {"field": "y", "type": "quantitative", "title": unit, "scale": {"zero": False}}
    return {
        "data": {"values": values},
        "mark": {"type": "line", "strokeWidth": 1.6, "point": {"size": 16} if points else False,
                 "tooltip": True},
        "encoding": {"x": _x(), "y": {**y, "axis": {"format": form}}},
    }  # fmt: skip


def _x() -> Spec:
    axis = {"format": "~s", "tickCount": 5}
    return {"field": "x", "type": "quantitative", "title": "tokens", "axis": axis}


def _band(lines: Sequence[tuple[str, Line]]) -> Spec:
    values = [
        {"arm": name, "x": x, "low": low, "high": high}
        for name, line in lines
        for x, low, high in zip(line.x.tolist(), line.low.tolist(), line.high.tolist(), strict=True)
        if np.isfinite(low) and np.isfinite(high)
    ]
    return {
        "data": {"values": values},
        "mark": {"type": "area", "opacity": 0.18},
        "encoding": {
            "x": _x(),
            "y": {"field": "low", "type": "quantitative"},
            "y2": {"field": "high"},
            "detail": {"field": "arm"},
        },
    }


def _rule(values: list[Spec]) -> Spec:
    return {
        "data": {"values": values},
        "mark": {"type": "rule", "strokeDash": [5, 4], "color": "currentColor", "opacity": 0.6},
        "encoding": {"y": {"field": "y", "type": "quantitative"}},
    }


def _boundaries(views: Sequence[View]) -> Spec:
    """A thin line where a phase ends, in the longest of the arms."""
    longest = max(views, key=lambda view: len(view.rows))
    values = [{"x": tokens, "phase": name} for tokens, name in longest.boundaries[:-1]]
    return {
        "data": {"values": values},
        "mark": {"type": "rule", "color": "currentColor", "opacity": 0.35, "tooltip": True},
        "encoding": {"x": {"field": "x", "type": "quantitative"}},
    }
