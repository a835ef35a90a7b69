"""`treering demo`: three arms over three corpora, their comparison, and what the models say."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

from treering import conduct, study
from treering.demo.texts import collect
from treering.engines import local
from treering.engines.process import Job
from treering.report import comparison

PROMPTS = {
    "english": "The function returns the",
    "python": "    def __init__(self",
    "cpp": "template <",
}
WORDS = 24  # tokens of a sample


def demo(out: Path, console: Console, *, cache: str | None = None) -> int:
    """Collect the texts, run the study, show the comparison and samples; the exit code. A second
    time it shows what is there."""
    names = ("english", "python", "cpp")
    if not all((out / "text" / f"{name}.jsonl").exists() for name in names):
        counts = collect(out / "text")
        found = ", ".join(f"{count} of {name}" for name, count in counts.items())
        console.print(f"documents found on this machine: {found}", highlight=False)
    with resources.as_file(resources.files("treering.demo")) as here:
        cells = study.load(here / "study.toml", out / "text")
    jobs = min(len(cells), os.cpu_count() or 1)

    def engine(
        given: list[Job], watch: Callable[[list[str]], None]
    ) -> Generator[tuple[Job, int], None, None]:
        return local.run(given, jobs, watch)

    threads = max(1, (os.cpu_count() or 1) // jobs)
    failed = conduct.perform(cells, out / "study", engine, console, cache=cache, threads=threads)
    if failed:
        console.print(f"failed: {', '.join(failed)}; see {out / 'study/logs'}", highlight=False)
        return 1
    comparison.show(conduct.conclude(cells, out / "study"), console)
    for line in samples(cells, out / "study"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"\nthe report is {out / 'study/report.html'}", highlight=False)
    return 0


def samples(cells: Sequence[study.Cell], out: Path) -> Iterator[str]:
    """How models go on from a few words: the one before training, and each arm's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from treering import model

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folders = {cell.group: conduct.run_of(cell, out) / "model" for cell in cells}
    models: dict[str, Any] = {
        name: AutoModelForCausalLM.from_pretrained(folder) for name, folder in folders.items()
    }
    first, *_ = models.values()
    models = {"before training": model.fresh(first.config, cells[0].recipe.seed), **models}
    words = AutoTokenizer.from_pretrained(next(iter(folders.values())))
    for corpus, prompt in PROMPTS.items():
        yield f"\n{corpus}: {prompt!r} goes on as"
        for name, found in models.items():
            yield f"  {name:18}{_sample(found, words, prompt)}"


def _sample(model: Any, words: Any, prompt: str) -> str:
    """What a model says after a prompt, on one line; the same every time."""
    import torch

    given = words(prompt, return_tensors="pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = model.generate(**given, do_sample=True, top_k=20, max_new_tokens=WORDS)
    return " ".join(words.decode(made[0, given["input_ids"].shape[1] :]).split())
