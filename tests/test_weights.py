"""Files of weights: what a model's folder has of it, and where it lies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Glm4MoeConfig, PreTrainedModel

from treering import pretrained, weights
from treering.mesh import Mesh

SIZES = {"hidden_size": 16, "intermediate_size": 32, "moe_intermediate_size": 16, "head_dim": 8,
         "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
         "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}  # fmt: skip


@pytest.fixture
def experts() -> PreTrainedModel:
    """A mixture of experts whose router has a buffer that is kept, beside those that are not."""
    torch.manual_seed(0)
    settings = Glm4MoeConfig(vocab_size=64, max_position_embeddings=32, first_k_dense_replace=1,
                             **SIZES)  # fmt: skip
    made: PreTrainedModel = AutoModelForCausalLM.from_config(settings)  # type: ignore[no-untyped-call]
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    made.get_buffer(bias).copy_(torch.arange(4.0) / 8)
    return made


def test_what_is_stored_are_parameters_and_buffers_that_are_kept(experts: PreTrainedModel) -> None:
    found = weights.stored(experts)
    assert found.keys() == experts.state_dict().keys()
    assert len(found) == len(list(experts.parameters())) + 1
    assert {name for name, _ in experts.named_buffers()} - found.keys(), "frequencies are not"


def test_a_buffer_goes_through_an_export_by_ranks(experts: PreTrainedModel, tmp_path: Path) -> None:
    """Left out, it would come back as zeros, without a word. A folder needs no settings of how to
    generate; many of the hub have none."""
    weights.write(tmp_path, weights.stored(experts), Mesh())
    experts.config.save_pretrained(tmp_path)
    begun = pretrained.described(str(tmp_path))
    wanted, found = weights.stored(experts), weights.stored(begun)
    assert wanted.keys() == found.keys()
    begun.to_empty(device="cpu")
    weights.read(tmp_path, weights.stored(begun))
    for name, tensor in weights.stored(begun).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=0)
