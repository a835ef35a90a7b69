"""The sections of the report, each a piece of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import tomli_w

from treering.analysis.compare import Arm
from treering.records import Record
from treering.report import comparison as text_of
from treering.report.card import without_folders
from treering.report.charts import COLOURS, Chart
from treering.report.comparison import Comparison
from treering.report.series import View
from treering.report.words import against, sentences

MATRIX_NOTE = (
    "Held-out loss in nats/token after each phase; row 0 is the model before training. Small: "
    "against the best until then. Framed: learned here. The redder, the farther from its best."
)
CHARTS_NOTE = (
    "Over trained tokens. Vertical lines: phases end. Dashed: the model before training. Where an "
    "arm has several seeds the line is their mean and the band their range."
)


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
        f"{v.end}</span></li>"
        for i, v in enumerate(views)
    )
    return f"<header><h1>What was learned, what was lost</h1><ul class=legend>{items}</ul></header>"


def _arm(i: int, view: View) -> str:
    colour = COLOURS[i % len(COLOURS)]
    swatch = f'<span class=swatch style="--colour: {colour}"></span>'
    return f"<span class=arm>{swatch}<b>{escape(view.name)}</b></span>"


def verdict(arms: Sequence[Arm], views: Sequence[View], table: Comparison | None) -> str:
    cards = []
    for i, (arm, shown) in enumerate(zip(arms, views, strict=True)):
        said = "".join(f"<p>{escape(text)}</p>" for text in sentences(shown, last_step(arm)))
        colour = COLOURS[i % len(COLOURS)]
        cards.append(
            f'<article style="--colour: {colour}"><h3>{_arm(i, shown)}</h3>{said}</article>'
        )
    items = ""
    if table is not None:
        before = table["end"]["arms"][table["baseline"]]["forgetting"]["mean"]
        each = table["end"]["differences"].items()
        said_ = [against(n, table["baseline"], f["forgetting"], before) for n, f in each]
        items = "".join(f"<li>{escape(text)}</li>" for text in said_ if text)
    more = f"<ul class=against>{items}</ul>" if items else ""
    return section("verdict", "Verdict", f"<div class=verdict>{''.join(cards)}</div>", more)


def matrices(views: Sequence[View]) -> str:
    parts = []
    for i, shown in enumerate(views):
        learned = shown.matrices[0].learned
        rows = []
        for r, row in enumerate(shown.rows):
            tokens = "-" if row.tokens is None else f"{row.tokens:,}"
            cells = [
                _cell(shown, r, c, learned=r > 0 and learned.get(corpus) == r)
                for c, corpus in enumerate(shown.corpora)
            ]
            rows.append([escape(row.label), f"{row.step:,}", tokens, *cells])
        parts.append(tabular(_arm(i, shown), ["after", "step", "tokens", *shown.corpora], rows))
    grid = f"<div class=matrices>{''.join(parts)}</div>"
    return section("matrix", "Corpus by time", note(MATRIX_NOTE), grid)


def _cell(shown: View, row: int, column: int, *, learned: bool) -> str:
    value = shown.values[row, column]
    if not np.isfinite(value):
        return "<td>-</td>"
    known = shown.values[:, column][np.isfinite(shown.values[:, column])]
    spread = float(np.ptp(known))
    heat = (value - known.min()) / spread if spread else 0.0
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
        last, header = last_step(arm), shown.header
        tokens, fresh = last.get("tokens"), last.get("fresh_tokens")
        share = "-" if not tokens or fresh is None else f"{1 - fresh / tokens:.2%}"
        machine = header.get("hardware", {})
        device = f"{machine.get('device', '-')}, {machine.get('threads', '-')} threads"
        row = [_number(header.get("parameters")), _number(tokens), _number(fresh), share]
        row += [_number(last.get("flops"), ".3g"), _number(last.get("seconds"), ",.0f")]
        rows.append([_arm(i, shown), *row, escape(device)])
    caption = "Of the first seed: what was trained, what it cost, on what machine"
    return section("ledger", "Ledger", tabular(caption, head, rows))


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


def last_step(arm: Arm) -> Record:
    run = next(iter(arm.runs.values()))
    return next((r for r in reversed(run) if r.get("kind") == "step"), {})
