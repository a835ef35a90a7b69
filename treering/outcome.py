"""The model of a run as it stands: scored again, or exported."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from treering import (
    adapter,
    build,
    checkpoint,
    config,
    downstream,
    pretrained,
    shelf,
    surgery,
    tables,
    tokenizer,
    weights,
)
from treering.analysis import forgetting
from treering.atomic import replacing
from treering.config import Invalid, Recipe, Table
from treering.downstream import TaskScore
from treering.evaluate import Score, score
from treering.folder import check_writable
from treering.forward import Forward
from treering.learner import Learner, tensors
from treering.mesh import Mesh, joined
from treering.model import Root
from treering.objective import forward as rooted
from treering.objective import objective
from treering.records import ANNEALED, read
from treering.report.card import card, ours
from treering.tables import Evaluate


@dataclass(frozen=True)
class Which:
    """Of a run's weights those of its newest sound checkpoint, or of the one after `step`;
    `branch`: those that the update keeps beside the trained ones by that name."""

    branch: str | None = None
    step: int | None = None


NEWEST = Which()


def recipe_of(
    source: str, recipe: str | None, data: str | None, sets: tuple[str, ...]
) -> Recipe | None:
    """The recipe that a source is to be scored by: the named one, or, where there are `sets`, a
    run's own with these laid over it; else None, as it is then. Raises Invalid for what would have
    no effect."""
    if recipe is not None:
        return config.load(recipe, data=data, sets=sets)
    own = Path(source) / "recipe.toml"
    if data is not None:
        raise Invalid(f"--data {data}: is where the files of --recipe are; name that, too")
    if sets and not own.exists():
        raise Invalid(f"--set {sets[0]}: {source} has no recipe of its own; name it with --recipe")
    return config.load(own, sets=sets) if sets else None


def scores(
    source: str, recipe: Recipe | None, cache: Path, which: Which = NEWEST
) -> dict[str, Score]:
    """Held-out loss of every corpus of the recipe, for a run, a model folder or a hub id.

    The same windows, precision and code as in a run, so a run's row 0 is met to the digit. Without
    a recipe a run's own is taken.
    """
    folder, is_run = _source(source, which)
    if recipe is None:
        if not is_run:
            raise Invalid(f"{source}: is no run folder; name the corpora with --recipe RECIPE")
        recipe = config.load(folder / "recipe.toml")
    if not is_run:
        recipe = surgery.without(recipe, source)
    data = build.data(recipe, cache, folder if is_run else None)
    found = _of_run(folder, recipe, data, which)[0] if is_run else build.start(recipe, data)
    with joined(tables.Mesh()) as mesh:
        end = tokenizer.end_of_text(data.tokenizer)
        forward = rooted(recipe, found, end, mesh)
        return {text.corpus: score(forward, text) for text in build.held_outs(recipe, data)}


def task_scores(
    source: str, recipe: Recipe | None, given: Table, cache: Path, which: Which = NEWEST
) -> list[TaskScore]:
    """Downstream tasks of a run, a model folder or a hub id, as a run's own records have them.

    given: keys of `[evaluate]`, before those of the recipe, or of the run's own.
    """
    folder, is_run = _source(source, which)
    if recipe is None and is_run:
        recipe = config.load(folder / "recipe.toml")
    wanted = dataclasses.replace(recipe.evaluate if recipe else Evaluate(), **given)
    downstream.find(wanted)
    if is_run:
        assert recipe is not None
        data = build.data(recipe, cache, folder)
        found, words = _of_run(folder, recipe, data, which)[0], data.tokenizer
    else:
        remote_code = recipe is not None and recipe.model.remote_code
        found = pretrained.load(source, remote_code=remote_code)
        words = tokenizer.load(source, remote_code=remote_code)
    found = found.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    return list(downstream.load(wanted, words).scores(found).scores)


def export(run: str, out: Path, cache: Path, which: Which = NEWEST) -> int:
    """Write the model of a run as a Hugging Face folder, its card with what was recorded until
    then. Returns its step."""
    folder = Path(run)
    if not (folder / "records.jsonl").exists():
        raise Invalid(f"{run}: is no run folder (it has no records.jsonl)")
    if out.exists() and any(out.iterdir()) and not ours(out):
        raise Invalid(f"--out {out}: holds files that are no export; name another folder")
    check_writable(out.parent)
    recipe = config.load(folder / "recipe.toml")
    data = build.data(recipe, cache, folder)
    found, step = _of_run(folder, recipe, data, which)
    until = [record for record in read(folder) if record.get("step", 0) <= step]
    text = card(recipe, forgetting.summary(until, which.branch), which.branch)
    out.parent.mkdir(parents=True, exist_ok=True)
    pretrained.export(found, data.tokenizer, out, card=text)
    return step


def finish(recipe: Recipe, data: build.Data, learner: Learner, out: Path) -> Table:
    """Export a finished run's model and write its summary, the last of its files: where it is, the
    run is finished. All ranks must call it."""
    forward = learner.forward
    mesh = forward.mesh
    summary: Table = mesh.told(lambda: forgetting.summary(read(out)))
    text = card(recipe, summary)
    found = adapter.merged(recipe, forward.root.model)
    spread = None if mesh.grid is None else weights.stored(found)
    pretrained.export(found, data.tokenizer, out / "model", card=text, spread=spread, mesh=mesh)
    if mesh.rank == 0:
        with replacing(out / "summary.json") as beside:
            text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
            beside.write_text(text, encoding="utf-8")
    return summary


def _source(source: str, which: Which) -> tuple[Path, bool]:
    """The folder, and whether it is a run's. Raises Invalid for a choice of what has none."""
    is_run = (Path(source) / "records.jsonl").exists()
    if which != NEWEST and not is_run:
        said = f"--step {which.step}" if which.branch is None else f"--branch {which.branch!r}"
        raise Invalid(f"{said}: {source} is no run folder, and has one model alone")
    return Path(source), is_run


def _of_run(
    folder: Path, recipe: Recipe, data: build.Data, which: Which
) -> tuple[PreTrainedModel, int]:
    """A run's model with the weights that were chosen, and their step."""
    path, numbers = _checkpoint(folder / "checkpoints", which.step)
    found = adapter.adapted(recipe, build.start(recipe, data))
    if which.branch is None:
        _put_trained(found, path, recipe, folder)
    else:
        _put_branch(found, path, numbers, recipe, data, which.branch)
    return adapter.merged(recipe, found), int(numbers["step"])


def _put_trained(found: PreTrainedModel, path: Path, recipe: Recipe, folder: Path) -> None:
    """Fill a run's model with the weights of a checkpoint. Raises Invalid for another model."""
    weights = adapter.trained(recipe, found)
    has = {n: size for n, size in checkpoint.sizes(path).items() if n.startswith("weights/")}
    wants = {n: tuple(w.shape) for n, w in weights.items() if n.startswith("weights/")}
    for name in sorted(has.keys() | wants.keys()):
        if has.get(name) != wants.get(name):
            raise Invalid(
                f"{folder}: its {name.removeprefix('weights/')} is {has.get(name)}, that of the "
                f"recipe's model {wants.get(name)}; name a recipe with the run's own model"
            )
    checkpoint.load(path, weights, Mesh())


def _put_branch(
    found: PreTrainedModel, path: Path, numbers: Table, recipe: Recipe, data: build.Data, name: str
) -> None:
    """Fill a run's model with the weights of a branch, as of a checkpoint."""
    root = Root(found, objective(recipe, tokenizer.end_of_text(data.tokenizer)))
    call = Forward(root, root, Mesh(), None, 1)
    learner = Learner(call, recipe.optimizer, recipe.guard, flops_per_token=0.0)
    update = shelf.update(recipe, recipe.update)
    every = tensors(learner, update).items()
    own = {name: tensor for name, tensor in every if name.startswith("update.")}
    checkpoint.load(path, own, Mesh())
    update.restore(numbers["update"])
    branches = update.branches()
    if name not in branches:
        if name == ANNEALED:
            annealed = path.parents[1] / ANNEALED
            raise Invalid(f"--branch {name}: is a run of its own; name one of {annealed}")
        known = ", ".join(branches) or "none; see [update] 'average' and 'latest'"
        raise Invalid(f"--branch {name!r}: the run's branches are {known}")
    learner.put(branches[name])


def _checkpoint(folder: Path, step: int | None) -> tuple[Path, Table]:
    """The checkpoint after a step, or the newest sound one, and its numbers."""
    if step is None:
        newest = checkpoint.newest(folder)
        if newest is None:
            raise Invalid(f"{folder.parent}: has no sound checkpoint yet; let `treering run` go on")
        return newest
    there = dict(checkpoint.found(folder))
    if step not in there:
        steps = ", ".join(map(str, sorted(there))) or "none"
        raise Invalid(f"--step {step}: {folder.parent} has checkpoints of the steps {steps}; see "
                      "[checkpoint]")  # fmt: skip
    path = there[step]
    if (damage := checkpoint.damaged(path)) is not None:
        raise Invalid(f"--step {step}: {path} is damaged: {damage}; name another")
    return path, checkpoint.numbers_of(path)
