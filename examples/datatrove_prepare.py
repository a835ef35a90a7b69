"""Text to a store in shards by datatrove, filtered and without duplicates: a pipeline to be edited.

    pip install "treering[data]" && python examples/datatrove_prepare.py

Started again it does the tasks that are not done. OUT is then a corpus of a recipe, as is
OUT-validation; until all tasks are done it does not open.
"""

from functools import partial

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup.exact_dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
)
from datatrove.pipeline.filters import LambdaFilter
from datatrove.utils.hashing import HashConfig

from treering import tokenizer
from treering.pipeline import Shards, Texts

TEXTS = ["texts"]  # files and folders, as `treering prepare` takes them; at least as many as tasks
TOKENIZER = "HuggingFaceTB/SmolLM2-135M"
OUT = "stores/web"
WORK = "stores/web-work"  # what datatrove keeps: which tasks are done, logs, hashes
TASKS, WORKERS = 8, 2

# On many machines, which all see these folders (of datatrove.executor.slurm and .ray):
#   partial(SlurmPipelineExecutor, workers=500, time="12:00:00", partition="cpu")
#   partial(RayPipelineExecutor, workers=500)
Executor = partial(LocalPipelineExecutor, workers=WORKERS)


def long_enough(document: Document) -> bool:
    return len(document.text) >= 200


def content(document: Document) -> str:
    return document.text


def main() -> None:
    # Other filters (GopherQualityFilter, LanguageFilter, ...): pip install "datatrove[processing]".
    # Other readers (of S3, WARC, the hub, ...) leave out the lines that they cannot read.
    texts = [Texts(TEXTS), LambdaFilter(long_enough)]
    equal = ExactDedupConfig(content, hash_config=HashConfig(hash_fc="sha1"))
    hashes, duplicates = f"{WORK}/hashes", f"{WORK}/duplicates"
    words = tokenizer.load(TOKENIZER)
    hashing = Executor(
        [*texts, ExactDedupSignature(hashes, equal)], tasks=TASKS, logging_dir=f"{WORK}/1"
    )
    finding = Executor(
        [ExactFindDedups(hashes, duplicates, equal)], logging_dir=f"{WORK}/2", depends=hashing
    )
    Executor(
        [*texts, ExactDedupFilter(duplicates, equal), Shards(OUT, words, validation=0.01)],
        tasks=TASKS,
        logging_dir=f"{WORK}/3",
        depends=finding,
    ).run()


if __name__ == "__main__":  # workers import this file again
    main()
