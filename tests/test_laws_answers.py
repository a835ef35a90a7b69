"""What laws are for: each answer against a search over every choice, or by hand; and its
interval."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import TRUTHS, grid, noisy, truth

from treering.analysis.laws.answers import (
    Budget,
    answer,
    exchange,
    fixed_data,
    pays_at,
    shares,
    tolerable,
)
from treering.analysis.laws.bootstrap import Resampled, bootstrap
from treering.analysis.laws.fitting import Fit, Search, fit
from treering.analysis.laws.form import Array, Points
from treering.config import Invalid

AT = {"N": 8e5, "D": 1e7}


def resampled(kind: str, seed: int) -> Resampled:
    form, points, law = truth(kind)
    return bootstrap(
        fit(form, points | {"loss": noisy(form, law, seed)}, search=Search(starts=2)), 200
    )


@pytest.fixture(scope="module")
def general() -> Resampled:
    return resampled("dcpt", 0)


def exact() -> Fit:
    form, points, law = truth("dcpt")
    return fit(form, points | {"loss": law}, search=Search(starts=2))


def test_the_share_that_old_loss_tolerates(general: Resampled) -> None:
    """Inverted: the law at the share found is the limit; the interval holds the true share."""
    limit = 3.5
    found = answer(lambda law: tolerable(law, AT, limit, shares()), general)
    at = {name: [value] for name, value in AT.items()} | {"share": [found.value]}
    assert general.fit.predict(at)[0] == pytest.approx(limit, abs=1e-3)
    true = float(tolerable(exact(), AT, limit, shares()))
    assert found.low < true < found.high and found.high - found.low < 0.05
    assert found.outside == 0


def test_a_limit_that_no_share_keeps_has_no_answer(general: Resampled) -> None:
    never = answer(lambda law: tolerable(law, AT, 0.5, shares()), general)
    assert np.isnan([never.value, never.low, never.high]).all() and never.outside == 1
    always = answer(lambda law: tolerable(law, AT, 50.0, shares()), general)
    assert always.value == always.high == 0


class Bumpy:
    """A loss that is tolerable at no replay, not between, and again above .6."""

    def predict(self, points: Points) -> Array:
        share = points["share"]
        return np.where((share > 0.2) & (share < 0.6), 3.0, 1.0)


def test_every_larger_share_is_tolerable_too() -> None:
    assert tolerable(Bumpy(), {}, 2.0, np.linspace(0, 1, 1001)) == pytest.approx(0.6, abs=2e-3)


class Scarce:
    """E + B/D^.5 + C (1 - r): data repeated is worth more than its share, up to a point."""

    def predict(self, points: Points) -> Array:
        return 1 + 200 / points["D"] ** 0.5 + 0.4 * (1 - points["share"])


def test_the_share_for_a_fixed_amount_of_domain_data() -> None:
    """D = D_d/r: 200 sqrt(r/D_d) - .4 r is greatest inside, so the least is at an edge; with the
    signs turned it is least where 100/sqrt(r D_d) = .4."""

    class Turned:
        def predict(self, points: Points) -> Array:
            return 5 - 200 / points["D"] ** 0.5 + 0.4 * points["share"]

    best = float(fixed_data(Turned(), {"N": 1e6}, 1e5, shares(0.01)))
    assert best == pytest.approx((100 / 0.4) ** 2 / 1e5, rel=1e-3)
    assert np.isnan(fixed_data(Scarce(), {"N": 1e6}, 1e5, shares(0.01)))


def test_usage_2_of_a_fitted_law_against_a_search(general: Resampled) -> None:
    """Little domain data: inside, and its interval has the true share. Much: at the edge."""
    among, at = shares(0.02), {"N": 8e5}
    found = answer(lambda law: fixed_data(law, at, 9e5, among), general)
    loss = general.fit.predict({"N": np.full(len(among), 8e5), "D": 9e5 / among, "share": among})
    assert found.value == pytest.approx(among[np.argmin(loss)], abs=0.01)
    true = float(fixed_data(exact(), at, 9e5, among))
    assert 0.9 < true < 0.95 and found.low < true < found.high and found.outside < 0.5
    much = answer(lambda law: fixed_data(law, at, 4e6, among), general)
    assert np.isnan(much.value) and much.outside > 0.5


@pytest.mark.parametrize("fresh", [False, True])
def test_size_and_share_for_a_budget_against_a_search(general: Resampled, fresh: bool) -> None:
    """C = 6 N D: every choice one by one."""
    sizes, replays = np.geomspace(4e5, 1.6e6, 9), np.linspace(0, 0.5, 11)
    budget = Budget(6e13, sizes, replays, fresh=fresh)
    law, limit, best = general.fit, 3.6, (np.inf, 0.0, 0.0)
    for n in sizes:
        for r in replays:
            d = 6e13 / (6 * n) * (1 - r if fresh else 1)
            new = law.predict({"N": [n], "D": [d], "share": [1 - r]})[0]
            old = law.predict({"N": [n], "D": [d], "share": [r]})[0]
            best = min(best, (new, n, r)) if old <= limit else best
    size, replay, loss = budget.best(law, law, limit)
    assert (loss, size, replay) == pytest.approx(best)
    found = answer(lambda new, old: budget.best(new, old, limit)[1], general, general)
    assert found.low <= replay <= found.high
    none = answer(lambda new, old: budget.best(new, old, 0.1)[0], general, general)
    assert np.isnan(none.value) and none.outside == 1


def test_a_new_token_costs_more_the_more_is_replayed() -> None:
    """At as many new tokens a share of one half doubles the FLOPs."""
    size, replay, tokens = Budget(6e13, np.array([1e6]), np.array([0.0, 0.5]), fresh=True).table()
    assert tokens[0] == pytest.approx(1e7) and tokens[1] == pytest.approx(5e6)
    spent = 6 * size * tokens / (1 - replay)
    np.testing.assert_allclose(spent, 6e13)


class Powers:
    """N^-.3 (1 - a)^.5 D^-.1: slopes that are known."""

    def predict(self, points: Points) -> Array:
        return points["N"] ** -0.3 * (1 - points["share"]) ** 0.5 * points["D"] ** -0.1


def test_marginal_rates_of_exchange_by_hand() -> None:
    """Along size -.3; along the share, at as many new tokens, FLOPs are (1 - a)^-1: -.5, and where
    D counts all tokens, which grow as FLOPs do, -.6."""
    for fresh, along_share in ((True, -0.5), (False, -0.6)):
        found = exchange(Powers(), 1e6, 0.25, 1e7, fresh=fresh)
        assert found == pytest.approx([-0.3, along_share], abs=1e-6)
    with pytest.raises(Invalid, match=r"replay = 0: a rate along it"):
        exchange(Powers(), 1e6, 0.0, 1e7)


def test_exchange_of_a_fitted_law_has_an_interval() -> None:
    law = resampled("replay", 0)
    found = [
        answer(lambda law, i=i: exchange(law, 1e6, 0.05, 1e7, fresh=True)[..., i], law)
        for i in (0, 1)
    ]
    form, points, exactly = truth("replay")
    true = exchange(
        fit(form, points | {"loss": exactly}, search=Search(starts=2)), 1e6, 0.05, 1e7, fresh=True
    )
    for i in (0, 1):
        assert found[i].low < true[i] < found[i].high
    assert found[1].value < 0


class Crossing:
    """Without replay N^-.2, with it 10 N^-.5: whatever N/(1 - a) is compared."""

    def predict(self, points: Points) -> Array:
        n = points["N"]
        return np.where(points["share"] > 0, 10 * n**-0.5, n**-0.2)


def test_the_budget_at_which_a_share_pays_by_hand() -> None:
    """10 N^-.5 = (4N/3)^-.2 at N = (10 (4/3)^.2)^(1/.3); FLOPs are 6 N tokens 4/3."""
    n = (10 * (4 / 3) ** 0.2) ** (1 / 0.3)
    found = pays_at(Crossing(), 0.25, 1e6, np.geomspace(10, 1e6, 2001))
    assert found == pytest.approx(6 * n * 1e6 * 4 / 3, rel=1e-3)


def test_the_budget_at_which_a_share_pays_has_an_interval() -> None:
    law, sizes = resampled("replay", 0), np.geomspace(1e4, 1e8, 801)
    found = answer(lambda law: pays_at(law, 0.02, 1e6, sizes), law)
    form, points, exactly = truth("replay")
    true = fit(form, points | {"loss": exactly}, search=Search(starts=2))
    assert found.low <= float(pays_at(true, 0.02, 1e6, sizes)) <= found.high


def test_laws_of_other_numbers_of_resamples_are_not_paired(general: Resampled) -> None:
    fewer = Resampled(general.fit, general.parameters[:50], general.runs)
    with pytest.raises(Invalid, match=r"\[50, 200\] resamples"):
        answer(lambda a, b: a.predict(grid(N=[8e5], D=[1e7], share=[1.0]))[..., 0], general, fewer)


def test_the_worth_of_a_rule_of_selection() -> None:
    """m with its interval, m the last parameter of the multiplier's law."""
    found = resampled("replay-multiplier", 2)
    low, high = found.spread()["m"]
    assert low < TRUTHS["replay-multiplier"][1][-1] < high and high / low < 2
