"""The memory that a run takes on a rank, said before any of it is taken.

One step is done with torch's fake tensors, which have a shape and no memory, and what is alive at
its height is counted. So a model of any size is described on any machine.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedModel

from treering import adapter, build, model, shelf, tokenizer
from treering.config import Recipe
from treering.forward import Forward, name, precision, recompute
from treering.learner import Learner
from treering.mesh import Mesh, device, fit
from treering.objective import attending, objective
from treering.predictions import slot
from treering.spread import materialize
from treering.together import nested

FP32 = 4  # bytes
CPU = torch.device("cpu")  # of fake tensors; its attention keeps what a GPU's flash attention keeps


@dataclass(frozen=True)
class Footprint:
    """Bytes on rank 0, which holds no less than another, and what else a description tells.

    `held` from step to step by kind: weights, gradients (while a step lasts), the optimizer's and
    the update's tensors, spread over the ranks where they are shaped as weights are. `gathered`:
    whole weights of the blocks at work, and their gradient before it is spread. `activations`: what
    a step holds beyond that at its height. `host`: by kind, what lies in the host's memory;
    `staged`: a checkpoint's copy there. `recorded`: a sample's first prediction on the disk (DER).
    """

    parameters: int
    flops_per_token: float
    precision: str
    held: dict[str, int]
    gathered: int
    activations: int
    host: dict[str, int]
    staged: int
    recorded: int

    @property
    def peak(self) -> int:
        """On the device, at a step's height."""
        return sum(self.held.values()) + self.gathered + self.activations

    def on(self, there: torch.device) -> int:
        """The same, with what lies on the host where that is the device."""
        return self.peak + (sum(self.host.values()) if there.type == "cpu" else 0)


def footprint(recipe: Recipe, given: build.Data, world: int) -> Footprint:
    """What the recipe takes on each of `world` ranks, uncompiled: a compiled run takes less for
    activations. The model's loss is taken to be one of chunks of logits. Raises Invalid where the
    mesh does not fit, or predictions cannot be recorded."""
    _, shard = fit(recipe.mesh, world)
    rows = -(-recipe.rows // world) if recipe.batch.micro is None else recipe.micro_rows
    dtype = precision(recipe.compute.precision, device())
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake if recipe.model.from_ is None else nullcontext():
        begun = build.start(recipe, given, spread=True)
    build.check_der(recipe.objective.der, model.size(begun), world)
    if recipe.adapter:
        _left_out(adapter.adapted(recipe, begun))
    with fake:
        materialize(begun, CPU)
        parameters, flops_per_token = model.count(begun)[0], model.cost(begun, recipe.length)
        wanted = objective(recipe, tokenizer.end_of_text(given.tokenizer))
        attending(recipe, begun)
        root = model.Root(begun, wanted)
        call = Forward(root, root, Mesh(), dtype, rows)
        shares = [(-(-len(weight) // shard), *weight.shape[1:]) for weight in root.parameters()]
        largest, width = _largest(begun), FP32 if dtype is None else dtype.itemsize
        if shard > 1:
            for weight in root.parameters():
                weight.data = weight.data.to(dtype)  # as FSDP gathers them
        if recipe.compute.recompute != "none":
            for layer in model.blocks(begun):
                recompute(layer, selective=recipe.compute.recompute == "selective")
        calls = -(-recipe.rows // (rows * world))
        height = _height(call, shares, recipe.length, calls)
        every = _held(call, shares, recipe)
    gradients = every["weights"]  # of what is trained
    held = {kind: size for kind, size in every.items() if not kind.startswith(_on_host(recipe))}
    unsaved = _unsaved(recipe)
    activations = max(0, height - gradients)
    return Footprint(
        parameters=parameters,
        flops_per_token=flops_per_token,
        precision=name(recipe.compute.precision, dtype),
        held={"gradients": gradients, **_references(recipe, gradients), **held},
        gathered=gathered(*largest, width, activations) if shard > 1 else 0,
        activations=activations,
        host={kind: size for kind, size in every.items() if kind not in held},
        staged=sum(size for kind, size in every.items() if kind not in unsaved),
        recorded=_recorded(recipe, model.size(begun)),
    )


def _held(call: Forward, shares: Sequence[tuple[int, ...]], recipe: Recipe) -> dict[str, int]:
    """Bytes of what is kept from step to step, once the weights are those of one rank. What is
    shaped as weights are is spread as they are; anything else is whole on every rank."""
    whole, shapes = _kept(call, recipe), {weight.shape for weight in call.root.parameters()}
    for weight, share in zip(call.root.parameters(), shares, strict=True):
        weight.data = torch.empty(share)
    found = _kept(call, recipe)
    for kind, tensors in whole.items():
        if not all(tensor.shape in shapes for tensor in tensors):
            found[kind] = tensors
    return {kind: sum(tensor.nbytes for tensor in tensors) for kind, tensors in found.items()}


def _kept(call: Forward, recipe: Recipe) -> dict[str, list[torch.Tensor]]:
    learner = Learner(call, recipe.optimizer, recipe.guard, flops_per_token=0.0)
    own = shelf.update(recipe, recipe.update).state(learner)
    frozen = [weight.data for weight in call.root.parameters() if not weight.requires_grad]
    kept = learner.state() | ({"frozen weights": frozen} if frozen else {})
    kept |= {f"update.{name}": found for name, found in own.items()}
    for i, penalty in enumerate(shelf.penalties(recipe)):
        kept |= {f"penalty.{i}.{name}": found for name, found in penalty.state(learner).items()}
    if recipe.objective.teacher.weight:  # taken to be as large as the model
        every = call.root.parameters()
        kept["teacher"] = [p.detach().to(call.dtype or torch.float32) for p in every]
    return kept


def _on_host(recipe: Recipe) -> tuple[str, ...]:
    """How the kinds begin that lie in the host's memory: anchors and snapshots on the "cpu"."""
    found = []
    for depth, table in enumerate(nested(recipe)):
        of = "update." + "inner." * depth
        found += [of + "anchor"] if table.get("anchor") == "cpu" else []
        found += [of + "snapshot "] if table.get("snapshots") == "cpu" else []
    return tuple(found)


def _unsaved(recipe: Recipe) -> set[str]:
    """Kinds that no checkpoint holds, as they stay what they were at the start."""
    merges = (small := adapter.named(recipe)) is not None and small.merge == "phase"
    stays = {"frozen weights": not merges, "teacher": recipe.objective.teacher.from_ != "phase"}
    return {kind for kind, stay in stays.items() if stay}


def _references(recipe: Recipe, gradients: int) -> dict[str, int]:
    """Bytes of the gradients that A-GEM and GEM compare with, at most one for each corpus."""
    kinds = {*adapter.kinds(recipe.update)}
    many = len(recipe.corpora) if "gem" in kinds else int("agem" in kinds)
    return {"reference gradients": many * gradients} if many else {}


def _recorded(recipe: Recipe, vocabulary: int) -> int:
    """Bytes of what is recorded of a sample."""
    wanted = recipe.objective.der
    return slot(recipe.length, wanted.top, vocabulary) if wanted.weight else 0


def _left_out(begun: PreTrainedModel) -> None:
    """Take the memory from an adapter, which peft cannot make of fake tensors."""
    for module in begun.modules():
        for key, param in module.named_parameters(recurse=False):
            if param.requires_grad:
                module.register_parameter(key, nn.Parameter(param.to("meta")))


def _largest(begun: PreTrainedModel) -> tuple[int, int]:
    """Numbers of the largest block, and of the root without its blocks."""
    sizes = [sum(p.numel() for p in block.parameters()) for block in model.blocks(begun)]
    return max(sizes, default=0), sum(p.numel() for p in begun.parameters()) - sum(sizes)


def gathered(block: int, root: int, width: int, activations: int) -> int:
    """Bytes of whole weights at a step's height, with their gradients before these are spread: of a
    model with so many numbers in its largest block and its root, `width` bytes each.

    The root's own weights and two blocks (one is fetched while the other computes), and of one its
    gradient, also in fp32 for the sum. The root's gradient waits for the end, when no activations
    are there any more: what it takes beyond these.
    """
    at_a_block, at_the_end = (3 * width + FP32) * block, (width + FP32) * root - activations
    return width * root + max(at_a_block, at_the_end)


def _height(call: Forward, shares: Sequence[tuple[int, ...]], length: int, calls: int) -> int:
    """The most bytes alive in a step's forward and backward passes, beside the weights. Their
    gradients count as one rank's share, from when they are there."""
    weights = list(call.root.parameters())
    gradients: dict[int, torch.Tensor] = {}

    def keep(weight: torch.Tensor) -> None:
        weight.grad = None
        if id(weight) not in gradients:
            gradients[id(weight)] = torch.empty(sizes[id(weight)])

    sizes = {id(weight): share for weight, share in zip(weights, shares, strict=True)}
    for weight in (weight for weight in weights if weight.requires_grad):
        weight.register_post_accumulate_grad_hook(keep)  # type: ignore[no-untyped-call]
    call.root.train()
    with Alive(weights) as alive:
        for _ in range(min(calls, 2)):  # the second finds the gradients of the first
            total, _ = call(np.zeros((call.rows, length + 1), np.int64), call.rows)
            total.backward()  # type: ignore[no-untyped-call]
    return int(alive.most)


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that were made within and are alive, and the most there were; those of
    `before` do not count."""

    def __init__(self, before: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.most = 0
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()
        for tensor in before:
            self._known[tensor.untyped_storage()] = None

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = operation(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._note, made)
        return made

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = None
            weakref.finalize(storage, self._drop, storage.nbytes())
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)

    def _drop(self, size: int) -> None:
        self.now -= size
