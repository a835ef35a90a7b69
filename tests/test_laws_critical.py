"""The critical mixture ratio: its turning point by finite differences, and the decision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from treering.analysis.laws.answers import answer
from treering.analysis.laws.bootstrap import Resampled, bootstrap
from treering.analysis.laws.cmr import DOMAIN, GENERAL
from treering.analysis.laws.critical import cmr, critical, turning
from treering.analysis.laws.fitting import Fit, Search, fit
from treering.analysis.laws.form import Array, Form

FALLS, RISES = np.array([0.5, -0.4, -0.9]), np.array([-0.2, 1.0, 0.5, 0.4, -0.1])
T = np.geomspace(1, 40, 24)
SHARES = np.array([0.125, 0.25, 0.5, 0.75, 1.0])


def of(form: Form, parameters: Array, unit: float = 1.0) -> Fit:
    """A fit that has these parameters, T in such units."""
    points = {"T": T, "loss": form.predict(parameters, {"T": T / unit})}
    return Fit(form, parameters, points, "loss", {"T": unit}, 1e-3, np.ones(len(T)), 0.0)


@pytest.mark.parametrize("weight", [100.0, 700.0, 7000.0])
@pytest.mark.parametrize("unit", [1.0, 5.0])
def test_the_turning_point_is_where_the_slopes_are_as_asked(weight: float, unit: float) -> None:
    """d(dL_gen)/d(dL_dom) = -1/lambda, by finite differences."""
    falls, rises = of(DOMAIN, FALLS), of(GENERAL, RISES, unit)
    at = float(turning(falls, rises, weight, 40.0))
    near = {"T": np.array([1 - 1e-5, 1 + 1e-5]) * at}
    general, domain = np.diff(rises.predict(near))[0], np.diff(falls.predict(near))[0]
    assert general / domain == pytest.approx(-1 / weight, rel=1e-3)


def test_of_a_large_weight_the_turning_point_is_the_highest_general_loss() -> None:
    t = np.linspace(0.1, 40, 400_000)
    falls, rises = of(DOMAIN, FALLS), of(GENERAL, RISES)
    highest = t[np.argmax(rises.predict({"T": t}))]
    assert turning(falls, rises, 1e9, 40.0) == pytest.approx(highest, abs=2e-4)
    assert np.isnan(turning(falls, rises, 1e9, 0.5))  # not within the budget


def test_resamples_turn_each_at_its_own() -> None:
    falls, rises = of(DOMAIN, FALLS), of(GENERAL, RISES)
    many = np.stack([RISES, RISES * [1, 1, 1.2, 1, 1], RISES * [1, 1, 1e-9, 1, 1]])
    found = turning(Resampled(falls, np.stack([FALLS] * 3), 3), Resampled(rises, many, 3), 700, 40)
    each = [turning(falls, replace(rises, parameters=row), 700, 40.0) for row in many]
    np.testing.assert_allclose(found, each)
    assert found[1] > found[0] and np.isnan(found[2])


def test_the_critical_ratio_is_the_largest_that_is_tolerable_and_turns() -> None:
    """Half way from a rise of .03 to one of .07, if the next share turns too."""
    r, rise = np.array([0.25, 0.5, 0.75, 1.0]), np.array([0.01, 0.03, 0.07, 0.2])
    assert critical(r, rise, np.array([3.0, 9.0, np.nan, 20.0])) == 0.5
    assert critical(r, rise, np.array([3.0, 9.0, 12.0, 20.0])) == pytest.approx(0.625)
    assert critical(r, rise, np.array([3.0, np.nan, 12.0, 20.0])) == 0.25
    assert critical(r, rise, np.ones(4), tolerance=1.0) == 1.0
    assert np.isnan(critical(r, rise + 1, np.ones(4)))


def test_the_decision_has_an_interval_that_holds_the_true_share() -> None:
    """General loss rises in proportion to the share; of each share 24 noisy points."""
    laws, true = list[Resampled](), list[Fit]()
    later = np.array([-0.03, 1.0, 0.5, 0.4, -0.1])  # highest at T = 24
    for form, theta in ((DOMAIN, FALLS), (GENERAL, later)):
        for i, share in enumerate(SHARES):
            scale = np.array([share, 1, share, 1, share]) if form is GENERAL else np.ones(3)
            exact = of(form, theta * scale)
            noise = np.random.default_rng(i).normal(0, 0.01, len(T)) * exact.points["loss"].std()
            points = exact.points | {"loss": exact.points["loss"] + noise}
            true.append(exact)
            laws.append(bootstrap(fit(form, points, search=Search(starts=2)), 200, seed=3))
    rise = true[-1].predict({"T": [40.0]})[0]
    decide = cmr(SHARES, 40.0, weight=700.0, tolerance=0.6 * rise)
    found, exactly = answer(decide, *laws), float(decide(*true))
    assert exactly == pytest.approx(0.6, abs=1e-6)
    assert found.low < exactly < found.high and found.high - found.low < 0.2
