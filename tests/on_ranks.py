"""What test_mesh.py has done on two ranks, as a program of its own: `on_ranks.py PLACE`.

Real processes: transformers reads weights in threads, which a forked torch cannot.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tiny
import torch
from test_model import KINDS
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from treering import build, config, pretrained, tables, weights
from treering.evaluate import score
from treering.mesh import Mesh, joined
from treering.spread import local, whole

CONVERTED = "neox"  # transformers renames its weights while it reads and writes them
CONTINUED = ("gpt2", "qwen3", CONVERTED)


def parts_of(place: Path, mesh: Mesh, *sets: str) -> build.Parts:
    recipe = config.load(place / "recipe.toml", sets=sets)
    return build.parts(recipe, build.data(recipe, place / "cache"), mesh)


def begin_with(place: Path, kind: str) -> str:
    return f"model={{from='{place / kind}'}}"


def true(place: Path, kind: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(place / kind, dtype=torch.float32)


def evaluation(place: Path, mesh: Mesh) -> None:
    """After an evaluation the weights are those of the optimizer; what is written is seen."""
    parts = parts_of(place, mesh)
    learner, text = parts.learner, parts.held_out[0]
    before = score(learner.forward, text).loss
    found = list(learner.forward.root.model.parameters())
    assert all(a is b for a, b in zip(found, learner.params, strict=True))
    assert all(isinstance(param, DTensor) for param in found)
    kept = [param.detach().clone() for param in learner.params]
    fill(learner.params, 1.5)
    after = score(learner.forward, text).loss
    assert abs(after - before) > 1e-3, (before, after)
    with learner.standing_in(kept):
        assert score(learner.forward, text).loss == before
    assert score(learner.forward, text).loss == after
    # Where nobody settles, the root holds gathered weights, and a write to them is lost.
    with torch.no_grad():
        learner.forward(text.tokens[: learner.forward.rows], learner.forward.rows)
    left = learner.forward.root.model.parameters()
    gathered = [param for param in left if not isinstance(param, DTensor)]
    assert gathered
    fill(gathered, 0.0)
    assert score(learner.forward, text).loss != after
    assert score(learner.forward, text).loss == after


@torch.no_grad()
def fill(params: list[torch.nn.Parameter], factor: float) -> None:
    for param in params:
        param.mul_(factor)


def products(place: Path, mesh: Mesh) -> None:
    """Inner products over all ranks, and what the ranks tell one another."""
    learner = parts_of(place, mesh).learner
    doubled = [2 * param.detach() for param in learner.params]
    wanted = sum(2 * whole(param.detach()).double().square().sum() for param in learner.params)
    found = learner.dot(learner.params, doubled)
    assert torch.allclose(found, torch.as_tensor(wanted), rtol=1e-12)
    assert mesh.gather(mesh.rank) == [0, 1]
    assert mesh.told(lambda: ["only here", mesh.rank]) == ["only here", 0]
    asked = [(mesh.any("stop", mesh.rank == 1), mesh.any("else", False)) for _ in range(2)]
    assert asked == [(False, False), (True, False)]
    try:
        mesh.together(lambda: 1 // mesh.rank)
    except ZeroDivisionError:
        assert mesh.rank == 0
    except SystemExit as ended:
        assert "rank 0: ZeroDivisionError" in str(ended)
    else:
        raise AssertionError("one rank failed, and the others went on")


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many numbers of each weight are read from files."""
    found: list[int] = []
    real = weights._fill

    def fill(weight: torch.Tensor, *more: object) -> None:
        found.append(local(weight).numel())
        real(weight, *more)  # type: ignore[arg-type]

    weights._fill = fill
    yield found
    weights._fill = real


def loading(place: Path, mesh: Mesh, kind: str) -> None:
    """Each rank reads its rows alone, and has the weights that transformers reads."""
    found = pretrained.described(str(place / kind))
    assert all(param.is_meta for param in found.parameters())
    assert not any(buffer.is_meta for buffer in found.buffers())
    with counted() as read:
        learner = parts_of(place, mesh, begin_with(place, kind)).learner
    wanted = dict(true(place, kind).named_parameters())
    assert learner.names == list(wanted)
    assert sum(read) == sum(local(param).numel() for param in learner.params)
    assert sum(read) < 0.7 * sum(param.numel() for param in wanted.values())
    for name, param in learner.weights.items():
        assert torch.equal(whole(param.detach()), wanted[name]), name


def writing(place: Path, mesh: Mesh, kind: str) -> None:
    """Files of at most 8 KiB with an index are what transformers reads."""
    parts = parts_of(place, mesh, begin_with(place, kind))
    learner, out = parts.learner, place / f"written-{kind}"
    found, words, usual = learner.forward.root.model, parts.tasks.tokenizer, weights.FILE
    weights.FILE = 8 * 2**10
    pretrained.export(found, words, out, card="", spread=learner.weights, mesh=mesh)
    weights.FILE = usual
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 2
    assert (out / "model.safetensors.index.json").exists()
    opened = dict(true(place, f"written-{kind}").named_parameters())
    for name, weight in true(place, kind).named_parameters():
        assert torch.equal(opened[name], weight), name


def main(place: Path) -> None:
    torch.set_num_threads(1)
    for replicate in (1, 2):
        with joined(tables.Mesh(replicate=replicate)) as mesh:
            evaluation(place, mesh)
            products(place, mesh)
    with joined(tables.Mesh()) as mesh:
        for kind in (kind for kind in KINDS if kind != CONVERTED):
            loading(place, mesh, kind)
        for kind in ("llama-tied", "gpt2"):
            writing(place, mesh, kind)
    for kind in CONTINUED:
        sets = begin_with(place, kind), "phases.0.tokens=640"
        tiny.run(place / "recipe.toml", place / f"two-{kind}", *sets)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
