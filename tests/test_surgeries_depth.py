"""Depth up-scaling: which layers are doubled, and what the deeper model computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from test_model import GATED, KINDS
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from treering import model, pretrained, tokenizer
from treering.config import Invalid
from treering.methods.surgeries import Depth, depth
from treering.methods.surgeries.rebuilt import tensors
from treering.protocols import Origin

ORIGIN = Origin(tokenizer.train(tiny.documents("en", 20), 300), None, 0)
DEEP = {**GATED, "num_hidden_layers": 3, "eos_token_id": 0}
TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
SLIDING = {"sliding_window": 4, "layer_types": TYPES, "use_sliding_window": True}
MORE = {
    "qwen2, by layer": lambda: Qwen2Config(**DEEP, **SLIDING),
    "gemma3": lambda: Gemma3TextConfig(**DEEP, head_dim=8, **SLIDING),
}
EVERY = KINDS | MORE


def made(settings: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(3)
    found = AutoModelForCausalLM.from_config(settings).eval()
    with torch.no_grad():
        for param in found.parameters():  # else norms are 1, biases 0: mistaken ones would not show
            param.add_(0.1 * torch.randn_like(param))
    return found


def logits(found: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad(), tiny.one_thread():
        return found.eval()(input_ids=torch.arange(48).view(3, 16), use_cache=False).logits


def test_which_layers_are_doubled() -> None:
    """Yi-9B, SOLAR, a model stacked on itself, each layer twice."""
    found = [i for i, _ in Depth((12, 28)).layers(32)]
    assert found == [*range(28), *range(12, 28), *range(28, 32)] and len(found) == 48
    assert [i for i, _ in Depth((8, 24)).layers(32)] == [*range(24), *range(8, 32)]
    assert [i for i, _ in Depth((0, 3)).layers(3)] == [0, 1, 2, 0, 1, 2]
    each = Depth((1, 3), order="each").layers(4)
    assert [i for i, _ in each] == [0, 1, 1, 2, 2, 3]
    assert [copied for _, copied in each] == [False, False, True, False, True, False]


@pytest.mark.parametrize("order", ["block", "each"])
@pytest.mark.parametrize("kind", EVERY)
def test_a_deeper_model_is_its_layers_done_in_that_order(kind: str, order: str) -> None:
    """The oracle: the given model, whose own layers are called again."""
    before = made(EVERY[kind]())
    surgery = Depth((0, 2), order=order)
    after = surgery(before, ORIGIN)
    count = before.config.num_hidden_layers
    assert after.config.num_hidden_layers == len(model.blocks(after)) == count + 2
    assert type(after) is type(before) and after.config is not before.config
    by_hand = made(after.config)
    by_hand.load_state_dict(after.state_dict())
    for (i, _), block in zip(surgery.layers(count), model.blocks(by_hand), strict=True):
        block.load_state_dict(model.blocks(before)[i].state_dict())
    assert torch.equal(logits(after), logits(by_hand))
    assert not torch.allclose(logits(after), logits(before))
    shared = [param.data_ptr() for param in after.parameters()]
    assert len(set(shared)) == len(shared)
    for i, block in enumerate(model.blocks(after)):
        indices = {part.layer_idx for part in block.modules() if "layer_idx" in vars(part)}
        assert indices <= {i}


@pytest.mark.parametrize("order", ["block", "each"])
@pytest.mark.parametrize("kind", EVERY)
def test_copies_that_are_the_identity_change_no_logit(kind: str, order: str) -> None:
    before = made(EVERY[kind]())
    after = Depth((0, 2), order=order, identity=True)(before, ORIGIN)
    assert len(model.blocks(after)) == before.config.num_hidden_layers + 2
    assert torch.equal(logits(after), logits(before))
    after.train()(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    zeros = [param for param in after.parameters() if param.ndim > 1 and not param.any()]
    assert zeros, "what is written to the residual stream is zero"
    assert all(param.grad is not None and param.grad.any() for param in zeros), "and learns"


def test_what_a_layer_is_by_its_place_is_doubled_with_it() -> None:
    after = Depth((0, 2))(made(MORE["gemma3"]()), ORIGIN)
    assert after.config.layer_types == [TYPES[i] for i in (0, 1, 0, 1, 2)]
    windows = [block.self_attn.sliding_window for block in model.blocks(after)]
    assert [window is None for window in windows] == [False, True, False, True, False]


def test_a_copy_that_cannot_be_the_identity_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "WRITERS", {"o_proj"})  # as if the other had a name of its own
    with pytest.raises(Invalid, match="identity = true: with copied layers LlamaForCausalLM does"):
        Depth((0, 1), identity=True)(made(KINDS["llama"]()), ORIGIN)


def test_a_layer_whose_arithmetic_is_by_its_number_is_no_identity_further_up() -> None:
    by_number = GPT2Config(
        vocab_size=320, n_embd=16, n_layer=2, n_head=2, n_positions=64,
        scale_attn_by_inverse_layer_idx=True,
    )  # fmt: skip
    with pytest.raises(Invalid, match="GPT2LMHeadModel does not compute what it did before"):
        Depth((0, 1), identity=True)(made(by_number), ORIGIN)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"window": (0, 3)}, r"window = \[0, 3\]: the model has 2 layers"),
        ({"window": (1, 1)}, r"window = \[1, 1\]: two numbers"),
        ({"window": (1,)}, r"window = \[1\]: two numbers"),
        ({"window": (0, 1), "order": "last"}, "order = 'last': must be 'block' or 'each'"),
    ],
)
def test_what_cannot_be_doubled_is_refused(table: dict[str, object], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        Depth(**table)(made(KINDS["llama"]()), ORIGIN)  # type: ignore[arg-type]


def test_a_model_without_memory_gives_another(tmp_path: Path) -> None:
    made(KINDS["llama-tied"]()).save_pretrained(tmp_path)
    before = pretrained.described(str(tmp_path))
    after = Depth((0, 2), identity=True)(before, ORIGIN)
    assert all(param.is_meta for param in after.parameters())
    assert model.count(after)[0] > model.count(before)[0]
    assert after.get_input_embeddings().weight is after.get_output_embeddings().weight
    real = Depth((0, 2), identity=True)(pretrained.load(str(tmp_path)), ORIGIN)
    assert {name: found.shape for name, found in tensors(after).items()} == {
        name: found.shape for name, found in tensors(real).items()
    }
