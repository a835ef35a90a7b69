"""A comparison of arms as text: tables on screen and as Markdown, from `analysis.compare`.

arm          seeds   tokens    FLOPs       retained        learned     forgetting
sequential       3   3.69 M   4.1e13  7.81 +- 0.05   5.22 +- 0.03   3.88 +- 0.11
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from treering.report.table import escaped

Comparison = Mapping[str, Any]
METRICS = ("retained", "learned", "forgetting")
BY_CORPUS = ("learned", "retained", "forgetting")
CORPUS = ["arm", "corpus", "after its phase", "at the end", "forgetting"]
VIEWS = {
    "end": "at the end of each run",
    "equal_tokens": "at equal tokens",
    "equal_flops": "at equal FLOPs",
}
NONE = "-"
UNITS = {"loss": "held-out loss in nats/token", "bits_per_byte": "held-out bits/byte"}
LEGEND = (
    "means over seeds with half of Student's 95% interval; {}; lower is better; "
    "forgetting > 0 forgot"
)
SHOWN = (
    "a difference is shown where Student's 95% interval of the paired differences leaves out 0; "
    "the bootstrap over few seeds is too narrow"
)

Rows = list[list[str]]


def show(table: Comparison, console: Console) -> None:
    """Print the arms, and their differences to the baseline."""
    for title, head, rows in tables(table):
        drawn = Table(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left")
        for i, name in enumerate(head):
            drawn.add_column(Text(name), justify="left" if i == 0 else "right", no_wrap=True)
        for row in rows:
            drawn.add_row(*(Text(cell) for cell in row))
        drawn.width = console.measure(drawn, options=console.options.update(max_width=9999)).maximum
        console.print(drawn, crop=False)
    for note in notes(table):
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def markdown(table: Comparison) -> str:
    """The same as Markdown."""
    parts = []
    for title, head, rows in tables(table):
        lines = [f"**{escaped(title)}**", "", _line(head), "|---|" + "---:|" * (len(head) - 1)]
        parts.append("\n".join([*lines, *map(_line, rows), ""]))
    return "\n".join([*parts, *(f"{escaped(note)}\n" for note in notes(table))])


def tables(table: Comparison) -> list[tuple[str, list[str], Rows]]:
    """Title, head and rows of each table: the arms and their corpora, then those views whose costs
    differ. Differences stand beneath, a table for each baseline."""
    end, judged = VIEWS["end"], table["end"]
    found = [(f"arms {end}", *_arms(table))]
    found += _differences(judged, end)
    found.append((f"each corpus {end}", CORPUS, _corpora(table, judged["arms"], _mean)))
    for baseline, arms in _by_baseline(judged).items():
        rows = _corpora(table, arms, _change)
        found += [(f"each corpus against {baseline} {end}", CORPUS, rows)] if rows else []
    for view, when in VIEWS.items():
        if view != "end" and _differ(table, view):
            found.append((_title(table, view), *_cut(table, view)))
            found += _differences(table[view], when)
    return found


def _title(table: Comparison, view: str) -> str:
    return f"{VIEWS[view]}, {_amount(table[view]['at'])}, interpolated"


def _arms(table: Comparison) -> tuple[list[str], Rows]:
    probed = any(costs["cosine"] is not None for costs in table["arms"].values())
    head = ["arm", "seeds", "tokens", "FLOPs", *METRICS]
    head += [f"{corpus} now" for corpus in table["corpora"]] + ["cosine"] * probed
    rows = []
    for name, costs in table["arms"].items():
        judged = table["end"]["arms"][name]
        row = [name, _seeds(costs, judged), _amount(costs["tokens"]), _amount(costs["flops"])]
        row += [_mean(judged[metric]) for metric in METRICS]
        each = judged["retained"]["per_corpus"]
        row += [_mean(each[corpus]) if corpus in each else NONE for corpus in table["corpora"]]
        rows.append(row + [_number(costs["cosine"], "+.3f")] * probed)
    return head, rows


def _seeds(costs: Mapping[str, Any], judged: Mapping[str, Any]) -> str:
    """How many seeds there are, and of how many the means are where that is fewer."""
    n, seeds = judged["retained"]["n"], len(costs["seeds"])
    return str(seeds) if n == seeds else f"{n} of {seeds}"


def _cut(table: Comparison, view: str) -> tuple[list[str], Rows]:
    judged = table[view]["arms"]
    rows = [[name, *(_mean(each[metric]) for metric in METRICS)] for name, each in judged.items()]
    return ["arm", *METRICS], rows


def _corpora(
    table: Comparison, arms: Mapping[str, Any], cell: Callable[[Mapping[str, Any]], str]
) -> Rows:
    """A row for each corpus of each arm by which it is judged: of each metric its part."""
    rows = []
    for arm, metrics in arms.items():
        for corpus in table["corpora"]:
            each = [metrics[metric]["per_corpus"].get(corpus) for metric in BY_CORPUS]
            if any(each):
                rows.append([arm, corpus, *(cell(found) if found else NONE for found in each)])
    return rows


def _by_baseline(judged: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The differences of a view, arm by arm, under the baseline to which they are taken."""
    found: dict[str, dict[str, Any]] = {}
    for arm, metrics in judged["differences"].items():
        baseline = next(iter(metrics.values()))["baseline"]
        found.setdefault(baseline, {})[arm] = metrics
    return found


def _differences(judged: Mapping[str, Any], when: str) -> list[tuple[str, list[str], Rows]]:
    head = ["arm", "metric", "difference", "95% (t)", "95% (bootstrap)", "lower", "verdict"]
    tables = []
    for baseline, arms in _by_baseline(judged).items():
        rows = []
        for arm, metrics in arms.items():
            for metric, found in metrics.items():
                row = [arm, metric, _number(found["mean"], "+.3f")]
                row += [_interval(found["t"]), _interval(found["bootstrap"])]
                rows.append([*row, f"{found['lower']} of {found['n']}", found["verdict"]])
        tables.append((f"differences to {baseline} {when}", head, rows))
    return tables


def _differ(table: Comparison, view: str) -> bool:
    """Whether the arms that are there at equal cost spent more than a trifle apart."""
    clock = view.removeprefix("equal_")
    spent = [table["arms"][name][clock] for name in table[view]["arms"]]
    known = [cost for cost in spent if cost is not None]
    return bool(known) and max(known) > 1.001 * min(known)


def notes(table: Comparison) -> list[str]:
    """What a reader must know to read the tables."""
    return [LEGEND.format(UNITS[table["metric"]]), SHOWN, *table["notes"]]


def _mean(found: Mapping[str, Any], form: str = ".3f") -> str:
    if found["mean"] is None:
        return NONE
    text = _number(found["mean"], form)
    return text if found["t"] is None else f"{text} ± {(found['t'][1] - found['t'][0]) / 2:.3f}"


def _change(found: Mapping[str, Any]) -> str:
    """A difference, with its verdict where there is one."""
    shown = f", {found['verdict']}" if found["verdict"] in ("lower", "higher") else ""
    return _mean(found, "+.3f") + shown


def _interval(pair: Sequence[float] | None) -> str:
    return NONE if pair is None else f"{pair[0]:+.3f} to {pair[1]:+.3f}"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _amount(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:,.0f}" if value < 1e9 else f"{value:.2e}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"
