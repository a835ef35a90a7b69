"""Layers that multiply in fp8: the arithmetic emulated, as no CPU has it."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from treering import fp8, model, tables
from treering.batch import Batch, refs
from treering.config import Invalid
from treering.forward import Forward
from treering.learner import Learner
from treering.mesh import Mesh
from treering.methods.objectives import NextToken
from treering.methods.updates import Reptile

absent = find_spec("torchao") is None
converts = pytest.mark.skipif(absent, reason="the extra treering[fp8] is not installed")
SIZES = tables.Model(width=32, depth=2, heads=2, mlp=48, tied=False)
LENGTH, VOCABULARY, ROWS = 16, 64, 4


def fresh() -> PreTrainedModel:
    return model.fresh(model.llama(SIZES, VOCABULARY, LENGTH), seed=0)


def learner_of(begun: PreTrainedModel) -> Learner:
    root = model.Root(begun, NextToken())
    call = Forward(root, root, Mesh(), torch.bfloat16, ROWS)
    made = Learner(call, tables.Optimizer(), tables.Guard(), flops_per_token=1.0)
    made.set_rate(1e-2)
    return made


def batch(step: int) -> Batch:
    ids = np.arange(LENGTH + 1) * np.arange(1, ROWS + 1)[:, None] % VOCABULARY
    return Batch(ids, refs([(0, i) for i in range(ROWS)]), np.zeros(ROWS, bool), step, 0, False)


@converts
def test_layers_multiply_in_fp8_and_keep_their_weights() -> None:
    begun = fresh()
    before = dict(begun.named_parameters())
    assert fp8.convert(begun, emulate=True) == 2 * 7
    after = dict(begun.named_parameters())
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)  # fp32, and the optimizer's own
    assert type(begun.get_output_embeddings()) is nn.Linear


@converts
def test_it_trains_close_to_bf16_and_reptile_moves_its_weights() -> None:
    plain, converted = learner_of(fresh()), learner_of(begun := fresh())
    fp8.convert(begun, emulate=True)
    update, other = Reptile(every=5, rate=0.5), Reptile(every=5, rate=0.5)
    for step in range(30):
        wanted, found = update(plain, batch(step)).loss, other(converted, batch(step)).loss
        assert abs(found - wanted) < 0.1
    assert found != wanted  # it is other arithmetic
    assert found < 0.5 * np.log(VOCABULARY)


@converts
def test_sizes_that_the_hardware_cannot_multiply_are_left_alone() -> None:
    odd = tables.Model(width=32, depth=1, heads=2, mlp=40, tied=False)
    begun = model.fresh(model.llama(odd, VOCABULARY, LENGTH), seed=0)
    assert fp8.convert(begun, emulate=True) == 4  # attention's, and none of the MLP's


def test_a_device_without_fp8_is_refused() -> None:
    with pytest.raises(Invalid, match="this device has no fp8; use 'bf16' or 'auto'"):
        fp8.check(torch.device("cpu"))
