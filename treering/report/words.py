"""The verdict in plain words: what was learned, what was lost, what it cost, against what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from treering.analysis.forgetting import forgetting, learned
from treering.records import Record
from treering.report.series import View

MANY = 6  # corpora named one by one; of more the extremes


def sentences(view: View, last: Record) -> list[str]:
    """What happened in an arm; `last` is the last step record of its first run."""
    if len(view.rows) == 1:
        return [f"Not one phase is finished yet ({view.end or 'nothing trained'})."]
    said = [_learned(view), _lost(view), _cost(view, last)]
    if view.end != "finished":
        said.append(f"The run has not reached its end ({view.end}).")
    return [sentence for sentence in said if sentence]


def against(name: str, baseline: str, found: Mapping[str, Any], before: float | None) -> str:
    """An arm's forgetting against the baseline's: `found` is the paired difference of
    `analysis.compare`, `before` the baseline's own forgetting."""
    difference = found["mean"]
    if difference is None:
        return ""
    less = "lower" if difference < 0 else "higher"
    rate = abs(difference) / before if before is not None and before > 0 else float("inf")
    share = f" ({rate:.0%})" if rate < 10 else ""  # of next to nothing it says nothing
    sure = {
        "one seed": "one seed, from which nothing can be concluded",
        "not shown": f"not shown with {found['n']} seeds",
    }.get(found["verdict"], f"shown with {found['n']} seeds")
    text = f"{name}: against {baseline} forgetting is {abs(difference):.3f} nats/token {less}"
    return f"{text}{share}; {sure}."


def _learned(view: View) -> str:
    """Corpora with their loss when they were learned, and before."""
    metric = learned(view.matrices[0])
    trained = [c for c in metric.per_corpus if view.matrices[0].learned[c] > 0]
    parts = []
    for corpus in trained[:MANY]:
        column = view.corpora.index(corpus)
        value = view.values[view.matrices[0].learned[corpus], column]
        parts.append(
            f"{corpus} was learned to {_nats(value)} (from {_nats(view.values[0, column])})"
        )
    more = f" and {len(trained) - MANY} more corpora were learned" if len(trained) > MANY else ""
    return f"{_list(parts)}{more}, in nats/token held out." if parts else ""


def _lost(view: View) -> str:
    """Corpora learned before the last phase, worst first."""
    each: dict[str, list[float]] = {}
    for found in view.matrices:
        for corpus, value in forgetting(found).per_corpus.items():
            each.setdefault(corpus, []).append(value)
    means = {corpus: float(np.mean(values)) for corpus, values in each.items()}
    known = {corpus: value for corpus, value in means.items() if np.isfinite(value)}
    if not known:
        return "No corpus was learned before the last phase, so none could be forgotten."
    parts = []
    for corpus, value in sorted(known.items(), key=lambda item: -item[1])[:MANY]:
        now = view.values[-1, view.corpora.index(corpus)]
        rate = abs(value) / (now - value) if now > value else float("nan")
        verb = "lost" if value > 0 else "gained"
        share = f" ({rate:.1%})" if np.isfinite(rate) else ""
        parts.append(f"{corpus} {verb} {abs(value):.3f} nats/token{share}")
    return f"Since they were at their best: {_list(parts)}."


def _cost(view: View, last: Record) -> str:
    tokens, fresh = last.get("tokens"), last.get("fresh_tokens")
    if not tokens or fresh is None:
        return ""
    if fresh == tokens:
        return f"{tokens:,} tokens were trained, none of them replayed."
    achieved = 1 - fresh / tokens
    return (
        f"{achieved:.2%} of {tokens:,} trained tokens were replayed (asked {view.asked:.2%}): "
        f"{tokens / fresh - 1:.0%} more tokens for each fresh one than without."
    )


def _nats(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "no number"


def _list(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + "".join(parts[-1:])
