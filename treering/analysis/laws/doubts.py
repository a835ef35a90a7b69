"""What speaks against taking pilots, and laws of them, at their word, each in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from treering.analysis.laws.bootstrap import Resampled
from treering.analysis.laws.form import Array
from treering.analysis.laws.holdout import Judged
from treering.analysis.laws.pilots import Run
from treering.analysis.matrix import header_of

SURE = 0.99  # of a slope's sign, by Student's t over runs


def of_runs(runs: Sequence[tuple[int, Run]]) -> list[str]:
    """Where the replay share is not that of old text, as the runs' recipes tell."""
    everything, mixed = False, dict[str, None]()
    for _, run in runs:
        recipe = header_of(run)["recipe"]
        replay, phases = recipe.get("replay", {}), recipe["phases"]
        over = replay.get("memory", {}).get("over", "all")
        everything |= over == "all" and replay.get("share", 0.0) > 0
        earlier = {*replay.get("past", ()), *(c for p in phases[:-1] for c in p["mixture"])}
        mixed |= {corpus: None for corpus in phases[-1]["mixture"] if corpus in earlier}
    said = []
    if everything:
        said.append("replay drew from everything, the new corpus too (replay.memory.over = 'all'): "
                    "its share is not that of old text; with 'past' it is")  # fmt: skip
    if mixed:
        said.append(f"{', '.join(mixed)}: in the last phase's mixture, although learned before: "
                    "the replay share is not all of the old text")  # fmt: skip
    return said


def of_points(table: Mapping[str, Array], points: Mapping[str, Array]) -> list[str]:
    """Where the runs of a table's points had to be guessed."""
    if "run" in table:
        return []
    return [f"no column run: points of one N, replay and seed are taken for one run's, "
            f"{len(np.unique(points['run']))} runs"]  # fmt: skip


def of_losses(points: Mapping[str, Array], corpus: str, *, new: bool) -> list[str]:
    """Where a corpus's loss rises with what every law has it fall with: its share, N, and of a new
    corpus D. An old one's may well rise with D. And where the largest pilots gain nothing."""
    steep, other, said = slopes(points), "replayed" if new else "new", []
    if steep.get("share", 0.0) > 0:
        said.append(f"{corpus}: its loss rises with its share of training, at equal N and D; is it "
                    f"the {other} corpus, or the column replay wrong?")  # fmt: skip
    for name, others in (("N", "D and share"), ("D", "N and share"))[: 1 + new]:
        if steep.get(name, 0.0) > 0:
            said.append(f"{corpus}: its loss rises with {name}, at equal {others}, and no law here "
                        "does; did pilots diverge, or repeat their text too often?")  # fmt: skip
    return said + _of_the_largest(points, corpus)


def _of_the_largest(points: Mapping[str, Array], corpus: str) -> list[str]:
    """Whether the largest size is better than the next, at equal D, share and seed: Student's t
    over its runs, one-sided, 95%. Laws have a loss fall with N for ever."""
    sizes = np.unique(points["N"])
    names = [name for name in ("D", "share", "seed") if name in points]
    keys = [tuple(row) for row in np.stack([points[name] for name in names], 1).tolist()]
    loss = {(n, key): x for n, key, x in zip(points["N"], keys, points["loss"], strict=True)}
    gains: dict[float, list[float]] = {}
    for n, key, run in zip(points["N"], keys, points["run"], strict=True):
        if n == sizes[-1] and len(sizes) > 1 and (sizes[-2], key) in loss:
            gains.setdefault(run, []).append(np.log(loss[n, key] / loss[sizes[-2], key]))
    mean = np.array([np.mean(each) for each in gains.values()])
    if len(mean) < 3:
        return []
    error = mean.std(ddof=1) / np.sqrt(len(mean))
    if mean.mean() + stdtrit(len(mean) - 1, 0.95) * error < 0:
        return []
    return [f"{corpus}: N = {sizes[-1]:.3g} is not shown to be better than {sizes[-2]:.3g} "
            f"({mean.mean():+.1%}): does the rate suit each size? Beyond them the loss may rise, "
            "and no law here does"]  # fmt: skip


def of_law(
    name: str, law: Resampled, place: Mapping[str, ArrayLike], tried: Sequence[Judged]
) -> Iterator[str]:
    """How far a place is from what the law of a corpus was fitted to, what of the law is not
    identified, and a better law."""
    for column, far in law.fit.beyond(place).items():
        how = f"{far:.1f} times" if column in ("N", "D") else f"by {far:.3f}"
        yield f"extrapolated: {column} is {how} beyond the pilots of {name}"
    if law.fit.at_bounds:
        yield f"{name}: at their bounds, so not identified: {', '.join(law.fit.at_bounds)}"
    best = tried[0].fit.form if tried else law.fit.form
    if best is not law.fit.form:
        yield f"{name}: {best.name} is nearer to what was held out than {law.fit.form.name}"


def slopes(points: Mapping[str, Array]) -> dict[str, float]:
    """Which of log N, log D and the share move log loss at equal others, each with its slope: those
    that differ from 0 by more than runs differ from one another (least squares, errors by run)."""
    given = {"N": np.log(points["N"]), "D": np.log(points["D"]), "share": points["share"]}
    varied = {name: x - x.mean() for name, x in given.items() if np.ptp(x) > 0}
    if not varied:
        return {}
    x = np.stack([column / column.std() for column in varied.values()], 1)
    y = np.log(points["loss"]) - np.log(points["loss"]).mean()
    runs, of = np.unique(points["run"], return_inverse=True)
    freedom = len(runs) - x.shape[1] - 1
    if freedom < 1 or np.linalg.cond(x) > 100:
        return {}
    inverse = np.linalg.inv(x.T @ x)
    slope = inverse @ (x.T @ y)
    pull = np.zeros((len(runs), x.shape[1]))
    np.add.at(pull, of.ravel(), x * (y - x @ slope)[:, None])
    error = np.sqrt(np.diag(inverse @ (pull.T @ pull) @ inverse) * len(runs) / freedom)
    sure = np.abs(slope) > stdtrit(freedom, SURE) * error + 1e-9
    return {name: float(b) for name, b, is_so in zip(varied, slope, sure, strict=True) if is_so}
