"""Documents in a window: each by itself, whatever stands beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_model import KINDS
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
)

from treering import attention, build, config, model, records, tables
from treering.asked import check_attention
from treering.attention import positions
from treering.config import Invalid
from treering.forward import Forward, forward
from treering.mesh import Mesh
from treering.methods.objectives import NextToken

END = 0
MORE = {
    "mistral": lambda: MistralConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=32, sliding_window=4,
    ),
    "gemma": lambda: GemmaConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=32, head_dim=8,
    ),
}  # fmt: skip


def call_of(
    settings: Any, *, compile: bool = False, end: int | None = END, own: bool = False
) -> Forward:
    torch.manual_seed(3)
    made = AutoModelForCausalLM.from_config(settings)
    assert not own or attention.own(made, 64)
    compute = tables.Compute(compile=compile, precision="fp32")
    root = model.Root(made, NextToken(document_end=end))
    return forward(root, compute, 1, Mesh())


def loss(call: Forward, *documents: list[int]) -> float:
    """The sum of losses of a row that begins with an end and holds these documents, each with its
    end after it."""
    row = [END]
    for document in documents:
        row += [*document, END]
    call.root.eval()
    with torch.no_grad():
        return float(call(np.array([row]), 1)[1]) * (len(row) - 1)


def test_positions_begin_anew_after_each_end() -> None:
    tokens = torch.tensor([[7, 8, 0, 9, 9, 0, 0, 5], [0, 1, 2, 3, 4, 5, 6, 7]])
    found = positions(tokens, END).tolist()
    assert found == [[0, 1, 0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]


ONE, OTHER, THIRD = [5, 9, 17, 30, 4], [100, 7], [44, 3, 9, 12, 250, 6, 1]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, *MORE])
def test_a_documents_loss_does_not_depend_on_its_neighbours(kind: str, own: bool) -> None:
    """By transformers' masks, and by ours, where a model's layers see all that came before."""
    if own and kind == "mistral":
        assert not attention.own(call_of(MORE[kind]()).root.model, 64)
        pytest.skip("its layers see 4 tokens")
    call = call_of((KINDS | MORE)[kind](), own=own)
    alone = [loss(call, document) for document in (ONE, OTHER, THIRD)]
    assert loss(call, ONE, OTHER, THIRD) == pytest.approx(sum(alone), rel=1e-5)
    assert loss(call, THIRD, [8], ONE) == pytest.approx(
        alone[2] + loss(call, [8]) + alone[0], rel=1e-5
    )
    causal = call_of((KINDS | MORE)[kind](), end=None, own=own)
    assert abs(loss(causal, ONE, OTHER, THIRD) - sum(alone)) > 1e-4
    assert loss(causal, ONE) == pytest.approx(alone[0], rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, where it compiles
@pytest.mark.parametrize("own", [False, True])
def test_compiled_it_is_the_same(own: bool) -> None:
    torch._dynamo.reset()
    found, wanted = (call_of(KINDS["llama"](), compile=each, own=own) for each in (True, False))
    assert loss(found, ONE, OTHER) == pytest.approx(loss(wanted, ONE, OTHER), rel=1e-5)
    assert loss(found, OTHER, ONE) == pytest.approx(loss(wanted, OTHER, ONE), rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, where it compiles
@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_mask_in_blocks_is_the_same(compiled: bool) -> None:
    """As on CUDA, of which a CPU has the forward pass; compiled in one graph, for two rows of
    documents, and not again for others."""
    wanted = call_of(KINDS["llama"](), own=True)
    found = call_of(KINDS["llama"](), own=True)
    assert not attention.by_blocks(found.root.model, torch.device("cpu"))
    found.root.objective = replace(found.root.objective, blocks=True)
    counter = CompileCounterWithBackend("aot_eager")
    stance = "default"
    if compiled:
        torch._dynamo.reset()
        graph = torch.compile(found.root, backend=counter, dynamic=False, fullgraph=True)
        found = replace(found, call=graph)
    else:
        stance = "force_eager"
    with torch.compiler.set_stance(stance):
        for documents in ((ONE, OTHER), (OTHER, ONE)):
            assert loss(found, *documents) == pytest.approx(loss(wanted, *documents), rel=1e-5)
    assert counter.frame_count == compiled


@pytest.mark.parametrize(
    ("settings", "blocks"),
    [
        (lambda: LlamaConfig(hidden_size=64, num_attention_heads=4), True),
        (lambda: LlamaConfig(hidden_size=64, num_attention_heads=8), False),
        (lambda: LlamaConfig(attention_dropout=0.1), False),
        (lambda: GPT2Config(), False),
    ],
)
def test_on_cuda_models_attend_in_blocks_that_can(settings: Any, blocks: bool) -> None:
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(settings())
    assert attention.by_blocks(made, torch.device("cuda")) == blocks
    assert not attention.by_blocks(made, torch.device("cpu"))


def test_a_model_that_sees_across_is_refused() -> None:
    settings = MambaConfig(vocab_size=320, hidden_size=16, num_hidden_layers=1, state_size=4)
    call = call_of(settings)
    with pytest.raises(Invalid, match=r"model.attention = 'document': this model's layers see"):
        check_attention(call, NextToken(None, END))
    check_attention(call, NextToken(None))
    check_attention(call_of(KINDS["llama"]()), NextToken(None, END))


def test_a_run_has_it_by_its_recipe(place: Path, tmp_path: Path) -> None:
    """And learns something else by it."""
    tiny.run(place / "recipe.toml", tmp_path / "causal")
    tiny.run(place / "recipe.toml", tmp_path / "document", "model.attention='document'")
    assert tiny.weights(tmp_path / "causal") != tiny.weights(tmp_path / "document")
    recipe = config.load(place / "recipe.toml", sets=("model.attention='document'",))
    parts = build.parts(recipe, build.data(recipe, place / "cache"), Mesh())
    assert parts.learner.forward.root.objective.document_end is not None
    losses = [r["loss"] for r in records.read(tmp_path / "document") if r["kind"] == "step"]
    assert min(losses) < losses[0] - 1
