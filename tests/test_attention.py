"""Attention of whole windows needs no mask; what is not sure to be causal without one keeps it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_compile import begun
from test_documents import MORE, call_of
from test_model import KINDS
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig, Qwen2Config

from treering import attention
from treering.asked import check_attention
from treering.methods.objectives import NextToken

SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "intermediate_size": 32}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, where it compiles
@pytest.mark.parametrize("documents", [False, True])
def test_a_compiled_step_has_no_mask_but_of_documents(
    place: Path, monkeypatch: pytest.MonkeyPatch, documents: bool
) -> None:
    counter, compile_ = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda module, **named: compile_(module, backend=counter, **named)
    )
    torch.compiler.reset()
    sets = ("model.attention='document'",) if documents else ()
    _, steps = begun(place, torch.device("cpu"), *sets)
    next(steps)
    (graph,) = counter.graphs
    attending = [node for node in graph.graph.nodes
                 if node.target is torch.nn.functional.scaled_dot_product_attention]  # fmt: skip
    assert len(attending) == 1
    for node in attending:
        assert node.kwargs["is_causal"] is not documents
        assert (node.kwargs["attn_mask"] is not None) == documents


@pytest.mark.parametrize("kind", [*KINDS, *MORE])
def test_the_loss_is_that_of_transformers_own_attention(kind: str) -> None:
    call = call_of((KINDS | MORE)[kind](), end=None)
    tokens = np.random.default_rng(0).integers(1, 300, (1, 41))
    call.root.eval()
    wanted = float(call(tokens, 1)[1])
    assert attention.own(call.root.model, 40) == (kind != "mistral")
    assert float(call(tokens, 1)[1]) == pytest.approx(wanted, rel=1e-6)
    check_attention(call, NextToken(None))
    assert attention.is_own(call.root.model) == (kind != "mistral")


@pytest.mark.parametrize(
    ("settings", "length", "sees"),
    [
        (lambda: MistralConfig(**SMALL, sliding_window=32), 32, True),
        (lambda: MistralConfig(**SMALL, sliding_window=32), 33, False),
        (lambda: MistralConfig(**SMALL, sliding_window=None), 4096, True),
        (lambda: Qwen2Config(**SMALL), 4096, True),
        (lambda: Qwen2Config(**SMALL, use_sliding_window=True, max_window_layers=1), 64, False),
        (lambda: Gemma2Config(**SMALL, head_dim=8), 64, False),
    ],
)
def test_layers_with_windows_keep_their_masks(settings: object, length: int, sees: bool) -> None:
    made = AutoModelForCausalLM.from_config(settings())  # type: ignore[operator]
    assert attention.sees_all(made, length) == sees
    assert attention.own(made, length) == sees


def test_a_model_that_would_see_what_is_to_come_goes_back() -> None:
    call = call_of(KINDS["llama"](), end=None, own=True)
    for layer in call.root.model.model.layers:
        layer.self_attn.is_causal = False  # its mask alone made it causal
    check_attention(call, NextToken(None))
    assert not attention.is_own(call.root.model)
    assert call.root.model.config._attn_implementation == "sdpa"


def test_others_are_lent_a_model_with_transformers_masks() -> None:
    """As they pad, which a model without masks would not see."""
    call = call_of(KINDS["llama"](), end=None, own=True)
    ids = torch.tensor([[0, 0, 5, 6, 7]])
    seen = torch.tensor([[0, 0, 1, 1, 1]])
    given = {"position_ids": torch.tensor([[0, 0, 0, 1, 2]]), "use_cache": False}
    with call.lent() as model, torch.no_grad():
        model.eval()
        padded = model(input_ids=ids, attention_mask=seen, **given).logits[0, 2:]
        alone = model(input_ids=ids[:, 2:], use_cache=False).logits[0]
    torch.testing.assert_close(padded, alone)
    assert attention.is_own(model)


def test_an_export_does_not_know_of_it(unbroken: Path) -> None:
    assert "treering" not in (unbroken / "model/config.json").read_text()
