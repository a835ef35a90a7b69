"""The fitter: every law is recovered from noisy points of its own; intervals cover; what cannot be
fitted is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from synthetic import NOISE, TRUTHS, form_of, noisy, truth

from treering.analysis.laws import KINDS
from treering.analysis.laws.bootstrap import bootstrap, expanded
from treering.analysis.laws.dcpt import L1, L3, L5, falls
from treering.analysis.laws.fitting import Fit, Search, fit
from treering.analysis.laws.form import Array
from treering.analysis.laws.holdout import choose, each, judge, splits
from treering.analysis.laws.points import scale, select
from treering.analysis.laws.power import CHINCHILLA, asymptotic, log_linear
from treering.config import Invalid

WITHIN = 0.005


def fitted(kind: str, seed: int = 0, starts: int = 3) -> tuple[Fit, Array]:
    form, points, law = truth(kind)
    return fit(form, points | {"loss": noisy(form, law, seed)}, search=Search(starts=starts)), law


@pytest.mark.parametrize("kind", TRUTHS)
def test_predictions_are_recovered_from_noise_of_two_thousandths(kind: str) -> None:
    """Within 0.5% in the points' range, between them too; parameters need not be. Forms of losses
    that change sign: within 0.5% of their spread, in noise of as much of it."""
    found, law = fitted(kind, seed=1)
    size = law if found.form.logarithmic else law.std() * np.ones_like(law)
    assert np.abs((found.predict(found.points) - law) / size).max() < WITHIN
    pairs = np.random.default_rng(0).choice(len(law), (2, 40))
    columns = [*found.form.columns]
    between = {c: (found.points[c][pairs[0]] + found.points[c][pairs[1]]) / 2 for c in columns}
    true = found.form.predict(np.array(TRUTHS[kind][1], np.float64), scale(between, found.units))
    size = true if found.form.logarithmic else law.std()
    assert np.abs((found.predict(between) - true) / size).max() < WITHIN


def test_a_fit_is_the_same_whenever_it_is_made() -> None:
    first, again = fitted("dcpt")[0], fitted("dcpt")[0]
    assert (first.parameters == again.parameters).all() and first.cost == again.cost
    resampled = [bootstrap(first, 20, seed=3).parameters for _ in range(2)]
    assert (resampled[0] == resampled[1]).all()
    assert (resampled[0] != bootstrap(first, 20, seed=4).parameters).any()


def test_the_fit_is_a_minimum() -> None:
    """No small step of any parameter lowers the cost, nor do those from other starts."""
    found, _ = fitted("chinchilla")
    problem = found.problem
    u = problem.inward(found.parameters)
    goal = problem.goal(found.points["loss"])
    steps = np.concatenate([u + 1e-3 * np.eye(5), u - 1e-3 * np.eye(5)])
    weights = np.broadcast_to(found.weights, (10, len(goal)))
    assert (problem.system(steps, weights, goal)[0] > found.cost).all()
    more = fit(CHINCHILLA, found.points, search=Search(starts=20, seed=9))
    assert more.cost == pytest.approx(found.cost, rel=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_coefficient_that_fell_to_nothing_is_found_again(seed: int) -> None:
    """Of its logarithm a descent has no slope there: the law that made the points would fit
    better than what was found."""
    form, points, law = truth("dcpt-cross")
    found = fit(form, points | {"loss": noisy(form, law, seed)})
    problem, goal = found.problem, found.problem.goal(found.points["loss"])
    true = problem.inward(np.array(TRUTHS["dcpt-cross"][1]))
    assert found.cost < problem.system(true[None], found.weights[None], goal[None])[0][0]


def test_an_outlier_hardly_moves_a_law() -> None:
    form, points, law = truth("chinchilla")
    loss = noisy(form, law, 0)
    loss[5] *= 1.3
    robust = fit(form, points | {"loss": loss}, search=Search(starts=2))
    squares = fit(form, points | {"loss": loss}, search=Search(starts=2, delta=10.0))
    others = np.arange(len(law)) != 5
    assert np.abs(robust.predict(points) / law - 1)[others].max() < WITHIN
    assert np.abs(squares.predict(points) / law - 1)[others].max() > 4 * WITHIN


def test_a_point_of_weight_two_counts_as_two_points() -> None:
    form, points, law = truth("power")
    table = points | {"loss": noisy(form, law, 0)}
    twice = np.r_[np.arange(14), 3, 3]
    weights = np.ones(14)
    weights[3] = 3
    doubled = fit(form, select(table, twice))
    weighted = fit(form, table, weights=weights)
    units = np.array([doubled.units["x"], weighted.units["x"]])
    assert units[0] != units[1]  # the middle of the points is that of their places
    np.testing.assert_allclose(weighted.predict(points), doubled.predict(points), rtol=1e-5)


def test_points_of_the_warm_up_are_left_out() -> None:
    form, points, law = truth("chinchilla")
    loss = noisy(form, law, 0)
    early = points["D"] < 2e6
    loss[early] *= 2
    found = fit(form, points | {"loss": loss}, warmup=2e6, search=Search(starts=2))
    assert np.abs(found.predict(points) / law - 1)[~early].max() < WITHIN
    assert len(found.points["loss"]) == (~early).sum()


def test_units_do_not_matter() -> None:
    found, _ = fitted("chinchilla")
    billions = {n: c / 1e9 if n in "ND" else c for n, c in found.points.items()}
    again = fit(CHINCHILLA, billions, search=Search(starts=3))
    np.testing.assert_allclose(again.predict(billions), found.predict(found.points), rtol=1e-6)


def test_a_fit_of_l3_falls_with_the_share_on_its_whole_box() -> None:
    """Also where the data would have it otherwise."""
    form, points, law = truth("dcpt")
    tempted = law * (1 + 0.05 * points["share"] ** 4)
    found = fit(form, points | {"loss": tempted}, search=Search(starts=2))
    violation, _ = falls(form.values(found.parameters), scale(points, found.units))
    assert violation < 0.02  # a bound on the slope, with a margin of so much
    r = np.linspace(0, 1, 201)
    for n, d in ((4e5, 1e6), (1.6e6, 1e6), (4e5, 4e7), (1.6e6, 4e7)):
        curve = found.predict({"N": np.full(201, n), "D": np.full(201, d), "share": r})
        assert (np.diff(curve) < 0).all()


def test_a_parameter_at_its_bound_is_reported() -> None:
    """A straight line in the logarithm, of which no power is the law."""
    x = np.geomspace(1, 100, 12)
    found = fit(asymptotic("x"), {"x": x, "loss": 3 - 0.3 * np.log(x)})
    assert "b" in found.at_bounds or "E" in found.at_bounds
    assert fitted("power")[0].at_bounds == []


def test_quality_by_hand() -> None:
    x = np.geomspace(1, 8, 5)
    found = fit(log_linear("x"), {"x": x, "loss": 3 - 0.3 * np.log(x)}, forced=True)
    off = replace(found, points=found.points | {"loss": found.points["loss"] * np.exp(0.01)})
    assert off.quality["rms"] == pytest.approx(0.01, abs=1e-5)
    assert off.quality["huber"] == pytest.approx(0.01 - 0.0005, abs=1e-5)
    assert off.quality["worst"] == pytest.approx(3 * (np.exp(0.01) - 1), abs=1e-3)
    assert found.quality["r2"] == pytest.approx(1) and off.quality["r2"] < 1


def test_how_far_a_prediction_is_beyond_the_points() -> None:
    found, _ = fitted("dcpt")
    inside = {"N": [1.006 * found.points["N"].max()], "D": [1e7], "share": [0.3]}
    assert found.beyond(inside) == {}
    beyond = found.beyond({"N": [3.2e6, 1e6], "D": [5e5, 1e7], "share": [0.3, 1.0]})
    largest = float(found.points["N"].max())
    assert beyond == {"N": pytest.approx(3.2e6 / largest), "D": pytest.approx(2)}


# -- intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["power", "chinchilla", "replay-share"])
def test_intervals_of_95_percent_cover_the_law(kind: str) -> None:
    """Between 90 and 99% over 40 sets of data; bench/coverage.py has more, and more forms."""
    form, points, law = truth(kind)
    hit = []
    for seed in range(40):
        found = fit(form, points | {"loss": noisy(form, law, seed)}, search=Search(starts=1))
        low, high = bootstrap(found, 200, seed=seed).interval(points)
        hit.append((low <= law) & (law <= high))
    assert 0.90 <= np.mean(hit) <= 0.99


def test_what_a_new_run_would_show_varies_by_its_own_noise() -> None:
    found, law = fitted("power")
    resampled = bootstrap(found, 400)
    low, high = resampled.interval(found.points)
    lower, higher = resampled.interval(found.points, measured=True)
    assert (lower < low).all() and (high < higher).all()
    fresh = np.array([noisy(found.form, law, seed) for seed in range(100, 130)])
    assert 0.85 < ((lower <= fresh) & (fresh <= higher)).mean() < 1


def test_an_outlier_upwards_widens_what_a_run_would_show_upwards() -> None:
    x = np.geomspace(1, 100, 12)
    loss = 2 + x**-0.5
    loss[6] *= 1.3
    resampled = bootstrap(fit(asymptotic("x"), {"x": x, "loss": loss}), 2000)
    at = {"x": [3.0]}
    low, high = resampled.interval(at)
    lower, higher = resampled.interval(at, measured=True, level=0.8)
    assert higher[0] > 1.05 * (2 + 3**-0.5) and lower[0] > 0.98 * low[0]
    assert high[0] < higher[0]


def test_runs_are_resampled_whole() -> None:
    """Checkpoints of a run share its luck: taken for independent they make the interval too
    narrow."""
    form, points, law = truth("dcpt")
    keys = np.stack([points["N"], points["share"]], 1)
    run = np.unique(keys, axis=0, return_inverse=True)[1].ravel().astype(float)
    luck = np.random.default_rng(0).normal(0, NOISE, 18)[run.astype(int)]
    found = fit(form, points | {"loss": law * np.exp(luck), "run": run}, search=Search(starts=2))
    widths = [
        np.subtract(*bootstrap(found, 200, by=by).interval(points)[::-1]).mean()
        for by in ("run", None)
    ]
    assert widths[0] > 1.3 * widths[1]


def test_of_few_runs_percentiles_are_expanded() -> None:
    """Student's t of 4 degrees of freedom is 2.776: 2.776 sqrt(5/4) = 3.104 of a normal."""
    assert expanded(5)[1] == pytest.approx(99.905, abs=0.005)
    assert expanded(1000)[0] == pytest.approx(2.48, abs=0.01)


# -- hold-outs -----------------------------------------------------------------------------------


def test_forms_are_chosen_by_what_was_held_out() -> None:
    """On points of L3: L3 before L1, L5 last, as in table 1 of the paper; so by size, by tokens and
    by a share alone."""
    form, points, law = truth("dcpt")
    table = points | {"loss": noisy(form, law, 0)}
    held = splits(table)
    assert list(held) == ["largest N", "twice the tokens", "a share between", "the largest share"]
    ranked = choose([L5, L1, L3], table, held)
    assert [found.fit.form.name for found in ranked] == ["dcpt-l3", "dcpt-l1", "dcpt-l5"]
    for name in held:
        errors = [found.held[name] for found in ranked]
        assert errors == sorted(errors), name
    assert ranked[0].error < 2 * NOISE


def test_a_domain_is_predicted_from_five_others() -> None:
    """By its loss before and how fast it fell, which the cross-domain law is for."""
    form, points, law = truth("dcpt-cross")
    table = points | {"loss": noisy(form, law, 0)}
    for k1 in (1.8, 2.7):  # neither the highest nor the lowest
        other = points["k1"] == k1
        found = fit(form, select(table, ~other), search=Search(starts=3))
        assert np.abs(found.predict(select(points, other)) / law[other] - 1).max() < 2 * WITHIN


def test_the_straight_line_is_chosen_where_it_is_the_law() -> None:
    x = np.geomspace(1, 100, 12)
    loss = noisy(CHINCHILLA, 3 - 0.3 * np.log(x), 3)
    held = {"the largest": x > 30}
    ranked = choose([asymptotic("x"), log_linear("x")], {"x": x, "loss": loss}, held)
    assert ranked[0].fit.form.name == "log-linear in x"


def test_hold_outs_by_size_and_seed() -> None:
    form, points, law = truth("chinchilla")
    table = points | {"loss": noisy(form, law, 0), "seed": np.arange(32.0) % 2}
    found = judge(form, table)
    assert list(found.held) == ["largest N", "twice the tokens", "a seed"]
    assert max(found.held.values()) < 4 * NOISE


def test_every_point_from_the_others() -> None:
    form, points, law = truth("straight-power")
    off = each(form, points | {"loss": noisy(form, law, 0)})
    assert len(off) == 14 and np.abs(off).max() < 4 * NOISE


def test_without_anything_to_hold_out_nothing_is_chosen() -> None:
    table = {"N": [1.0, 2.0], "loss": [3.0, 2.0]}
    with pytest.raises(Invalid, match="too few sizes, tokens, shares and seeds"):
        choose([asymptotic("N")], table)


# -- what is refused -----------------------------------------------------------------------------

Change = Callable[[dict[str, Array]], dict[str, Array]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: select(t, np.arange(0, 144, 16)), "9 points for the 9 parameters.*at least 11"),
        (lambda t: t | {"share": np.full(144, 0.25)}, "share = 0.25 at every point.*add runs"),
        (lambda t: t | {"N": np.full(144, 4e5)}, "N = 400000 at every point"),
        (lambda t: t | {"loss": t["loss"] * np.where(np.arange(144) == 7, np.nan, 1)},
         "loss = nan at point 7: leave out"),
        (lambda t: t | {"loss": -t["loss"]}, "is of positive values"),
        (lambda t: t | {"D": -t["D"]}, "not negative"),
        (lambda t: t | {"N": t["N"][:5]}, "give each as many"),
        (lambda t: {n: c for n, c in t.items() if n != "D"}, "reads D, which the points do not"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused_by_name(change: Change, words: str) -> None:
    form, points, law = truth("dcpt")
    with pytest.raises(Invalid, match=words):
        fit(form, change(points | {"loss": law}))


def test_too_few_runs_have_no_interval() -> None:
    found, _ = fitted("power")
    two = replace(found, points=found.points | {"run": np.arange(14.0) % 2})
    with pytest.raises(Invalid, match="run: 2 runs"):
        bootstrap(two, 10, by="run")
    with pytest.raises(Invalid, match="delta = 0"):
        fit(form_of("power"), found.points, search=Search(delta=0))
    with pytest.raises(Invalid, match="warmup = 5"):
        fit(KINDS["replay-share"], {"share": [0, 1], "loss": [2, 1]}, warmup=5)
