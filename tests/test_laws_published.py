"""Laws against the numbers of the papers that they are from; see docs/laws.md."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from printed import printed
from scipy.stats import spearmanr

from treering.analysis.laws.answers import fixed_data, tolerable
from treering.analysis.laws.cmr import RATIO, critical_ratio
from treering.analysis.laws.fitting import Fit, Search, fit
from treering.analysis.laws.form import Array, Points
from treering.analysis.laws.holdout import each
from treering.analysis.laws.mixing import exponential_mixing, linear, shares
from treering.analysis.laws.power import keep_rate, log_linear
from treering.analysis.laws.replay import FLOORED, INJECTION_AT_SIZE, PLAIN, STRETCHED

CMR, DCPT, MIXING, REPLAY = (printed(name) for name in ("cmr", "dcpt", "mixing", "replay"))
REGMIX = printed("regmix")
MODELS = ("460M", "940M", "1.6B", "3.1B")


# -- critical mixture ratio ----------------------------------------------------------------------


def test_critical_ratios_of_20_billion_tokens_to_the_digit() -> None:
    found = [100 * float(critical_ratio(*CMR["budget_law"][m], 20e9)) for m in MODELS]
    assert [round(ratio, 1) for ratio in found] == [29.8, 34.9, 41.4, 47.8]
    assert [CMR["percent_at_20B"][m] for m in MODELS] == [29.8, 34.9, 41.4, 47.8]


def test_critical_ratios_of_other_budgets() -> None:
    """Recomputed from table 5; T = 250 is 50 billion tokens, not 500 as the paper remarks."""
    first = [100 * critical_ratio(*CMR["budget_law"]["460M"], t) for t in (5e9, 10e9, 50e9)]
    np.testing.assert_allclose(first, [5.5, 16.5, 51.6], atol=0.05)


@pytest.mark.parametrize("model", MODELS)
def test_a_quarter_is_predicted_from_the_other_shares(model: str) -> None:
    """Table 2, within 5e-4 of the truth; the refit does better than the paper's own. A straight
    line in the logarithm, where a lost descent ends, is 2.3e-3 to 3.2e-3 too high."""
    table = {
        "R": [float(Fraction(r)) for r in CMR["share"]],
        "loss": CMR["domain_loss"][model]["fitted"],
    }
    held = CMR["domain_loss"][model]["held_out"]
    law = fit(RATIO, table, forced=True)
    assert abs(law.predict({"R": [0.25]})[0] - held) < 1.5e-4
    assert 0.16 < law.values["s"] < 0.20 and law.at_bounds == []
    straight = fit(log_linear("R"), table, forced=True)
    assert 2e-3 < straight.predict({"R": [0.25]})[0] - held < 4e-3


def test_thirty_three_percent_is_a_third() -> None:
    loss = CMR["domain_loss"]["460M"]["fitted"]
    law = fit(RATIO, {"R": [1, 0.75, 0.5, 0.33], "loss": loss}, forced=True)
    assert abs(law.predict({"R": [0.25]})[0] - 1.5561) > 5e-4


# -- D-CPT ---------------------------------------------------------------------------------------


class Interpolated:
    """A table read as a law of the share."""

    def __init__(self, share: list[float], loss: list[float]) -> None:
        self.share, self.loss = share, loss

    def predict(self, points: Points) -> Array:
        return np.interp(points["share"], self.share, self.loss)


def test_usage_1_the_share_that_general_loss_tolerates() -> None:
    """3% of 2.8602 is met at a domain share of .9245; the table's own choice is .924."""
    use = DCPT["usage1"]
    limit = use["before"] * (1 + use["tolerance"])
    assert limit == pytest.approx(2.9460, abs=5e-5)
    replay = [1 - share for share in use["share"]][::-1]
    law = Interpolated(replay, use["general"][::-1])
    least = float(tolerable(law, {}, limit, np.linspace(0, 0.1, 1001)))
    assert 0.924 <= 1 - least <= 0.93
    assert 1 - least == pytest.approx(0.9245, abs=1e-4) and use["reported"] == 0.924
    assert use["general"][-1] - use["general"][3] == pytest.approx(0.5222)
    assert use["domain"][3] - use["domain"][-1] == pytest.approx(0.0071)


def test_usage_2_of_fixed_domain_data_the_best_share_is_inside() -> None:
    use = DCPT["usage2"]
    law = Interpolated(use["share"], use["domain"])
    best = float(fixed_data(law, {"N": 1.8e9}, 5e9, np.array(use["share"])))
    assert use["share"][0] < best < use["share"][-1]
    nearest = min(use["share"], key=lambda share: abs(share - best))
    assert nearest == use["reported"] == use["share"][int(np.argmin(use["domain"]))]


def test_table_1_as_copied() -> None:
    """L3 best and L5 worst by every column; test_laws_fit.py has our own order, on points of L3."""
    columns = np.array([DCPT["table1"][form][:4] for form in ("L1", "L2", "L3", "L4", "L5")])
    assert (columns[:, :2].argmin(0) == 2).all() and (columns[:, 2:].argmax(0) == 2).all()
    assert (columns[:, :2].argmax(0) == 4).all() and (columns[:, 2:].argmin(0) == 4).all()


# -- data mixing ---------------------------------------------------------------------------------


def test_the_critical_pile_share() -> None:
    """Within .28 to .29; the share held out within .002 nats; Python's law alike."""
    x = np.array(MIXING["pile_share"])
    law = fit(
        exponential_mixing(2),
        shares(np.stack([x, 1 - x], 1)) | {"loss": MIXING["pile"]},
        forced=True,
    )
    even = np.linspace(0.125, 0.5, 3751)
    loss = law.predict({"p0": even, "p1": 1 - even})
    assert 0.28 <= even[np.argmax(loss <= MIXING["before"]["pile_loss"])] <= 0.29
    held = MIXING["held_out"]
    at = {"p0": [held["pile_share"]], "p1": [1 - held["pile_share"]]}
    assert abs(law.predict(at)[0] - held["pile_loss"]) < 0.002
    python = fit(
        exponential_mixing(2),
        shares(np.stack([1 - x, x], 1)) | {"loss": MIXING["python"]},
        forced=True,
    )
    other = {"p0": at["p1"], "p1": at["p0"]}
    assert abs(python.predict(other)[0] - held["python_loss"]) < 0.002


def regression(components: int) -> Fit:
    train = REGMIX["train_1M"]
    form = exponential_mixing(17, components) if components else linear(17)
    table = shares(np.array(train["mixture"], np.float64)) | {"loss": train["loss"]}
    return fit(form, table, search=Search(delta=1.0, starts=1))


def ranked(law: Fit) -> list[float]:
    """Spearman's correlation with what 1M, 60M and 1B models lost on mixtures not fitted to."""
    found = []
    for mixtures, losses in (
        ("test_1M", "test_1M"),
        ("test_1M", "test_60M"),
        ("test_1B", "test_1B"),
    ):
        predicted = law.predict(shares(np.array(REGMIX[mixtures]["mixture"], np.float64)))
        found.append(float(spearmanr(predicted, REGMIX[losses]["loss"]).statistic))
    return found


def test_regmix_without_gradient_boosted_trees() -> None:
    """Spearman of .95 and more on Pile-CC at all three sizes; the linear regression does not get
    there."""
    law = regression(1)
    assert ranked(law) == pytest.approx([0.966, 0.960, 0.988], abs=0.003)
    assert min(ranked(law)) >= 0.95 and law.quality["r2"] == pytest.approx(0.911, abs=0.002)
    assert ranked(regression(0)) == pytest.approx([0.902, 0.893, 0.877], abs=0.01)


# -- replay --------------------------------------------------------------------------------------


def replayed(shift: str) -> dict[str, Array]:
    table = REPLAY[shift]
    base = np.full(len(table["replay"]), table["before"])
    return {"share": np.array(table["replay"]), "loss": np.array(table["old"]), "base": base}


def rms(law: Fit) -> float:
    return float(np.sqrt(((law.predict(law.points) - law.points["loss"]) ** 2).mean()))


def test_old_loss_falls_with_every_replay() -> None:
    for shift in ("strong", "weak"):
        assert (np.diff(replayed(shift)["loss"]) < 0).all()


@pytest.mark.parametrize(
    ("shift", "expected"),
    [("strong", [0.0017, 0.0095, 0.0333, 0.0999]), ("weak", [0.0055, 0.0105, 0.0139, 0.0246])],
)
def test_forms_of_replay_by_how_well_they_fit(shift: str, expected: list[float]) -> None:
    """The power with a floor follows both the drop and the tail; the plain exponential cannot, and
    one that did would be wrong. By least squares of the logarithm, so to 3e-4 of those of
    losses."""
    forms = (FLOORED, STRETCHED, INJECTION_AT_SIZE, PLAIN)
    found = [
        rms(fit(form, replayed(shift), forced=True, search=Search(delta=1.0))) for form in forms
    ]
    assert found == pytest.approx(expected, abs=3e-4)
    assert found[0] <= {"strong": 0.005, "weak": 0.01}[shift]
    assert shift == "weak" or found[3] >= 0.05


@pytest.mark.parametrize(("shift", "unknown"), [("strong", -0.125), ("weak", -0.066)])
def test_every_replay_is_predicted_from_the_others(shift: str, unknown: float) -> None:
    """Within 2% for each run that replayed. What is lost without replay is not to be known from
    runs that replay, as the floor decides it alone: it is 12% and 7% off, and no form came
    within 6%."""
    off = each(FLOORED, replayed(shift))
    assert np.abs(off[1:]).max() < 0.02
    assert off[0] == pytest.approx(unknown, abs=0.005)


def test_of_the_weak_shift_the_exponent_is_at_its_bound() -> None:
    """Its tail is a logarithm within noise."""
    law = fit(FLOORED, replayed("weak"), forced=True)
    assert "gamma" in law.at_bounds
    assert fit(FLOORED, replayed("strong"), forced=True).at_bounds == []


# -- filters -------------------------------------------------------------------------------------


def test_keep_rates_by_compute() -> None:
    table = printed("keep_rate")
    np.testing.assert_allclose(keep_rate(np.array(table["flops"])), table["percent"], atol=0.05)
    assert table["percent_in_text"] == [3, None, None, 30]  # the text disagrees with the formula
