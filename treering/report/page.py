"""The report: one HTML page with everything in it, from the arms' records.

The verdict in words, the corpus x time matrices, the comparison, the charts, the ledger, the
recipes. It needs no network, follows the reader's light or dark, and prints.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from treering.analysis.compare import check_baseline, compare, is_finished
from treering.analysis.runs import Arm
from treering.report import blocks
from treering.report.charts import LEAST, Chart, charts
from treering.report.comparison import Comparison
from treering.report.series import POINTS, View, view

MOST = 2_900_000  # bytes of a page


def page(arms: Sequence[Arm], table: Comparison | None, *, refresh: int | None = None) -> str:
    """The page of some arms with their comparison, where there is one; `refresh`: seconds after
    which a browser loads it again. Figures that are missing are shown as "-"."""
    views = [view(arm) for arm in arms]
    above = [
        blocks.header(views),
        blocks.verdict(arms, views, table),
        blocks.matrices(views),
        blocks.tasks(arms, views),
        blocks.comparison(table),
    ]
    below = [blocks.ledger(arms, views), blocks.recipes(views)]
    title = ", ".join(v.name for v in views)
    rest = shell(title, [*above, *below], [], refresh=refresh)
    drawn = _fitting(views, MOST - _size(rest))
    return shell(title, [*above, blocks.charts(drawn), *below], drawn, refresh=refresh)


def _fitting(views: Sequence[View], room: int) -> list[Chart]:
    """The charts in so many bytes: with the fewer points a line the more arms there are."""
    points = POINTS
    while True:
        drawn = charts(views, points)
        size = _size(_json([chart.spec for chart in drawn]) + blocks.charts(drawn))
        if size <= room or points == LEAST:
            return drawn
        points = max(LEAST, min(points - 1, points * max(0, room) // size))


def shell(
    title: str, body: Sequence[str], drawn: Sequence[Chart], *, refresh: int | None = None
) -> str:
    """A page of sections, with the charts that they have places for."""
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">{again}
<link rel="icon" href="data:,">
<title>{escape(title)} - Treering</title>
<style>
{_asset("page.css")}</style>
</head>
<body>
{"".join(body)}
<script type="application/json" id="specs">{_json([chart.spec for chart in drawn])}</script>
<script>{_library()}</script>
<script>
{_asset("page.js")}</script>
</body>
</html>
"""


def compared(arms: Sequence[Arm], baseline: str | None = None) -> Comparison | None:
    """The comparison of the arms that are finished, or None where there are not two of them.
    Raises Invalid for an unknown baseline."""
    ready = [arm for arm in arms if any(map(is_finished, arm.runs.values()))]
    if len(ready) < 2:
        check_baseline(baseline, [arm.name for arm in arms])
        return None
    return compare(ready, baseline=baseline)


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))


def _json(value: Any) -> str:
    """JSON inside a script element, where "</script>" would end it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _asset(name: str) -> str:
    return resources.files("treering.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script (vl-convert carries them along)."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script
