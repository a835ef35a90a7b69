"""Forms: gradients, limits and identities, whatever their parameters are."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import TRUTHS, form_of, grid, truth

from treering.analysis.laws import KINDS, dcpt
from treering.analysis.laws.annealing import areas
from treering.analysis.laws.dcpt import L1, L3, L4, L5
from treering.analysis.laws.form import bounded
from treering.analysis.laws.points import scale, units
from treering.analysis.laws.power import compute_multiplier, keep_rate
from treering.analysis.laws.replay import GRID, INJECTION, MULTIPLIER

BOX = grid(N=[0.5, 1, 2], D=[0.2, 1, 6], share=[0.0, 1e-4, 0.1, 0.5, 0.9, 1])


def test_every_form_is_recovered_from_points_of_its_own() -> None:
    assert set(KINDS) <= set(TRUTHS)


@pytest.mark.parametrize("kind", TRUTHS)
def test_the_gradient_is_that_of_the_prediction(kind: str) -> None:
    """Against central differences; and in batches as one by one."""
    form, points, law = truth(kind)
    points = scale(points, units(form, points))
    theta = np.array(TRUTHS[kind][1], np.float64)
    value, slopes = form.gradient(theta, points)
    np.testing.assert_allclose(value, law)
    for i in range(len(theta)):
        step = np.zeros_like(theta)
        step[i] = 1e-6 * max(abs(theta[i]), 1e-2)
        upper, lower = form.predict(theta + step, points), form.predict(theta - step, points)
        difference = (upper - lower) / (2 * step[i])
        np.testing.assert_allclose(slopes[i], difference, atol=1e-5 * np.abs(difference).max())
    batch = np.stack([theta, theta * 1.01])
    values, many = form.gradient(batch, points)
    np.testing.assert_allclose(values, form.predict(batch, points))
    np.testing.assert_allclose(many[0], slopes)
    np.testing.assert_allclose(many[1], form.gradient(batch[1], points)[1])


@pytest.mark.parametrize("kind", TRUTHS)
def test_parameters_have_names_bounds_and_a_source(kind: str) -> None:
    form, theta = form_of(kind), TRUTHS[kind][1]
    assert len(theta) == len(form.names) == len(set(form.names)) and form.source
    for parameter, value in zip(form.parameters, theta, strict=True):
        assert parameter.low < value < parameter.high
        assert parameter.low > 0 or not parameter.log
        assert all(parameter.low <= start <= parameter.high for start in parameter.starts)


# -- D-CPT ---------------------------------------------------------------------------------------


def test_l3_without_interaction_is_l1() -> None:
    l1 = np.array([1.2, 0.8, 0.35, 0.3, 0.3, 1.0, 0.1, 0.8])
    np.testing.assert_allclose(L3.predict(np.insert(l1, 5, 0.0), BOX), L1.predict(l1, BOX))


def test_l3_at_a_fixed_share_is_chinchillas() -> None:
    """E' = E + C/(r + epsilon)^gamma and B' = B r^eta."""
    table = grid(N=[0.5, 1, 2], D=[0.2, 1, 6], share=[0.3])
    theta = np.array([1.2, 0.8, 0.35, 0.3, 0.3, 1.2, 1.0, 0.1, 0.8])
    e, b = 1.2 + 1.0 / 0.4**0.8, 0.3 * 0.3**1.2
    own = KINDS["chinchilla"].predict(np.array([e, 0.8, 0.35, b, 0.3]), table)
    np.testing.assert_allclose(L3.predict(theta, table), own)


def test_the_cross_domain_law_of_one_domain_is_l3_with_another_asymptote() -> None:
    theta = np.array(TRUTHS["dcpt-cross"][1])
    own = BOX | {"k1": np.full(len(BOX["N"]), 2.0), "k2": np.full(len(BOX["N"]), 0.4)}
    f, mu, w = theta[-3:]
    shifted = theta[:-3].copy()
    shifted[0] += f / (1 / 2.0 + w * 0.4) ** mu
    np.testing.assert_allclose(KINDS["dcpt-cross"].predict(theta, own), L3.predict(shifted, BOX))


def test_the_constraint_of_l3_is_sufficient_on_the_whole_box() -> None:
    """Wherever it holds loss falls with the share, also between and at the ends; and the trap that
    it is made for does occur."""
    draw, seen = np.random.default_rng(0), [0, 0]
    r = np.linspace(0, 1, 101)
    for _ in range(300):
        low = np.array([0.5, 0.1, 0.1, 0.05, 0.1, 1.0, 0.05, 0.001, 0.05])
        theta = low * (np.array([4, 20, 8, 30, 6, 4, 40, 300, 30]) ** draw.random(9))
        violation, _ = dcpt.falls(L3.values(theta), BOX)
        falling = all(
            (np.diff(L3.predict(theta, grid(N=[1.0], D=[d], share=r))) < 1e-12).all()
            for d in np.unique(BOX["D"])
        )
        assert falling or violation > 0
        seen[int(falling)] += 1
    assert min(seen) > 10


def test_the_gradient_of_the_constraint() -> None:
    theta = np.array([1.2, 0.8, 0.35, 0.3, 0.3, 1.2, 1.0, 0.1, 0.8])
    _, by = dcpt.falls(L3.values(theta), BOX)
    for i, name in enumerate(L3.names):
        step = np.zeros(9)
        step[i] = 1e-6
        upper, lower = (dcpt.falls(L3.values(theta + s * step), BOX)[0] for s in (1, -1))
        assert by.get(name, 0.0) == pytest.approx((upper - lower) / 2e-6, abs=1e-5)


def test_more_data_helps_more_at_a_higher_share() -> None:
    theta = np.array([1.2, 0.8, 0.35, 0.3, 0.3, 1.2, 1.0, 0.1, 0.8])
    gains = [
        np.diff(L3.predict(theta, grid(N=[1.0], D=[1.0, 2.0], share=[r])))[0] for r in (0.2, 0.8)
    ]
    assert gains[1] < gains[0] < 0


def test_l4_and_l5_by_hand() -> None:
    point = grid(N=[2.0], D=[3.0], share=[0.25])
    l4 = L4.predict(np.array([1, 0.5, 0.3, 0.4, 0.2, 0.6, np.log(0.7), np.log(5)]), point)
    assert l4 == pytest.approx(1 + 0.5 / 2**0.3 + 0.4 * 0.7**0.25 / 3**0.2 + 0.6 / 5**0.25)
    l5 = L5.predict(np.array([1, 0.5, 0.3, 0.4, 0.2, 0.1]), point)
    assert l5 == pytest.approx(1 + 0.5 / 2**0.3 + 0.4 / (0.25 * 3 + 0.75 * 0.1 * 3) ** 0.2)


# -- replay --------------------------------------------------------------------------------------


def test_the_injection_law_without_injection_is_forgetting_alone() -> None:
    theta = np.array([0.6, 0.4, 300.0, 0.3])
    table = BOX | {"base": np.full(54, 2.2)}
    none = BOX["share"] == 0
    law = INJECTION.predict(theta, table)
    forgotten = 2.2 + 0.6 * BOX["D"] ** 0.4 / BOX["N"] ** 0.3
    np.testing.assert_allclose(law[none], forgotten[none])
    cube = law.reshape(3, 3, 6)
    assert (np.diff(cube, axis=0) < 0).all()  # falls with N
    assert (np.diff(cube, axis=1) > 0).all()  # rises with what was learned
    assert (np.diff(cube, axis=2) < 0).all()  # falls with what is injected


def test_one_percent_of_injection_counts_as_so_many_times_the_size() -> None:
    """B from 829 to 1e4: 1 + B p is 9.3 to 101 at 1%."""
    for rate, factor in ((829.0, 9.29), (1e4, 101.0)):
        theta = np.array([0.6, 0.4, rate, 0.3])
        injected = INJECTION.predict(theta, grid(N=[1.0], D=[1.0], share=[0.01], base=[2.0]))
        larger = INJECTION.predict(theta, grid(N=[factor], D=[1.0], share=[0.0], base=[2.0]))
        assert injected == pytest.approx(larger, rel=1e-6)


def test_a_multiplier_is_a_share_multiplied() -> None:
    theta = np.array([1.5, 0.6, 0.003, 0.2, 2.5])
    ruled = MULTIPLIER.predict(theta, grid(share=[0.0, 0.1, 0.2], rule=[1.0]))
    uniform = MULTIPLIER.predict(theta, grid(share=[0.0, 0.25, 0.5], rule=[0.0]))
    np.testing.assert_allclose(ruled, uniform)


def test_replay_by_size_and_tokens_moves_the_right_way() -> None:
    cube = GRID.predict(np.array([1.2, 0.8, 0.3, 0.5, 0.3, 0.2, 80, 0.4]), BOX).reshape(3, 3, 6)
    assert (np.diff(cube, axis=0) < 0).all() and (np.diff(cube, axis=2) < 0).all()
    assert (np.diff(cube, axis=1) > 0).all()


# -- schedules and filters -----------------------------------------------------------------------


def test_areas_of_a_schedule_by_hand() -> None:
    """Rates 3, 3, 2, 0: with memory 1/2 the momenta are 0, 0, 1, 2.5."""
    first, second = areas(np.array([3.0, 3.0, 2.0, 0.0]), memory=0.5)
    np.testing.assert_allclose(first, [3, 6, 8, 8])
    np.testing.assert_allclose(second, [0, 0, 1, 3.5])
    assert (areas(np.full(50, 0.1))[1] == 0).all()


def test_areas_are_the_published_double_sum() -> None:
    rates, memory = np.cos(np.linspace(0, 1.5, 30)), 0.9
    double = [
        sum((rates[k - 1] - rates[k]) * memory ** (i - k) for i in range(1, s + 1)
            for k in range(1, i + 1)) for s in range(30)
    ]  # fmt: skip
    np.testing.assert_allclose(areas(rates, memory)[1], double)


def test_a_keep_rate_is_at_most_everything() -> None:
    assert keep_rate(1e30) == 100 and keep_rate(1e20) == pytest.approx(4.0)


def test_a_data_set_against_itself_needs_the_same_compute() -> None:
    assert compute_multiplier(2.5, (30.0, 0.1), (30.0, 0.1)) == pytest.approx(1)
    better = compute_multiplier(2.5, (30.0, 0.1), (31.0, 0.1))
    assert better == pytest.approx((31 / 30) ** 10)


def test_bounds_can_be_narrowed() -> None:
    narrowed = bounded(L3, "epsilon", 0.01, 0.1)
    parameter = narrowed.parameters[L3.names.index("epsilon")]
    assert (parameter.low, parameter.high, parameter.starts) == (0.01, 0.1, (0.05,))
