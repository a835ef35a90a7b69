"""Downstream tasks: lm-eval in this process, on a model as it stands.

    Evaluate -find-> lm-eval's index -load-> Tasks -scores-> Scored: a TaskScore for each metric

A task is a definition of lm-eval's own kind, taken from the folder that the user names, else from
lm-eval itself. Its files are relative to `task_data`, as for lm-eval's own command they are to the
folder in which it is started. Numbers are those of that command on the exported model in fp32.

lm-eval takes what it is given for its own: it seeds every generator, puts the model into another
mode and the tokenizer out of its own. All that is as before afterwards, so that training goes on
as if nothing had been asked.
"""

from __future__ import annotations

import copy
import io
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treering.config import Invalid
from treering.schema import near
from treering.tables import Evaluate

SEED = 1234  # of numpy, torch and the choice of examples, as in lm-eval's own command


@dataclass(frozen=True)
class TaskScore:
    """A metric of a task (or group of tasks) over its first `n` documents."""

    task: str
    metric: str
    value: float
    stderr: float | None  # None where lm-eval knows none
    n: int


@dataclass(frozen=True)
class Scored:
    """The scores of a model, and the tokens that it was shown for them."""

    scores: tuple[TaskScore, ...] = ()
    tokens: int = 0


@dataclass(frozen=True)
class Tasks:
    """The tasks that a recipe names, read and ready; none where it names none."""

    wanted: Evaluate
    tokenizer: PreTrainedTokenizerBase
    loaded: Any  # lm-eval's TaskDict
    members: dict[str, list[str]]  # of a group or tag

    def scores(
        self, model: PreTrainedModel, before_each: Callable[[], None] = lambda: None
    ) -> Scored:
        """Every metric of every task, by lm-eval; `before_each` is called before each call of the
        model, and may raise."""
        if not self.wanted.tasks:
            return Scored()
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        assert model.dtype == torch.float32
        with _as_before(model), _counted(model, before_each) as tokens, _quiet():
            random.seed(0)
            np.random.seed(SEED)
            torch.manual_seed(SEED)
            for task in self.loaded["tasks"].values():
                task.set_fewshot_seed(seed=SEED)
            words = copy.deepcopy(self.tokenizer)
            lm = HFLM(pretrained=model, tokenizer=words, batch_size=self.wanted.task_batch)
            limit = self.wanted.task_limit
            with _heard() as warned:
                found = evaluate(lm=lm, task_dict=self.loaded, limit=limit, log_samples=False)
        if warned:
            more = f" (and {len(warned) - 1} more of lm-eval's warnings)" if warned[1:] else ""
            warnings.warn(f"evaluate.tasks: {warned[0].getMessage()}{more}", stacklevel=2)
        named = (part for name in self.wanted.tasks for part in self._with_numbers(name, found))
        scores = [score for name in named for score in _read(name, found["results"][name])]
        return Scored(tuple(scores), sum(tokens))

    def _with_numbers(self, name: str, found: Any) -> list[str]:
        """A task or group itself; the members of a tag, or of a group that has no mean."""
        if _read(name, found["results"].get(name, {})):
            return [name]
        parts = [self._with_numbers(member, found) for member in self.members.get(name, [])]
        return [name for part in parts for name in part]


def find(wanted: Evaluate) -> Any:
    """lm-eval's index (a TaskManager) of the wanted tasks, or None where none is wanted. Raises
    Invalid where lm-eval is not installed, a task or folder is not there, a number out of range."""
    if not wanted.tasks:
        return None
    if any(find_spec(name) is None for name in ("lm_eval", "accelerate")):
        raise Invalid(
            f"evaluate.tasks = {list(wanted.tasks)}: lm-eval is not installed; "
            "pip install 'treering[eval]'"
        )
    for key, count in (("task_limit", wanted.task_limit), ("task_batch", wanted.task_batch)):
        if count is not None and count < 1:
            raise Invalid(f"evaluate.{key} = {count}: must be at least 1")
    for key, path in (("task_folder", wanted.task_folder), ("task_data", wanted.task_data)):
        if path is not None and not Path(path).is_dir():
            raise Invalid(f"evaluate.{key} = {path!r}: no such folder; correct the path")
    from lm_eval.tasks import TaskManager

    index = TaskManager(include_path=wanted.task_folder, include_defaults=False)
    own = index.all_tasks
    if not set(wanted.tasks) <= set(own):  # lm-eval's own are 14,000 files: seconds
        index = TaskManager(include_path=wanted.task_folder)
    for name in wanted.tasks:
        if name not in index.all_tasks:
            hint = near(name, own) if own else "; see `lm-eval ls tasks`, or give task_folder"
            raise Invalid(f"evaluate.tasks = {name!r}: no such task{hint}")
    return index


def load(wanted: Evaluate, tokenizer: PreTrainedTokenizerBase) -> Tasks:
    """Read the documents of the wanted tasks. Raises Invalid as `find` does, and where one cannot
    be read."""
    index = find(wanted)
    if index is None:
        return Tasks(wanted, tokenizer, None, {})
    try:
        with _quiet(), chdir(wanted.task_data or "."):
            loaded = index.load(list(wanted.tasks))
    except Exception as error:  # as many ways to fail as there are tasks
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise Invalid(
            f"evaluate.tasks = {list(wanted.tasks)}: cannot be loaded ({why}); "
            "task_data names the folder of their files"
        ) from error
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    tags = {name: sorted(index.task_index[name].tags) for name in index.all_tags}
    return Tasks(wanted, tokenizer, loaded, tags | loaded["group_map"])


def _read(name: str, results: dict[str, Any]) -> list[TaskScore]:
    """The numbers of a task among what lm-eval says of it: `acc,none`, where none is the filter."""
    scores = []
    for key, value in results.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        spread = results.get(f"{metric}_stderr,{filtered}")
        stderr = float(spread) if isinstance(spread, float | int) else None  # else it is "N/A"
        whole = metric if filtered == "none" else key
        scores.append(TaskScore(name, whole, float(value), stderr, results["sample_len"]))
    return scores


@contextmanager
def _as_before(model: PreTrainedModel) -> Iterator[None]:
    """Undo what lm-eval does to the process and to the model beside computing with it."""
    modes = [(module, module.training) for module in model.modules()]
    states = random.getstate(), np.random.get_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)  # as in lm-eval's command: not all tasks can
    try:
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        random.setstate(states[0])
        np.random.set_state(states[1])
        for module, training in modes:
            module.training = training


@contextmanager
def _counted(model: PreTrainedModel, before_each: Callable[[], None]) -> Iterator[list[int]]:
    """The tokens of each call of the model, padding included."""
    calls: list[int] = []

    def count(_: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        before_each()
        calls.append((inputs[0] if inputs else named["input_ids"]).numel())

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


@contextmanager
def _heard() -> Iterator[list[logging.LogRecord]]:
    """What lm-eval warns of, such as each context that it cuts."""
    logger, handler = logging.getLogger("lm_eval"), BufferingHandler(sys.maxsize)
    handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        logger.removeHandler(handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of lm-eval and datasets, which would tear the run's own line."""
    with redirect_stderr(io.StringIO()):
        yield
