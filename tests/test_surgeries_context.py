"""Longer contexts: the frequencies are those of the papers, and the weights are as they were."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from test_model import GATED, KINDS
from test_surgeries_depth import MORE, ORIGIN, logits, made
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PreTrainedModel

from treering.config import Invalid
from treering.methods.surgeries import Context
from treering.methods.surgeries.rebuilt import tensors

WIDE = {**GATED, "head_dim": 64, "max_position_embeddings": 64, "eos_token_id": 0}


def frequencies(found: PreTrainedModel) -> torch.Tensor:
    return found.base_model.rotary_emb.inv_freq.double()


def plain(theta: float, dim: int = 64) -> torch.Tensor:
    """theta_j = b^(-2j/d)."""
    return torch.tensor([theta ** (-2 * j / dim) for j in range(dim // 2)], dtype=torch.float64)


def yarn(theta: float, factor: float, original: int, dim: int = 64) -> torch.Tensor:
    """arXiv 2309.00071, equations 17 to 23 with alpha 1 and beta 32; the ramp's ends are whole
    dimensions, as in its released code."""
    ends = [dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (32, 1)]  # fmt: skip
    low, high = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), dim - 1)
    made = []
    for j, each in enumerate(plain(theta, dim).tolist()):
        ramp = min(1.0, max(0.0, (j - low) / (high - low)))
        made.append(each / factor * ramp + each * (1 - ramp))
    return torch.tensor(made, dtype=torch.float64)


def test_the_frequencies_are_those_of_the_papers() -> None:
    before = made(LlamaConfig(**WIDE))
    for surgery, wanted, scale in (
        (Context(256, theta=500_000.0), plain(500_000), 1.0),
        (Context(256, scaling="linear"), plain(10_000) / 4, 1.0),
        (Context(256, scaling="yarn"), yarn(10_000, 4, 64), 0.1 * math.log(4) + 1),
        (Context(256, scaling="yarn", original=32), yarn(10_000, 8, 32), 0.1 * math.log(8) + 1),
        (Context(256, scaling="yarn", theta=1e6), yarn(1e6, 4, 64), 0.1 * math.log(4) + 1),
        (Context(256), plain(10_000), 1.0),
    ):
        after = surgery(before, ORIGIN)
        torch.testing.assert_close(frequencies(after), wanted, rtol=1e-5, atol=0)
        assert after.base_model.rotary_emb.attention_scaling == pytest.approx(scale)
        assert after.config.max_position_embeddings == 256
        for name, tensor in tensors(before).items():
            if "inv_freq" not in name:
                assert torch.equal(tensors(after)[name], tensor)


@pytest.mark.parametrize(
    "surgery",
    [Context(256, theta=5e5), Context(256, scaling="linear"), Context(256, scaling="yarn")],
    ids=["abf", "linear", "yarn"],
)
def test_frequencies_are_as_made_when_the_model_is_opened_again(
    surgery: Context, tmp_path: Path
) -> None:
    after = surgery(made(LlamaConfig(**WIDE)), ORIGIN)
    after.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(frequencies(opened), frequencies(after))
    assert torch.equal(logits(opened), logits(after))


def test_another_base_leaves_the_first_position_alone() -> None:
    """Nothing is turned there; everything after it is, against what it attends to."""
    before = made(LlamaConfig(**WIDE))
    was, found = logits(before), logits(Context(256, theta=5e5)(before, ORIGIN))
    assert torch.equal(found[:, 0], was[:, 0])
    assert not torch.equal(found[:, -1], was[:, -1])


def test_a_length_alone_changes_no_logit() -> None:
    before = made(KINDS["qwen3"]())
    assert torch.equal(logits(Context(8192)(before, ORIGIN)), logits(before))
    assert not torch.equal(logits(Context(8192, theta=1e6)(before, ORIGIN)), logits(before))


def test_the_rotated_share_of_a_head_stays() -> None:
    after = Context(8192, scaling="linear")(made(KINDS["neox"]()), ORIGIN)
    rope = after.config.rope_parameters
    assert rope == {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0,
                    "partial_rotary_factor": 0.25}  # fmt: skip


def test_layers_with_a_sliding_window_stay_as_they_are() -> None:
    before = made(MORE["gemma3"]())
    old = before.config.rope_parameters
    after = Context(2**20, theta=5e6)(before, ORIGIN).config.rope_parameters
    assert after["sliding_attention"] == old["sliding_attention"]
    assert after["full_attention"] == old["full_attention"] | {"rope_theta": 5e6}
    assert old["full_attention"]["rope_theta"] == 1e6, "the given model is as it was"


def test_a_context_that_was_extended_is_extended_again() -> None:
    once = Context(256, scaling="yarn")(made(LlamaConfig(**WIDE)), ORIGIN)
    twice = Context(512, scaling="yarn")(once, ORIGIN)
    torch.testing.assert_close(frequencies(twice), yarn(10_000, 8, 64), rtol=1e-5, atol=0)
    linear = Context(256, scaling="linear")(made(LlamaConfig(**WIDE)), ORIGIN)
    twice = Context(512, scaling="linear")(linear, ORIGIN)
    torch.testing.assert_close(frequencies(twice), plain(10_000) / 8, rtol=1e-5, atol=0)
    with pytest.raises(Invalid, match="scaling = 'linear': the model's RoPE is of type 'yarn'"):
        Context(512, scaling="linear")(once, ORIGIN)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"length": 0}, "length = 0: must be at least 1"),
        ({"length": 64, "theta": 1.0}, "theta = 1.0: must be more than 1"),
        ({"length": 64, "scaling": "ntk"}, "scaling = 'ntk': must be"),
        ({"length": 64, "original": 0}, "original = 0: must be"),
        ({"length": 2048, "scaling": "yarn"}, "length = 2048: not beyond 2048; give `original`"),
    ],
)
def test_what_makes_no_context_is_refused(table: dict[str, object], said: str) -> None:
    """The last: a config may name more positions than the model was trained at."""
    with pytest.raises(Invalid, match=said):
        Context(**table)(made(KINDS["llama"]()), ORIGIN)  # type: ignore[arg-type]


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_what_its_own_family_could_not_open_again_is_refused(scaling: str) -> None:
    """Phi-3 knows one kind of scaling alone, and says so where a config is read or written."""
    small = GATED | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    phi = made(Phi3Config(**small))
    with pytest.raises(Invalid, match="Phi3ForCausalLM cannot be made so"):
        Context(256, scaling=scaling, original=64)(phi, ORIGIN)


def test_a_model_without_rope_is_refused() -> None:
    with pytest.raises(Invalid, match="GPT2LMHeadModel has no RoPE"):
        Context(128)(made(KINDS["gpt2"]()), ORIGIN)
