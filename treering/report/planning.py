"""A plan in words, as a table, and as a page: laws with their points, and what could be chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from treering.analysis.laws import doubts
from treering.analysis.laws.answers import FLOPS, Answer, Budget
from treering.analysis.laws.before import Before
from treering.analysis.laws.bootstrap import Resampled
from treering.analysis.laws.form import Array
from treering.analysis.laws.holdout import Judged
from treering.report import blocks
from treering.report.charts import COLOURS, Chart, Spec, frame
from treering.report.law import levels, of_level
from treering.report.page import shell

ABOUT = (
    "Points: pilots. Lines: the laws, at numbers of tokens that pilots have (of many five); bands: "
    "95% intervals of the law. The front: of all sizes and replay shares for the budget those of "
    "which no other both learns more and forgets less; the dashed line is the limit at the chosen "
    "size, the diamond what is chosen."
)


@dataclass(frozen=True)
class Kept:
    """A corpus whose loss may be `factor` times what it is before, and its law."""

    corpus: str
    law: Resampled
    before: Before
    factor: float

    def limit(self, sizes: Array | float) -> Array:
        """In nats, at sizes."""
        return self.factor * self.before.at(sizes)


@dataclass(frozen=True)
class Planned:
    """What was asked and answered: the corpora to keep and to learn, all `choices`, the best of
    them, the laws' errors on what was held out, by corpus, beside those of a competitor, and what
    speaks against the points."""

    kept: Sequence[Kept]
    learn: str
    choices: Budget
    size: Answer
    replay: Answer
    learned: Answer
    new: Resampled
    held: Mapping[str, Sequence[Judged]]
    doubts: Sequence[str]

    @property
    def tokens(self) -> float:
        """Of training, replayed ones among them."""
        return self.choices.flops / (FLOPS * self.size.value)

    def laws(self) -> Iterator[tuple[str, Resampled, dict[str, list[float]]]]:
        """Each corpus with its law and the chosen point."""
        at = {"N": [self.size.value], "D": [self.tokens]}
        for kept in self.kept:
            yield kept.corpus, kept.law, at | {"share": [self.replay.value]}
        yield self.learn, self.new, at | {"share": [1 - self.replay.value]}


def sentence(found: Planned) -> str:
    each = [f"{kept.corpus} within {kept.limit(found.size.value):.4f}" for kept in found.kept]
    return (
        f"Train N = {found.size.value:.3g} on {found.tokens:.3g} tokens with "
        f"{found.replay.value:.1%} replay: {found.learn} at {found.learned.value:.4f} nats, "
        f"{', '.join(each)}."
    )


def rows(found: Planned) -> list[tuple[str, str, str]]:
    """What, its best value, its 95% interval; of losses that of what a run would show."""
    size, replay = found.size, found.replay
    made = [
        ("N", f"{size.value:.3g}", f"{size.low:.3g} to {size.high:.3g}"),
        ("replay", f"{replay.value:.2%}", f"{replay.low:.2%} to {replay.high:.2%}"),
    ]
    for name, law, place in found.laws():
        low, high = law.interval(place, measured=True)
        best = law.fit.predict(place)[0]
        made.append((f"loss of {name}", f"{best:.4f}", f"{low[0]:.4f} to {high[0]:.4f}"))
    return made


def warnings(found: Planned) -> list[str]:
    """What speaks against the answer: the points, and how far it is beyond what is known."""
    said, size = [*found.doubts], found.size.value
    if found.size.outside:
        said.append(f"{found.size.outside:.0%} of resamples find no choice within the limit")
    for name, law, place in found.laws():
        said += doubts.of_law(name, law, place, found.held[name])
    for kept in (kept for kept in found.kept if kept.before.is_beyond(size)):
        low, high = kept.before.sizes[[0, -1]]
        said.append(f"extrapolated: {kept.corpus}'s loss before, {kept.before.at(size):.4f}, "
                    f"by a power of N from N = {low:.3g} to {high:.3g}")  # fmt: skip
    if len(found.choices.sizes) > 1 and size in (found.size.low, found.size.high):
        said.append("N has no interval beyond its grid; with --size one size is asked for")
    return said


def page(found: Planned) -> str:
    """The plan as one HTML page that needs no network."""
    several = len(found.kept) > 1
    drawn = [
        Chart("What could be chosen" + f": {kept.corpus}" * several, _front(found, kept))
        for kept in found.kept
    ]
    for name, law, _ in found.laws():
        for size in np.unique(law.fit.points["N"]):
            drawn.append(Chart(f"Loss of {name}, N = {size:,.0f}", _law(name, law, float(size))))
    cells = [[escape(cell) for cell in row] for row in rows(found)]
    notes = [blocks.note(text) for text in warnings(found)]
    card = f'<article style="--colour: {COLOURS[0]}"><p>{escape(sentence(found))}</p></article>'
    asked = f"Budget {found.choices.flops:.3g} FLOPs (6 N D); N counts parameters that multiply"
    body = [
        "<header><h1>What to train, and how much to replay</h1></header>",
        blocks.section("verdict", "Recommended", f"<div class=verdict>{card}</div>", *notes),
        blocks.section(
            "plan", "With intervals", blocks.tabular(asked, ["", "best", "95% interval"], cells)
        ),
        _held_out(found),
        blocks.charts(drawn, "Laws and choices", ABOUT),
    ]
    kept = ", ".join(kept.corpus for kept in found.kept)
    return shell(f"{found.learn} without losing {kept}", body, drawn)


def _held_out(found: Planned) -> str:
    """How far laws were from points that they were not fitted to."""
    every = [(corpus, each) for corpus, judged in found.held.items() for each in judged]
    names = list(dict.fromkeys(name for _, each in every for name in each.held))
    if not names:
        return blocks.section("held", "Not judged", blocks.note(
            "Nothing could be held out: more sizes, tokens or shares are needed to judge a law."
        ))  # fmt: skip
    cells = [
        [escape(corpus), each.fit.form.name,
         *(f"{each.held[n]:.2%}" if n in each.held else "-" for n in names)]
        for corpus, each in every
    ]  # fmt: skip
    caption = "Root mean square of the error on points that the law was not fitted to"
    head = ["loss of", "law", *names]
    return blocks.section("held", "Held out", blocks.tabular(caption, head, cells))


def _front(found: Planned, keep: Kept) -> Spec:
    """New loss over old loss of every choice that no other beats in both."""
    size, replay, tokens = found.choices.table()
    kept = keep.law.fit.predict({"N": size, "D": tokens, "share": replay})
    learned = found.new.fit.predict({"N": size, "D": tokens, "share": 1 - replay})
    order = np.lexsort((learned, kept))
    best = np.minimum.accumulate(learned[order])
    first = np.concatenate([[True], best[1:] < best[:-1]])
    limit = float(keep.limit(found.size.value))
    reach = limit + 2 * max(limit - kept.min(), 0.01 * limit)  # beyond it nothing is chosen
    values = [
        {"x": float(kept[i]), "y": float(learned[i]), "N": f"{size[i]:.3g}",
         "replay": f"{replay[i]:.2%}"} for i in order[first] if kept[i] <= reach
    ]  # fmt: skip
    chosen = {name: float(law.fit.predict(place)[0]) for name, law, place in found.laws()}
    point = {"x": chosen[keep.corpus], "y": chosen[found.learn], "N": f"{found.size.value:.3g}",
             "replay": f"{found.replay.value:.2%}"}  # fmt: skip
    x, y = _axis("x", f"loss of {keep.corpus}, nats/token"), _axis("y", f"loss of {found.learn}")
    told = [{"field": name} for name in ("N", "replay", "x", "y")]
    both = {"x": x, "y": y, "tooltip": told}
    dashed = {"type": "rule", "strokeDash": [5, 4], "color": "currentColor", "opacity": 0.6}
    line = {"type": "line", "color": COLOURS[0], "point": {"size": 16}}
    diamond = {"type": "point", "shape": "diamond", "size": 120, "color": COLOURS[1]}
    return frame(
        [
            _layer(dashed, [{"x": limit}], {"x": x}),
            _layer(line, values, both),
            _layer(diamond | {"filled": True}, [point], both),
        ],
        height=230,
    )


def _law(name: str, law: Resampled, size: float) -> Spec:
    """Loss over the corpus's share at one size: points, and the law at their numbers of tokens."""
    points = law.fit.points
    own = points["N"] == size
    shares = np.linspace(points["share"].min(), points["share"].max(), 41)
    lines: list[Spec] = []
    measured: list[Spec] = []
    for tokens in levels(points["D"][own]):
        at = {"N": np.full(41, size), "D": np.full(41, tokens), "share": shares}
        low, high = law.interval(at)
        each = zip(shares, law.fit.predict(at), low, high, strict=True)
        lines += [{"tokens": _count(tokens), "x": float(s), "y": float(loss), "low": float(a),
                   "high": float(b)} for s, loss, a, b in each]  # fmt: skip
        here = own & of_level(points["D"], tokens)
        dotted = zip(points["share"][here], points["loss"][here], strict=True)
        measured += [{"tokens": _count(tokens), "x": float(s), "y": float(y)} for s, y in dotted]
    legend = {"orient": "top", "symbolOpacity": 1, "symbolStrokeWidth": 0, "title": None,
              "labelColor": "currentColor"}  # fmt: skip
    colour = {"field": "tokens", "type": "nominal", "scale": {"range": list(COLOURS)},
              "sort": None, "legend": legend}  # fmt: skip
    x, y = _axis("x", f"share of {name}", ".0%"), _axis("y", "nats/token")
    both = {"x": x, "y": y, "color": colour}
    band = both | {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    dots = {"type": "point", "filled": True, "size": 22, "tooltip": True}
    return frame(
        [
            _layer({"type": "area", "opacity": 0.18}, lines, band),
            _layer({"type": "line", "strokeWidth": 1.6}, lines, both),
            _layer(dots, measured, both),
        ],
        height=230,
    )


def _count(tokens: float) -> str:
    """Of tokens: 3.93M, 153M."""
    value, power = float(f"{tokens:.3g}"), 0  # rounded first: 999,999 is 1M, not 1000K
    while value >= 1000 and power < 5:
        value, power = value / 1000, power + 1
    return f"{value:g}{' KMGTP'[power].strip()}"


def _axis(field: str, title: str, form: str = "~r") -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": False},
            "axis": {"format": form, "tickCount": 5}}  # fmt: skip


def _layer(mark: Spec, values: list[Spec], encoding: Spec) -> Spec:
    return {"mark": mark, "data": {"values": values}, "encoding": encoding}
