"""Cross-entropy without the logits of a whole batch is cross-entropy, and knows when it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_model import KINDS
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, PhiConfig

from treering import model, tables
from treering.asked import is_linear
from treering.batch import Batch
from treering.forward import forward
from treering.learner import Learner
from treering.mesh import Mesh
from treering.methods.objectives import NextToken, chunks
from treering.methods.objectives.cross_entropy import linear_cross_entropy
from treering.roles import weighted

POSITIONS, WIDTH, VOCABULARY = 50, 16, 300
Given = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(params=[1, 7, 50, 1000])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Positions of a chunk: one, some that do not divide, all, more than there are."""
    monkeypatch.setattr(chunks, "ON_CPU", request.param * VOCABULARY)
    monkeypatch.setattr(chunks, "LEAST", 1)
    return request.param


def given(seed: int = 0) -> Given:
    luck = torch.Generator().manual_seed(seed)
    hidden = torch.randn(POSITIONS, WIDTH, generator=luck, requires_grad=True)
    head = torch.randn(VOCABULARY, WIDTH, generator=luck).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (POSITIONS,), generator=luck)
    counts = torch.rand(POSITIONS, generator=luck) * (torch.rand(POSITIONS, generator=luck) > 0.3)
    return hidden, head, targets, counts


def by_logits(hidden: Any, head: Any, targets: Any, counts: Any) -> tuple[Any, Any]:
    losses = functional.cross_entropy((hidden @ head.t()).float(), targets, reduction="none")
    return (counts * losses).sum(), losses.detach()


def outcome(loss: Callable[..., Any], inputs: Given, factor: float = 3.0) -> list[torch.Tensor]:
    """Total, losses and both gradients of a multiple of the total."""
    total, losses = loss(*inputs)
    (factor * total).backward()
    hidden, head = inputs[:2]
    assert hidden.grad is not None and head.grad is not None
    return [total.detach(), losses, hidden.grad, head.grad]


def test_a_chunks_part_of_the_heads_gradient_is_added_in_place() -> None:
    """And a compiler sees that it is, but not how."""
    luck = torch.Generator().manual_seed(0)
    slope, hidden = (torch.randn(7, n, generator=luck).bfloat16() for n in (300, 16))
    total = torch.randn(300, 16, generator=luck)
    wanted = total + (slope.t() @ hidden).float()
    torch.library.opcheck(chunks.add_product, (total.clone(), slope, hidden))
    chunks.add_product(total, slope, hidden)
    assert torch.equal(total, wanted)


def test_it_is_cross_entropy_with_its_gradients(chunk: int) -> None:
    for found, wanted in zip(
        outcome(linear_cross_entropy, given()), outcome(by_logits, given()), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=5e-6)


def test_without_gradient_it_is_the_same(chunk: int) -> None:
    with torch.no_grad():
        total, losses = linear_cross_entropy(*given())
    wanted = outcome(by_logits, given())
    torch.testing.assert_close(total, wanted[0])
    torch.testing.assert_close(losses, wanted[1])


def test_under_autocast_products_are_bf16_and_losses_fp32(chunk: int) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, wanted = outcome(linear_cross_entropy, given()), outcome(by_logits, given())
    assert {tensor.dtype for tensor in found} == {torch.float32}
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-6, atol=1e-6)  # the same bf16 logits
    for a, b in zip(found[2:], wanted[2:], strict=True):
        assert float((a - b).norm() / b.norm()) < 0.01


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch itself
def test_compiled_it_is_the_same() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(linear_cross_entropy, dynamic=False, fullgraph=True)
    for found, wanted in zip(
        outcome(compiled, given()), outcome(linear_cross_entropy, given()), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=5e-6)


class Largest(TorchDispatchMode):
    """The most numbers in a tensor that was made."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return made


def test_the_logits_of_a_batch_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "ON_CPU", 10 * VOCABULARY)
    monkeypatch.setattr(chunks, "LEAST", 1)
    with Largest() as seen:
        outcome(linear_cross_entropy, given())
    assert seen.size == max(VOCABULARY * WIDTH, 10 * VOCABULARY)
    with Largest() as seen:
        outcome(by_logits, given())
    assert seen.size == POSITIONS * VOCABULARY


SMALL = {"vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 2, "intermediate_size": 32, "pad_token_id": 0}  # fmt: skip
ODD: dict[str, Callable[[], Any]] = {
    "a cap": lambda: Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=30.0),
    "a scale": lambda: CohereConfig(**SMALL, logit_scale=0.25),
    "a bias": lambda: PhiConfig(**SMALL),
}


@pytest.mark.parametrize("kind", [*KINDS, *ODD])
def test_a_model_is_asked_whether_its_logits_are_hidden_states_times_head(kind: str) -> None:
    """And its loss is that of transformers either way."""
    torch.manual_seed(3)
    made = AutoModelForCausalLM.from_config((KINDS | ODD)[kind]())
    before = [param.detach().clone() for param in made.parameters()]
    root = model.Root(made, NextToken(None))
    call = forward(root, tables.Compute(compile=False, precision="fp32"), 2, Mesh())
    linear = is_linear(call, NextToken(), root.objective)
    assert linear == (kind in KINDS)
    assert root.objective == NextToken(None)
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))
    if linear:
        root.objective = NextToken()
    root.eval()
    tokens = np.arange(22).reshape(2, 11)
    with torch.no_grad():
        ids = torch.from_numpy(tokens)
        wanted = made(input_ids=ids, labels=ids).loss
        assert float(call(tokens, 2)[1].mean()) == pytest.approx(float(wanted), rel=1e-5)


def by_logits_with_z(hidden: Any, head: Any, targets: Any, counts: Any) -> tuple[Any, Any]:
    logits = (hidden @ head.t()).float()
    total, losses = by_logits(hidden, head, targets, counts)
    return total + 0.01 * (counts * logits.logsumexp(1) ** 2).sum(), losses


def test_z_loss_is_added_with_its_gradients_and_to_no_loss(chunk: int) -> None:
    def chunked(*inputs: Any) -> Any:
        return linear_cross_entropy(*inputs, 0.01)

    wanted = outcome(by_logits_with_z, given())
    for found, other in zip(outcome(chunked, given()), wanted, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-5, atol=5e-5)
    with torch.no_grad():
        total, losses = chunked(*given())
    torch.testing.assert_close(total, wanted[0])
    torch.testing.assert_close(losses, wanted[1])


@pytest.mark.parametrize("chunked", [linear_cross_entropy, None])
def test_z_loss_of_a_model_by_plain_autograd(chunked: Any) -> None:
    torch.manual_seed(3)
    made = AutoModelForCausalLM.from_config(KINDS["llama-tied"]())
    tokens, counts = torch.arange(22).view(2, 11), torch.tensor([0.5, 0.25])
    total, _ = NextToken(chunked, z=0.1)(made, tokens, counts)
    total.backward()
    found = [param.grad.clone() for param in made.parameters()]
    made.zero_grad()
    logits = made(input_ids=tokens[:, :-1]).logits
    targets = tokens[:, 1:].flatten()
    losses = functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
    each = losses + 0.1 * logits.flatten(0, 1).logsumexp(1) ** 2
    (counts * each.view(2, 10).mean(1)).sum().backward()
    for one, param in zip(found, made.parameters(), strict=True):
        torch.testing.assert_close(one, param.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalize", ["rows", "weights"])
def test_rows_are_weighted_by_their_roles_however_they_are_cut(
    learner_of: Callable[..., Learner], batches_of: Callable[..., list[Batch]], normalize: str
) -> None:
    [batch] = batches_of(1, replayed=1)
    wanted = tables.Objective(fresh=0.5, replayed=2.0, normalize=normalize)
    shares = {"rows": [0.125] * 3 + [0.5], "weights": [0.5 / 3.5] * 3 + [2 / 3.5]}[normalize]
    assert weighted(wanted, batch).tolist() == pytest.approx(shares)
    oracle = learner_of(rows=1)
    parts = [oracle.gradient(batch[row : row + 1]) for row in range(4)]
    for rows in (3, 4):
        learner = learner_of(rows=rows, objective=wanted)
        metrics = learner.backward(batch)
        assert float(metrics.loss) == pytest.approx(float(oracle.backward(batch).loss), abs=1e-6)
        oracle.optimizer.zero_grad()
        for param, *each in zip(learner.params, *parts, strict=True):
            expected = sum(share * part for share, part in zip(shares, each, strict=True))
            torch.testing.assert_close(param.grad, expected, rtol=1e-4, atol=1e-6)
