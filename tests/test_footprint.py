"""What a run is said to take is what it takes; it is said of models that fit nowhere here, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from treering import build, config, model, tables
from treering.config import Invalid
from treering.footprint import Footprint, footprint

pytestmark = pytest.mark.filterwarnings("ignore:update.every")  # of Reptile in short runs

WIDE = (
    "model={depth=4, width=320, heads=5, mlp=960, tied=false}", "length=64", "batch.tokens=512",
    "batch.micro=256", "phases.0.tokens=6400", "phases.1.tokens=6400", "evaluate.tokens=64",
    "replay.memory={kind='everything'}",
)  # fmt: skip
SEVEN = (  # Llama 2 7B, but for its vocabulary
    "model={depth=32, width=4096, heads=32, mlp=11008, tied=false}", "length=2048",
    "batch.tokens=65536", "batch.micro=2048", "replay.memory={kind='everything'}",
    "mesh.shard=8", "compute.precision='bf16'",
)  # fmt: skip


def described(place: Path, world: int, *sets: str) -> Footprint:
    recipe = config.load(place / "recipe.toml", sets=sets)
    return footprint(recipe, build.data(recipe, place / "cache"), world)


def measured(place: Path, world: int, *sets: str) -> list[dict[str, int]]:
    """Of each rank. Freed memory is given back at once, so that none is counted twice."""
    program = str(Path(__file__).with_name("memory_on_ranks.py"))
    begin = ["-m", "torch.distributed.run", f"--nproc-per-node={world}"] if world > 1 else []
    asked = [sys.executable, *begin, program, str(place / "recipe.toml"), *sets]
    here = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    told = subprocess.run(asked, capture_output=True, text=True, check=True, env=here)
    found: list[dict[str, int]] = json.loads(told.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_what_a_run_is_said_to_take_is_what_it_takes(place: Path, world: int) -> None:
    said = described(place, world, *WIDE)
    for found in measured(place, world, *WIDE):
        peak = found.pop("peak")
        held = {name.removeprefix("update."): size for name, size in said.held.items()}
        assert held.keys() == found.keys()
        for name, size in found.items():
            assert size == pytest.approx(held[name], rel=0.1), name
        assert peak == pytest.approx(said.peak, rel=0.25)


def test_the_root_of_a_model_with_many_words_is_gathered_whole(place: Path, tmp_path: Path) -> None:
    """Its gradient waits for the end of the backward pass: it and the activations, few here, are
    not there at once."""
    words = build.data(config.load(place / "recipe.toml"), place / "cache").tokenizer
    sizes = tables.Model(depth=2, width=256, heads=4, mlp=512, tied=False)
    model.fresh(model.llama(sizes, 30_000, 64), seed=0).save_pretrained(tmp_path / "begun")
    words.save_pretrained(str(tmp_path / "begun"))
    few = ("length=16", "batch.tokens=128", "batch.micro=16")
    sets = (f"model={{from='{tmp_path / 'begun'}'}}", *WIDE[1:], *few)
    said, found = described(place, 2, *sets), measured(place, 2, *sets)
    for each in found:
        assert each["peak"] == pytest.approx(said.peak, rel=0.1)


def test_seven_billion_parameters_are_described_without_their_memory(place: Path) -> None:
    said = described(place, 8, *SEVEN)
    assert said.parameters > 6e9
    assert said.held["weights"] == pytest.approx(4 * said.parameters / 8, rel=1e-3)
    assert said.held["update.anchor"] == said.held["gradients"] == said.held["weights"]
    assert said.staged == pytest.approx(4 * said.held["weights"], rel=1e-3)


def test_what_is_recomputed_is_not_kept(place: Path) -> None:
    shallow = (*SEVEN, "model.depth=4")
    none, selective, full = (
        described(place, 8, *shallow, f"compute.recompute='{kind}'")
        for kind in ("none", "selective", "full")
    )
    assert none.held == selective.held == full.held
    assert none.activations > 1.3 * selective.activations > 1.3 * full.activations
    assert full.activations > 4 * 2048 * 4096 * 2  # at least each layer's input, in bf16


def test_more_micro_batches_find_the_gradients_of_the_first(place: Path) -> None:
    one, two = (described(place, 1, *WIDE, f"batch.micro={micro}") for micro in (512, 256))
    assert two.activations < one.activations
    assert one.held == two.held


def test_a_pretrained_model_is_described_by_its_config(place: Path, tmp_path: Path) -> None:
    tiny.run(place / "recipe.toml", tmp_path / "run")
    said = described(place, 2, f"model={{from='{tmp_path / 'run/model'}'}}")
    assert said.held["weights"] == described(place, 2).held["weights"] > 0


def test_the_precision_is_named_as_the_records_name_it(place: Path) -> None:
    for precision in ("fp32", "bf16", "fp8"):
        assert described(place, 1, f"compute.precision='{precision}'").precision == precision


def test_a_mesh_that_does_not_fit_is_refused(place: Path) -> None:
    with pytest.raises(Invalid, match="needs 8 processes, there are 2"):
        described(place, 2, *SEVEN)


@pytest.mark.parametrize(("kind", "many"), [("agem", 1), ("gem", 3)])
def test_gradients_that_are_compared_with_are_held_and_not_saved(
    place: Path, kind: str, many: int
) -> None:
    plain, said = (
        described(place, 1, f"update={{kind='{each}'}}", "replay.share=0.25")
        for each in ("descent", kind)
    )
    assert said.held["reference gradients"] == many * plain.held["gradients"]
    assert said.staged == plain.staged and said.peak > plain.peak


def test_what_lies_on_the_host_is_not_on_the_device(place: Path) -> None:
    reptile = "update={kind='reptile', every=5, rate=0.5, anchor='%s'}"
    near, far = (described(place, 1, reptile % where) for where in ("device", "cpu"))
    assert far.host == {"update.anchor": near.held["update.anchor"]} and not near.host
    assert far.peak == near.peak - near.held["update.anchor"] and far.staged == near.staged
    latest = "update={kind='latest', every=2, last=3, snapshots='cpu', inner={kind='reptile', "
    said = described(place, 1, latest + "every=5, rate=0.5, anchor='cpu'}}")
    assert len(said.host) == 4 and {*said.host.values()} == {said.held["weights"]}


def test_only_what_changes_is_staged(place: Path) -> None:
    """Not what lies beside an adapter until it is merged, nor a teacher that stays the same."""

    def lora(merge: str) -> str:
        return f"adapter={{kind='lora', rank=2, merge='{merge}'}}"

    plain = "update={kind='descent'}"
    end, phase = (described(place, 1, plain, lora(merge)) for merge in ("end", "phase"))
    assert end.held == phase.held
    assert phase.staged == sum(phase.held.values()) - phase.held["gradients"]
    assert end.staged == phase.staged - end.held["frozen weights"]
    taught = "objective.teacher={weight=1.0, from='%s'}"
    start, last = (described(place, 1, plain, taught % of) for of in ("start", "phase"))
    assert last.staged == start.staged + start.held["teacher"]


def test_directions_are_whole_on_every_rank(place: Path) -> None:
    coso = "update={kind='coso', rank=4, sketch=4, side='both'}"
    one, two = (described(place, world, coso).held for world in (1, 2))
    own = [kind for kind in one if "rows." in kind or "columns." in kind]
    assert len(own) == 6 and all(two[kind] == one[kind] for kind in own)
    assert two["weights"] == pytest.approx(one["weights"] / 2, rel=0.01)


def test_a_teacher_is_as_large_as_the_model_whatever_of_it_is_trained(place: Path) -> None:
    taught = "objective.teacher.weight=1.0"
    frozen = "optimizer.groups=[{match='layers', last=0, rate=0.0}]"
    every, some = (described(place, 1, taught, *more) for more in ((), (frozen,)))
    assert some.held["weights"] < every.held["weights"]
    assert some.held["teacher"] == every.held["teacher"]
