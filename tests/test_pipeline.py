"""datatrove's executors write, in shards, what `treering prepare` writes in one store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from test_prepare import BPE, DOCUMENTS, QUIET, decoded, source
from test_store import everything

from treering import text, tokenizer
from treering.config import Invalid
from treering.prepare import Options, prepare
from treering.store import is_store, open_store

pytest.importorskip("datatrove", reason="the extra data is absent")

from datatrove.data import Document

from treering.pipeline import Shards, Texts

EXAMPLE = Path(__file__).parents[1] / "examples/datatrove_prepare.py"
PROGRAM = """
import os, signal, sys
from pathlib import Path
from datatrove.executor import LocalPipelineExecutor
from treering import tokenizer
from treering.pipeline import Shards, Texts

def light(data, rank, world_size):
    yield from data
    Path(f"{rank}-{'torch' in sys.modules or 'transformers' in sys.modules}").touch()

def killed(data, rank, world_size):
    for number, document in enumerate(data):
        if rank == 1 and number == 10 and not Path("was-killed").exists():
            Path("was-killed").touch()
            os.killpg(0, signal.SIGKILL)
        yield document

if __name__ == "__main__":
    step = {"light": light, "killed": killed}[sys.argv[1]]
    steps = [Texts(["texts"]), step, Shards("out", tokenizer.load("words"), validation=0.1)]
    LocalPipelineExecutor(steps, tasks=3, workers=2, logging_dir="log").run()
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Four files of text, two to one task, a tokenizer, and the same prepared in one store."""
    (tmp_path / "texts").mkdir()
    for number in range(4):
        source(tmp_path / "texts", DOCUMENTS[number * 25 :][:25], f"{number}.jsonl")
    BPE.save_pretrained(str(tmp_path / "words"))
    options = Options(validation=0.1, quiet=True)
    prepare([str(tmp_path / "texts")], BPE, str(tmp_path / "one"), options)
    return tmp_path


def started(place: Path, program: str, *arguments: str) -> int:
    """A program in a process group of its own; its exit code."""
    (place / "work.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with open(place / "said", "a") as said:
        return subprocess.run(
            [sys.executable, "work.py", *arguments], cwd=place, env=environment, timeout=100,
            start_new_session=True, stdout=said, stderr=said, check=False,
        ).returncode  # fmt: skip


def run(inputs: list[str], step: Shards, tasks: int) -> None:
    """All tasks, one after another."""
    for rank in range(tasks):
        step.run(Texts(inputs).run(None, rank, tasks), rank, tasks)


def together(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.glob("*.bin")))


def test_two_workers_write_the_tokens_of_prepare_and_import_no_torch(place: Path) -> None:
    assert started(place, PROGRAM, "light") == 0, (place / "said").read_text()
    assert {file.name for file in place.glob("[012]-*")} == {f"{rank}-False" for rank in range(3)}
    for suffix in ("", "-validation"):
        one, many = open_store(place / f"one{suffix}"), open_store(place / f"out{suffix}")
        assert together(place / f"out{suffix}") == Path(f"{place}/one{suffix}.bin").read_bytes()
        assert (many.tokens, many.documents, many.bytes) == (one.tokens, one.documents, one.bytes)
        assert many.tokenizer == one.tokenizer == tokenizer.fingerprint(BPE)
        assert everything(many) == everything(one)


def test_a_killed_task_is_done_again(place: Path) -> None:
    assert started(place, PROGRAM, "killed") == -signal.SIGKILL
    assert list((place / "out").glob(".00001.*.bin.tmp"))
    with pytest.raises(Invalid, match=r"holds no shard|missing, . of 3 shards are"):
        open_store(place / "out")
    assert started(place, PROGRAM, "killed") == 0, (place / "said").read_text()
    for suffix in ("", "-validation"):
        assert together(place / f"out{suffix}") == Path(f"{place}/one{suffix}.bin").read_bytes()
        assert not list((place / f"out{suffix}").glob(".*"))


def test_the_example_filters_and_leaves_out_duplicates(place: Path) -> None:
    program = EXAMPLE.read_text().replace("TASKS, WORKERS = 8, 2", "TASKS, WORKERS = 3, 1")
    for name, value in {"HuggingFaceTB/SmolLM2-135M": "words", "stores/web": "out"}.items():
        assert name in program
        program = program.replace(name, value)
    assert started(place, program) == 0, (place / "said").read_text()
    found = decoded(str(place / "out"))
    kept = {document for document in DOCUMENTS if len(document) >= 200}
    assert sorted(found) == sorted(d for d in kept if not text.in_validation(d, 0.01))
    assert 0 < len(found) < len(DOCUMENTS) / 2  # both have left something out


@pytest.mark.parametrize("tasks", [1, 2, 3, 7])
def test_shards_in_order_are_the_input_in_order(place: Path, tasks: int) -> None:
    """Whatever the number of tasks; those that have no file write an empty shard."""
    inputs = [str(place / "texts" / f"{number}.jsonl") for number in (3, 1, 2, 0)]
    (place / "empty.txt").write_text("")  # one document without text
    inputs.append(str(place / "empty.txt"))
    prepare(inputs, BPE, str(place / "whole"), QUIET)
    run(inputs, Shards(str(place / "s"), BPE), tasks)
    store = open_store(place / "s")
    assert together(place / "s") == (place / "whole.bin").read_bytes()
    assert store.documents == 101
    assert len(list((place / "s").glob("*.idx"))) == tasks


@pytest.mark.parametrize("at", [0, 1, 17, 24])
def test_a_task_that_fails_leaves_nothing_and_done_again_replaces_its_shard(
    place: Path, at: int
) -> None:
    def failing(documents: Iterator[Document]) -> Iterator[Document]:
        for number, document in enumerate(documents):
            if number == at:
                raise KeyboardInterrupt
            yield document

    inputs, step = [str(place / "texts")], Shards(str(place / "s"), BPE)
    run(inputs, step, 4)
    with pytest.raises(KeyboardInterrupt):
        step.run(failing(Texts(inputs).run(None, 2, 4)), 2, 4)
    assert not list((place / "s").glob("*00002*"))
    with pytest.raises(Invalid, match=r"00002\.idx: missing, 1 of 4 shards are"):
        open_store(place / "s")
    for _ in range(2):  # with the shard missing, and with it there
        step.run(Texts(inputs).run(None, 2, 4), 2, 4)
        assert decoded(str(place / "s")) == DOCUMENTS


def test_bos_is_written_only_where_asked_for(tmp_path: Path) -> None:
    path = source(tmp_path, ["a", "b"])
    with pytest.raises(Invalid, match="has no bos_token"):
        Shards(str(tmp_path / "s"), BPE, bos=True)
    words = tokenizer.load(saved(tmp_path / "words"))
    run([path], Shards(str(tmp_path / "s"), words, bos=True), 1)
    a, b, end = (words.convert_tokens_to_ids(token) for token in ("a", "b", "<|endoftext|>"))
    assert everything(open_store(tmp_path / "s")) == [end, a, end, end, b, end]


def saved(folder: Path) -> Path:
    """A tokenizer whose documents have a beginning."""
    with_bos = tokenizer.train(["a b"] * 4, 300)
    with_bos.bos_token = "<|endoftext|>"
    with_bos.save_pretrained(str(folder))
    return folder


def test_a_run_over_shards_is_the_run_over_the_one_store(tmp_path: Path) -> None:
    place = tiny.place(tmp_path)
    words = tokenizer.train(tiny.documents("en", 20), 300)
    words.save_pretrained(str(place / "words"))
    recipe = tiny.without(place, "tokenizer")
    folders = {name: place / name for name in ("one", "many")}
    for name, folder in folders.items():
        for language in tiny.LANGUAGES:
            texts = tiny.documents(language, 60)
            parts = [
                source(place, texts[at::3], f"{name}-{language}-{at}.jsonl") for at in range(3)
            ]
            if name == "one":
                prepare(parts, words, str(folder / language), QUIET)
            else:
                run(parts, Shards(str(folder / language), words), 3)
        stores = [f"corpora.{each}.{key}={str(folder / each)!r}" for each in tiny.LANGUAGES
                  for key in ("train", "validation")]  # fmt: skip
        tiny.run(recipe, folder / "run", f"tokenizer.from={str(place / 'words')!r}", *stores)
    tiny.assert_same_run(folders["many"] / "run", folders["one"] / "run")


def test_documents_of_an_earlier_reader_come_first(tmp_path: Path) -> None:
    path = source(tmp_path, ["b"])
    found = list(Texts([path]).run(iter([Document("a", "0")]), 0, 1))
    assert [(each.text, each.id) for each in found] == [("a", "0"), ("b", f"{path}/0")]


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    path, out = source(tmp_path, ["x"]), str(tmp_path / "s")
    with pytest.raises(Invalid, match="hub, take a reader of datatrove's"):
        Texts(["hf://owner/name"])
    with pytest.raises(Invalid, match=r"none: no such file"):
        Texts([str(tmp_path / "none")])
    with pytest.raises(Invalid, match=r"s3://bucket/s: not a folder"):
        Shards("s3://bucket/s", BPE)
    with pytest.raises(Invalid, match="a share lies between 0 and 1"):
        Shards(out, BPE, validation=2)
    with pytest.raises(Invalid, match=r"document 7: not a text that UTF-8 can hold"):
        Shards(out, BPE).run([Document("\ud800", "7")], 0, 1)
    with open(path, "a") as file:
        file.write("{broken\n")
    with pytest.raises(Invalid, match=r"in\.jsonl, line 2: not JSON"):
        run([path], Shards(out, BPE), 1)
    assert not is_store(out) and list(Path(out).iterdir()) == []
