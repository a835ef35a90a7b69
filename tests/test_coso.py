"""CoSO: matrices move in a few directions, and in none that earlier phases had use for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tiny
import torch
from test_mesh import assert_same_to_rounding
from transformers import GPT2Config, GPT2LMHeadModel

from treering import model
from treering.batch import Batch
from treering.config import Invalid
from treering.learner import Learner
from treering.methods.updates import Average, CoSO, Descent, PerSample, Reptile

LearnerOf = Callable[..., Learner]
BatchesOf = Callable[..., list[Batch]]
Tensors = list[torch.Tensor]


def same(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def snapshot(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in learner.weights.items()}


# ------------------------------------------------------------------ off, and who is confined


@pytest.mark.parametrize("inside", [lambda it: it, lambda it: Reptile(2, 0.5, inner=it)])
def test_rank_0_is_bit_for_bit_plain_training(
    learner_of: LearnerOf, batches_of: BatchesOf, inside: Callable[..., Reptile]
) -> None:
    plain, confined = learner_of(), learner_of()
    one, other = inside(Descent()), inside(CoSO(rank=0))
    for batch in batches_of(4, 3):
        found, wanted = other(confined, batch), one(plain, batch)
        assert float(found.loss) == float(wanted.loss)
        assert found.meta_flops == wanted.meta_flops
    assert same(plain.params, confined.params)
    assert CoSO(rank=0).state(confined) == {}


def test_before_its_phase_training_is_plain_but_remembered(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    plain, confined = learner_of(), learner_of()
    update, batches = CoSO(rank=4, every=1, start=1), batches_of(4, 2)
    for batch in batches[:4]:
        update(confined, batch)
        Descent()(plain, batch)
    assert same(plain.params, confined.params)
    kept = update.state(confined)["rows.kept"]
    assert any(len(each) and each.any() for each in kept)
    update(confined, batches[4])
    Descent()(plain, batches[4])
    assert not same(plain.params, confined.params)


def test_training_is_plain_over_boundaries_before_its_phase(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    plain, confined = learner_of(), learner_of()
    update, batches = CoSO(rank=4, every=1, start=2), batches_of(2, 2, 1)
    for batch in batches[:4]:
        update(confined, batch)
        Descent()(plain, batch)
    assert same(plain.params, confined.params)
    steps = confined.state()["optimizer.step"]
    of = dict(zip(confined.weights, steps, strict=True))
    assert all(float(of[name]) == 0 for name in confined.matrices)  # its phase is next


def test_all_but_matrices_of_layers_learn_as_ever(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    """Without clipping, which is by the norm of all: the first step is the same elsewhere."""
    plain, confined = learner_of(clip=0.0), learner_of(clip=0.0)
    (batch,) = batches_of(1)
    Descent()(plain, batch)
    CoSO(rank=2)(confined, batch)
    for name, weight in confined.weights.items():
        assert torch.equal(weight, plain.weights[name]) == (name not in confined.matrices), name
    linear = {n for n in plain.names if "proj" in n}
    assert set(confined.matrices) == linear and len(linear) == 7


def test_gpt2s_matrices_lie_the_other_way_round() -> None:
    small = GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    found = model.matrices(GPT2LMHeadModel(small))
    assert set(found.values()) == {"in"}
    assert "transformer.h.0.mlp.c_fc.weight" in found and len(found) == 4


# ------------------------------------------------------------------ by hand


def adam(
    moments: list[torch.Tensor], gradient: torch.Tensor, step: int, rate: float
) -> torch.Tensor:
    """What AdamW with (.9, .95) and eps 1e-8 adds, without decay; moments in place."""
    moments[0].mul_(0.9).add_(0.1 * gradient)
    moments[1].mul_(0.95).add_(0.05 * gradient**2)
    mean, square = moments[0] / (1 - 0.9**step), moments[1] / (1 - 0.95**step)
    return -rate * mean / (square.sqrt() + 1e-8)


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("which", ["out", "in", "both"])
def test_it_is_the_papers_algorithm(
    learner_of: LearnerOf, batches_of: BatchesOf, which: str, rotate: bool
) -> None:
    """One matrix, written out: projection, subspace, Adam in it, Frequent Directions, phase end;
    moments of the coordinates' own size. Gradients are those of the learner."""
    rank, size, every, rate, decay, fades = 3, 4, 2, 1e-2, 0.1, 0.7
    learner = learner_of(clip=0.0, rate=rate, decay=decay)
    update = CoSO(rank, size, every, energy=0.6, decay=fades, side=which, rotate=rotate)
    name = "model.layers.0.mlp.up_proj.weight"  # 32 x 16
    weight = learner.weights[name]
    by_hand = weight.detach().clone()
    axes = {"out": [0], "in": [1], "both": [0, 1]}[which]
    kept: dict[int, torch.Tensor] = {axis: torch.zeros(weight.shape[axis], 0) for axis in axes}
    bases: dict[int, torch.Tensor] = {}
    moments: list[torch.Tensor] = []
    sketch: dict[int, torch.Tensor] = {}
    for step, batch in enumerate(batches_of(5, 4)):
        at = step if step < 5 else step - 5
        gradient = learner.gradient(batch)[learner.names.index(name)]
        for axis in axes:
            projector = kept[axis] @ kept[axis].T
            gradient = gradient - (projector @ gradient if axis == 0 else gradient @ projector)
        old = dict(bases)
        if at % every == 0:
            u, s, v = torch.linalg.svd(gradient, full_matrices=False)
            for axis, vectors in ((0, u), (1, v.T)):
                if axis in axes:
                    bases[axis] = vectors[:, :rank]
                    block = vectors[:, :size] * (s[:size] ** 2 - s[size] ** 2).sqrt()
                    joined = torch.cat([fades * sketch[axis], block], 1) if at else block
                    a, b, _ = torch.linalg.svd(joined, full_matrices=False)
                    less = b[size] ** 2 if len(b) > size else 0.0
                    sketch[axis] = a[:, :size] * (b[:size] ** 2 - less).clamp(min=0).sqrt()
            if at == 0:
                moments, old = [], {}
        coordinates, had = gradient, by_hand
        if 0 in axes:
            coordinates, had = bases[0].T @ coordinates, bases[0].T @ had
        else:
            coordinates, had = coordinates @ bases[1], had @ bases[1]
        if not moments:
            moments = [torch.zeros_like(coordinates) for _ in range(2)]
        if rotate and at % every == 0 and old:
            for power in (1, 2):
                if 0 in axes:
                    moments[power - 1] = (bases[0].T @ old[0]) ** power @ moments[power - 1]
                else:
                    moments[power - 1] = moments[power - 1] @ ((old[1].T @ bases[1]) ** power)
        moved = adam(moments, coordinates, at + 1, rate) - rate * decay * had
        moved = bases[0] @ moved if 0 in axes else moved @ bases[1].T
        if which == "both":
            moved = moved - moved @ kept[1] @ kept[1].T
        by_hand = by_hand + moved
        update(learner, batch)
        assert torch.allclose(weight, by_hand, rtol=0, atol=2e-5), step
        if batch.ends_phase:
            for axis in axes:
                a, b, _ = torch.linalg.svd(sketch[axis], full_matrices=False)
                share = (b**2).cumsum(0) / (b**2).sum()
                count = int((share < 0.6).sum()) + 1
                kept[axis] = torch.linalg.qr(torch.cat([kept[axis], a[:, :count]], 1)).Q


# ------------------------------------------------------------------ its invariants


@pytest.mark.parametrize("which", ["out", "in", "both"])
def test_nothing_moves_in_the_directions_that_are_kept(
    learner_of: LearnerOf, batches_of: BatchesOf, which: str
) -> None:
    """MᵀΔW = 0, or ΔW M = 0, with weight decay and clipping; and weights do move."""
    learner, update = learner_of(decay=0.5), CoSO(3, sketch=6, every=2, side=which)
    batches = batches_of(6, 6, 6)
    for phase in range(3):
        before, state = snapshot(learner), update.state(learner)
        kept = {
            kind.removesuffix(".kept"): [each.clone() for each in found]
            for kind, found in state.items()
            if kind.endswith(".kept")
        }
        for batch in batches[6 * phase : 6 * phase + 6]:
            update(learner, batch)
        for place, name in enumerate(learner.names):
            if name not in learner.matrices:
                continue
            moved = learner.weights[name].detach() - before[name]
            assert moved.norm() > 1e-2
            for axis, found in kept.items():
                basis = found[place]
                assert (phase > 0) == bool(basis.any())
                product = basis.T @ moved if axis == "rows" else moved @ basis
                assert product.norm() <= 1e-5
    assert set(kept) == {"out": {"rows"}, "in": {"columns"}, "both": {"rows", "columns"}}[which]


def test_what_is_kept_is_orthonormal_grows_and_ends_at_its_capacity(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    learner, update = learner_of(), CoSO(16, sketch=16, every=1, energy=0.9, capacity=0.4)
    counts = []
    for batch in batches_of(3, 3, 3, 3):
        update(learner, batch)
        if batch.ends_phase:
            (kept, *_) = [each for each in update.state(learner)["rows.kept"] if len(each)]
            found = kept[:, kept.any(dim=0)]
            assert torch.allclose(found.T @ found, torch.eye(found.shape[1]), atol=1e-5)
            counts.append(found.shape[1])
    assert counts == sorted(counts) and counts[-1] == int(0.4 * len(kept))
    (used, *_) = update.counters()["used"].values()
    assert used == [counts[-1] / len(kept)]


def test_energy_0_keeps_nothing(learner_of: LearnerOf, batches_of: BatchesOf) -> None:
    learner, update = learner_of(), CoSO(2, energy=0.0)
    for batch in batches_of(2, 1):
        update(learner, batch)
    assert not any(each.any() for each in update.state(learner)["rows.kept"])


def test_old_outputs_change_less_than_without_what_is_kept(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    """Trained on the same samples for a phase, then on others: the loss of the first rises less
    than where nothing is kept, and less than by plain training."""
    lost = {}
    updates = {
        "plain": Descent(), "nothing": CoSO(8, every=1, energy=0.0),
        "in": CoSO(8, every=1, energy=1.0, capacity=0.8, side="in"),
    }  # fmt: skip
    for name, update in updates.items():
        learner = learner_of(rate=5e-3, decay=0.0)
        for weight in learner.weights:  # all that is not confined stays as it is
            learner.weights[weight].requires_grad_(weight in learner.matrices)
        first, *others = batches_of(1, 40)
        last = Batch(first.tokens, first.refs, first.replayed, 0, 0, True)
        for _ in range(40):
            update(learner, Batch(first.tokens, first.refs, first.replayed, 0, 0, False))
        before = float(update(learner, last).loss)
        for batch in others:
            update(learner, batch)
        lost[name] = float(learner.backward(first).loss) - before
    assert lost["in"] < 0.7 * lost["nothing"] and lost["nothing"] < 1.2 * lost["plain"], lost


# ------------------------------------------------------------------ skipped, resumed, spread


def test_a_step_that_is_refused_changes_nothing(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    learner, update = learner_of(), CoSO(2, every=1)
    first, second, third = batches_of(3)
    update(learner, first)
    before = snapshot(learner)
    bases = [each.clone() for each in update.state(learner)["rows.basis"]]
    with torch.no_grad():
        learner.weights["lm_head.weight"].mul_(torch.inf)
    update(learner, second)
    with torch.no_grad():
        learner.weights["lm_head.weight"].copy_(before["lm_head.weight"])
    assert same(list(snapshot(learner).values()), list(before.values()))
    assert same(update.state(learner)["rows.basis"], bases)
    update(learner, third)
    assert not same(learner.params, list(before.values()))


def test_a_first_gradient_that_is_not_finite_leaves_the_turn_to_the_next(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    learner, update = learner_of(), CoSO(2, every=50)
    first, second = batches_of(2)
    head = learner.weights["lm_head.weight"].detach().clone()
    with torch.no_grad():
        learner.weights["lm_head.weight"].mul_(torch.inf)
    update(learner, first)
    with torch.no_grad():
        learner.weights["lm_head.weight"].copy_(head)
    before = snapshot(learner)
    update(learner, second)
    name = next(iter(learner.matrices))
    assert not torch.equal(learner.weights[name], before[name])


@pytest.mark.parametrize("inside", ["none", "reptile", "average", "samples"])
def test_it_goes_inside_other_updates(
    learner_of: LearnerOf, batches_of: BatchesOf, inside: str
) -> None:
    made = CoSO(2, every=2)
    updates = {"none": made, "reptile": Reptile(2, 0.5, inner=made, align=True),
               "average": Average((0.5,), inner=made), "samples": PerSample(made)}  # fmt: skip
    learner = learner_of(rows=1 if inside == "samples" else 4)
    first, second, third = batches_of(1, 2)
    found = updates[inside](learner, first)
    assert found.meta_flops > 0 and float(found.skipped) == 0.0
    kept = dict(zip(learner.weights, made.state(learner)["rows.kept"], strict=True))
    kept = {name: each.clone() for name, each in kept.items() if len(each) and each.any()}
    before = snapshot(learner)
    for batch in (second, third):
        updates[inside](learner, batch)
    assert kept
    for name, basis in kept.items():  # what the first phase learned stays
        moved = learner.weights[name].detach() - before[name]
        assert float(moved.norm()) > 0
        assert float((basis.T @ moved).norm()) < 1e-5 * float(moved.norm()) + 1e-6


COSO = "update={kind='coso', rank=3, sketch=5, every=4, side='both', start='second'}"


def test_it_resumes_bit_for_bit_between_two_turns(forks: tiny.Forks, tmp_path: Path) -> None:
    """Killed in either phase: the sketch of the first is being made, then the basis is turning."""
    sets = "--set", COSO
    assert forks.run(tmp_path / "whole", *sets)[0] == 0
    for step in (10, 30):
        sitting = forks.start(tmp_path / f"killed {step}", *sets)
        tiny.kill_after_step(sitting, tmp_path / f"killed {step}", step)
        code, log = forks.run(tmp_path / f"killed {step}", *sets)
        assert code == 0 and "resuming after step" in log
        tiny.assert_same_run(tmp_path / f"killed {step}", tmp_path / "whole")


@pytest.mark.parametrize("side", ["in", "out", "both"])
def test_two_ranks_do_what_one_does(forks: tiny.Forks, tmp_path: Path, side: str) -> None:
    coso = f"update={{kind='coso', rank=3, sketch=5, every=4, side='{side}'}}"
    sets = [f"--set={key}" for key in (coso, "phases.0.tokens=640", "phases.1.tokens=640")]
    for ranks in (1, 2):
        code, log = forks.run(tmp_path / str(ranks), *sets, ranks=ranks)
        assert code == 0, log
    assert_same_to_rounding(tmp_path / "2", tmp_path / "1", least=15, close=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": -1}, "update.rank = -1: must be at least 0"),
        ({"rank": 2, "every": 0}, "update.every = 0: must be at least 1"),
        ({"rank": 2, "sketch": 0}, "update.sketch = 0: must be at least 1"),
        ({"rank": 2, "energy": 1.5}, "update.energy = 1.5: must be in"),
        ({"rank": 2, "capacity": -0.1}, "update.capacity = -0.1: must be in"),
        ({"rank": 2, "side": "left"}, "update.side = 'left': must be 'in', 'out' or 'both'"),
    ],
)
def test_a_field_out_of_range_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        CoSO(**fields)  # type: ignore[arg-type]
