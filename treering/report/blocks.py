"""The sections of the report, each a piece of HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
import tomli_w

from treering.analysis.curves import spent
from treering.analysis.runs import Arm
from treering.records import ANNEALED, LEDGER, Record
from treering.report import comparison as text_of
from treering.report.card import without_folders
from treering.report.charts import Chart, colour, dash
from treering.report.comparison import Comparison
from treering.report.series import View
from treering.report.words import against, sentences

MATRIX_NOTE = (
    "Held-out loss in nats/token after each phase; row 0 is the model before training. Small: "
    "against the best until then. Framed: learned here. The redder, the farther from its best, on "
    "one scale for all runs."
)
FAINT = 0.05  # nats/token over which the matrices' colours are spread at least
CHARTS_NOTE = (
    "Over trained tokens. Vertical lines: phases end. Dotted: the model before training. Where an "
    "arm has several seeds the line is their mean and the band their range."
)
COSTS = "Of the first seed: what was trained, what learning cost, on what machine"
PURPOSES_NOTE = (
    "FLOPs of the first seed by purpose, as its newest checkpoint or its end has them; -: not "
    "recorded."
)
PURPOSES = ("training", "meta-updates", "evaluation", "probes", "annealed branches")


def section(name: str, title: str, *parts: str) -> str:
    return f"<section id={name}><h2>{title}</h2>{''.join(parts)}</section>\n"


def note(text: str) -> str:
    return f"<p class=note>{escape(text)}</p>"


def tabular(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(_td(cell) for cell in row)}</tr>" for row in rows)
    return (
        f"<div class='panel scroll'><table><caption>{caption}</caption>"
        f"<thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _td(cell: str) -> str:
    return cell if cell.startswith("<td") else f"<td>{cell}</td>"


def header(views: Sequence[View]) -> str:
    items = "".join(
        f"<li>{_arm(i, v)}<span class=faint>{len(v.seeds)} seed{'s' * (len(v.seeds) > 1)}, "
        f"{escape(str(v.end))}</span></li>"
        for i, v in enumerate(views)
    )
    return f"<header><h1>What was learned, what was lost</h1><ul class=legend>{items}</ul></header>"


def _arm(i: int, view: View) -> str:
    strokes = f' stroke-dasharray="{" ".join(map(str, dash(i)))}"' if dash(i) else ""
    line = f'<line x1="0" y1="5" x2="26" y2="5" stroke="{colour(i)}" stroke-width="3"{strokes}/>'
    swatch = f'<svg class=swatch viewBox="0 0 26 10">{line}</svg>'
    return f"<span class=arm>{swatch}<b>{escape(view.name)}</b></span>"


def verdict(arms: Sequence[Arm], views: Sequence[View], table: Comparison | None) -> str:
    cards = []
    for i, (arm, shown) in enumerate(zip(arms, views, strict=True)):
        said = "".join(f"<p>{escape(text)}</p>" for text in sentences(shown, _costs(arm)))
        cards.append(
            f'<article style="--colour: {colour(i)}"><h3>{_arm(i, shown)}</h3>{said}</article>'
        )
    items = ""
    if table is not None:
        items = "".join(f"<li>{escape(text)}</li>" for text in _against(table) if text)
    more = f"<ul class=against>{items}</ul>" if items else ""
    return section("verdict", "Verdict", f"<div class=verdict>{''.join(cards)}</div>", more)


def _against(table: Comparison) -> Iterator[str]:
    """Each arm's forgetting against its own baseline's."""
    for arm, metrics in table["end"]["differences"].items():
        found = metrics["forgetting"]
        before = table["end"]["arms"][found["baseline"]]["forgetting"]["mean"]
        yield against(arm, found["baseline"], found, before)


def matrices(views: Sequence[View]) -> str:
    parts, widest = [], max([FAINT, *map(_widest, views)])
    for i, shown in enumerate(views):
        learned = shown.matrices[0].learned
        rows = []
        for r, row in enumerate(shown.rows):
            tokens = "-" if row.tokens is None else f"{row.tokens:,}"
            cells = [
                _cell(shown, r, c, widest, learned=r > 0 and learned.get(corpus) == r)
                for c, corpus in enumerate(shown.corpora)
            ]
            rows.append([escape(row.label), f"{row.step:,}", tokens, *cells])
        parts.append(tabular(_arm(i, shown), ["after", "step", "tokens", *shown.corpora], rows))
    grid = f"<div class=matrices>{''.join(parts)}</div>"
    return section("matrix", "Corpus by time", note(MATRIX_NOTE), grid)


def _widest(shown: View) -> float:
    """How far losses of a corpus lie apart, at most."""
    known = (column[np.isfinite(column)] for column in shown.values.T)
    return max((float(np.ptp(column)) for column in known if len(column)), default=0.0)


def _cell(shown: View, row: int, column: int, widest: float, *, learned: bool) -> str:
    value = shown.values[row, column]
    if not np.isfinite(value):
        return "<td>-</td>"
    known = shown.values[:, column][np.isfinite(shown.values[:, column])]
    heat = (value - known.min()) / widest
    before = shown.values[:row, column]
    before = before[np.isfinite(before)]
    change = f"<small>{value - before.min():+.3f}</small>" if len(before) else ""
    mark = "heat learned" if learned else "heat"
    data = f'style="--heat: {heat:.3f}" data-value="{float(value)!r}"'
    return f'<td class="{mark}" {data}>{value:.3f}{change}</td>'


def tasks(arms: Sequence[Arm], views: Sequence[View]) -> str:
    """Downstream scores, a line for each record; nothing where no task was asked for."""
    rows = []
    for i, (arm, shown) in enumerate(zip(arms, views, strict=True)):
        records = ((seed, r) for seed, run in arm.runs.items() for r in run if arm.branch is None)
        for seed, r in records:
            if r.get("kind") != "task":
                continue
            value = "-" if r.get("value") is None else f"{r['value']:.4f}"
            spread = "" if r.get("stderr") is None else f" ± {r['stderr']:.4f}"
            cells = (seed, r["phase"], r["step"], r["task"], r["metric"], value + spread)
            rows.append([_arm(i, shown), *(escape(str(cell)) for cell in cells)])
    head = ("arm", "seed", "after", "step", "task", "metric", "score")
    return section("tasks", "Tasks", tabular("", head, rows)) if rows else ""


def comparison(found: Comparison | None) -> str:
    if found is None:
        return ""
    parts = [
        tabular(escape(title), head, [[escape(cell) for cell in row] for row in rows])
        for title, head, rows in text_of.tables(found)
    ]
    return section("comparison", "Comparison", *parts, *map(note, text_of.notes(found)))


def charts(drawn: Sequence[Chart], title: str = "Along the way", about: str = CHARTS_NOTE) -> str:
    figures = "".join(
        f'<figure><h3>{escape(chart.title)}</h3><div class=chart data-chart="{i}"></div></figure>'
        for i, chart in enumerate(drawn)
    )
    grid = f"<div class=charts>{figures}</div>"
    return section("charts", title, note(about), grid)


def ledger(arms: Sequence[Arm], views: Sequence[View]) -> str:
    head = ["arm", "parameters", "tokens", "fresh", "replayed", "FLOPs", "seconds", "device"]
    rows = []
    for i, (arm, shown) in enumerate(zip(arms, views, strict=True)):
        last, header = _costs(arm), shown.header
        tokens, fresh = last.get("tokens"), last.get("fresh_tokens")
        share = "-" if not tokens or fresh is None else f"{1 - fresh / tokens:.2%}"
        machine = header.get("hardware", {})
        device = f"{machine.get('device', '-')}, {machine.get('threads', '-')} threads"
        row = [_number(header.get("parameters")), _number(tokens), _number(fresh), share]
        row += [_number(last.get("flops"), ".3g"), _number(last.get("seconds"), ",.0f")]
        rows.append([_arm(i, shown), *row, escape(device)])
    return section("ledger", "Ledger", tabular(COSTS, head, rows), _purposes(arms))


def _purposes(arms: Sequence[Arm]) -> str:
    """What runs spent on what; nothing where none of them says so."""
    runs = {arm.name: _first(arm) for arm in arms if arm.branch is None}
    columns = [_by_purpose(run) for run in runs.values()]
    if all(column[0] is None for column in columns):
        return ""
    rows = [
        [name, *(_number(value, ".3g") for value in values)]
        for name, values in zip((*PURPOSES, "all"), zip(*columns, strict=True), strict=True)
    ]
    return tabular("", ["purpose", *runs], rows) + note(PURPOSES_NOTE)


def _by_purpose(run: Sequence[Record]) -> list[float | None]:
    """The run's FLOPs of each purpose, and of all; None: not known."""
    kept = (r for r in reversed(run) if r.get("kind") in ("checkpoint", "end"))
    held: Record = next((r["ledger"] for r in kept if r.get("ledger")), {})
    found = [held.get(name) for name in LEDGER]
    return [*found, None if None in found else sum(value or 0.0 for value in found)]


def _number(value: float | None, form: str = ",") -> str:
    return "-" if value is None else format(value, form)


def recipes(views: Sequence[View]) -> str:
    parts = []
    for i, shown in enumerate(views):
        versions = ", ".join(f"{k} {v}" for k, v in shown.header.get("versions", {}).items())
        commit = str(shown.header.get("commit") or "not known")[:12]
        text = tomli_w.dumps(without_folders(shown.header["recipe"]))
        parts.append(
            f"<details><summary>{_arm(i, shown)}</summary><p class=note>{escape(versions)}; commit "
            f"{escape(commit)}</p><pre>{escape(text)}</pre></details>"
        )
    return section("recipe", "Recipes", f"<div class=recipes>{''.join(parts)}</div>")


def _first(arm: Arm) -> Sequence[Record]:
    return next(iter(arm.runs.values()))


def _costs(arm: Arm) -> Record:
    """What the first run has spent; of an annealed branch what it spent itself, but for seconds."""
    found = spent(_first(arm), arm.branch)
    return found | {"seconds": None} if arm.branch == ANNEALED else found
