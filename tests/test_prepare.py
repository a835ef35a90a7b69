"""Text to stores: what was in the text is in the store, and nothing half-done ever opens."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import everything

from treering import encode, text, tokenizer
from treering.config import Invalid
from treering.prepare import Options, prepare
from treering.store import is_store, open_store

WORDS = [
    "the",
    "tree",
    "adds",
    "each year",
    "chaque anneau",
    "年輪",
    "<|endoftext|>",
    ",",
    "\n",
    "a",
]
BPE = tokenizer.train([" ".join(WORDS)] * 4, 300)
QUIET = Options(quiet=True)


def document(number: int) -> str:
    draw = random.Random(number)
    return " ".join(draw.choices(WORDS, k=draw.randrange(200)))


DOCUMENTS = [document(i % 60) for i in range(100)]  # forty stand twice


def source(folder: Path, documents: list[str], name: str = "in.jsonl") -> str:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    (folder / name).write_text(lines, encoding="utf-8")
    return str(folder / name)


def decoded(prefix: str) -> list[str]:
    """The documents of a store, cut at the ends of text."""
    store = open_store(prefix)
    tokens = np.array(everything(store))
    store.close()
    ends = np.flatnonzero(tokens == tokenizer.end_of_text(BPE))
    assert ends[-1] == len(tokens) - 1
    return [
        BPE.backend_tokenizer.decode(part[:-1].tolist()) for part in np.split(tokens, ends + 1)[:-1]
    ]


def hashes(documents: list[str]) -> set[str]:
    return {hashlib.sha256(document.encode()).hexdigest() for document in documents}


def test_a_store_holds_the_documents_in_order_each_closed_by_the_end_of_text(
    tmp_path: Path,
) -> None:
    out = str(tmp_path / "deep" / "out")
    assert prepare([source(tmp_path, DOCUMENTS)], BPE, out, QUIET) == [out]
    assert decoded(out) == DOCUMENTS
    store = open_store(out)
    assert store.documents == 100
    assert store.bytes == sum(len(document.encode()) for document in DOCUMENTS)
    assert store.tokenizer == tokenizer.fingerprint(BPE)
    expected = hashlib.sha256()
    for data in (document.encode() for document in DOCUMENTS):
        expected.update(len(data).to_bytes(8, "little") + data)
    sidecar = json.loads(Path(f"{out}.json").read_text())
    assert sidecar["input"] == expected.hexdigest()
    assert sidecar["end_of_text"] == tokenizer.end_of_text(BPE)
    assert (sidecar["skipped"], sidecar["vocabulary"]) == (0, tokenizer.size(BPE))


@given(st.lists(st.text(), min_size=1, max_size=10))
@settings(max_examples=25, deadline=None)
def test_any_documents_come_back(documents: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prefix = f"{folder}/out"
        prepare([source(Path(folder), [*documents, "x"])], BPE, prefix, QUIET)
        assert decoded(prefix) == [*documents, "x"]
        assert open_store(prefix).documents == len(documents) + 1


def test_several_inputs_follow_one_another(tmp_path: Path) -> None:
    inputs = [source(tmp_path, DOCUMENTS[i::3], f"{i}.jsonl") for i in (2, 0, 1)]
    out = str(tmp_path / "out")
    prepare(inputs, BPE, out, QUIET)
    assert decoded(out) == [*DOCUMENTS[2::3], *DOCUMENTS[0::3], *DOCUMENTS[1::3]]


def test_any_number_of_workers_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treering.prepare.SMALL", 0)
    monkeypatch.setattr("treering.encode.CHARACTERS", 1000)
    path = source(tmp_path, DOCUMENTS)
    for workers in (1, 2):
        options = Options(validation=0.3, workers=workers, quiet=True)
        prepare([path], BPE, str(tmp_path / str(workers)), options)
    for suffix in (".bin", ".idx", "-validation.bin", "-validation.idx"):
        one, two = (Path(f"{tmp_path}/{workers}{suffix}").read_bytes() for workers in (1, 2))
        assert one == two


def test_a_worker_that_dies_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treering.prepare.SMALL", 0)
    monkeypatch.setattr("treering.encode._start", functools.partial(os._exit, 1))
    with pytest.raises(Invalid, match="a worker that encodes died"):
        prepare(
            [source(tmp_path, ["x"])], BPE, str(tmp_path / "out"), Options(workers=2, quiet=True)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_bos_is_written_only_where_asked_for(tmp_path: Path) -> None:
    path, out = source(tmp_path, ["a", "b"]), str(tmp_path / "out")
    with pytest.raises(Invalid, match="--bos: .* has no bos_token"):
        prepare([path], BPE, out, Options(bos=True, quiet=True))
    with_bos = tokenizer.train([" ".join(WORDS)] * 4, 300)
    with_bos.bos_token = "<|endoftext|>"
    prepare([path], with_bos, out, Options(bos=True, quiet=True))
    a, b, end = (with_bos.convert_tokens_to_ids(token) for token in ("a", "b", "<|endoftext|>"))
    assert everything(open_store(out)) == [end, a, end, end, b, end]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_split_by_share_keeps_equal_documents_on_one_side(tmp_path: Path, share: float) -> None:
    options = Options(validation=share, quiet=True)
    train, held_out = prepare([source(tmp_path, DOCUMENTS)], BPE, str(tmp_path / "out"), options)
    assert held_out == f"{train}-validation"
    sides = decoded(train), decoded(held_out)
    assert sides[0] == [text_ for text_ in DOCUMENTS if not text.in_validation(text_, share)]
    assert sides[1] == [text_ for text_ in DOCUMENTS if text.in_validation(text_, share)]
    assert hashes(sides[0]).isdisjoint(hashes(sides[1]))
    assert len(sides[1]) > len(set(sides[1])) > 0  # duplicates are among them


def test_the_split_does_not_depend_on_the_order(tmp_path: Path) -> None:
    for name, documents in {"one": DOCUMENTS, "two": DOCUMENTS[::-1]}.items():
        path = source(tmp_path, documents)
        prepare([path], BPE, str(tmp_path / name), Options(validation=0.2, quiet=True))
    held_out = [decoded(str(tmp_path / f"{name}-validation")) for name in ("one", "two")]
    assert held_out[0] == held_out[1][::-1]


def test_validation_can_be_a_named_file(tmp_path: Path) -> None:
    options = Options(validation=source(tmp_path, ["held", "out"], "held.jsonl"), quiet=True)
    train, held_out = prepare([source(tmp_path, DOCUMENTS)], BPE, str(tmp_path / "out"), options)
    assert (decoded(train), decoded(held_out)) == (DOCUMENTS, ["held", "out"])


def test_a_bad_line_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    path = source(tmp_path, DOCUMENTS)
    with open(path, "a") as file:
        file.write("{broken\n")
    out = str(tmp_path / "out")
    with pytest.raises(Invalid, match=r"in\.jsonl, line 101: not JSON, .*--skip-bad"):
        prepare([path], BPE, out, Options(validation=0.1, quiet=True))
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]
    prepare([path], BPE, out, Options(skip_bad=True, quiet=True))
    assert decoded(out) == DOCUMENTS
    assert json.loads(Path(f"{out}.json").read_text())["skipped"] == 1


def test_the_end_is_told_with_what_was_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = source(tmp_path, ["a"])
    with open(path, "a") as file:
        file.write("{broken\n")
    prepare([path], BPE, str(tmp_path / "out"), Options(skip_bad=True))
    told = capsys.readouterr()
    assert told.out == ""
    assert "1 documents, 2 tokens; 1 bad lines skipped, the first" in told.err


def test_a_store_without_a_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="out: the input has no document"):
        prepare([source(tmp_path, [])], BPE, str(tmp_path / "out"), QUIET)
    one = source(tmp_path, ["x"])
    with pytest.raises(Invalid, match="out-validation: no document fell to it"):
        prepare([one], BPE, str(tmp_path / "out"), Options(validation=0.001, quiet=True))
    assert not is_store(tmp_path / "out")


def test_what_cannot_be_prepared_is_named(tmp_path: Path) -> None:
    path, out = source(tmp_path, ["x"]), str(tmp_path / "out")
    prepare([path], BPE, out, QUIET)
    with pytest.raises(Invalid, match=r"out\.idx: exists already"):
        prepare([path], BPE, out, QUIET)
    with pytest.raises(Invalid, match="a store already"):
        prepare([out], BPE, str(tmp_path / "again"), QUIET)
    with pytest.raises(Invalid, match=r"in\.jsonl/out: cannot be written"):
        prepare([path], BPE, f"{path}/out", QUIET)
    for share in (0.0, 1.0, -0.5):
        with pytest.raises(Invalid, match="a share lies between 0 and 1"):
            Options(validation=share)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failure_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def failing(*_: object, **__: object) -> Iterator[encode.Encoded]:
        yield 0, "x", np.array([1, 2], np.int32)
        raise failure

    monkeypatch.setattr("treering.prepare.encode", failing)
    with pytest.raises((KeyboardInterrupt, Invalid)):
        prepare([source(tmp_path, ["x"])], BPE, str(tmp_path / "out"), QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    path = source(tmp_path, DOCUMENTS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096 * 4, hard))  # as good as a full disk
    try:
        with pytest.raises(Invalid, match="out: cannot be written"):
            prepare([path], BPE, str(tmp_path / "out"), QUIET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("there", [False, True])
def test_a_slash_at_the_end_of_a_prefix_is_no_part_of_it(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "en").mkdir()
    given = Options(validation=0.3, quiet=True)
    prefixes = prepare([source(tmp_path, DOCUMENTS)], BPE, f"{tmp_path}/en/", given)
    assert prefixes == [f"{tmp_path}/en", f"{tmp_path}/en-validation"]
    assert all(is_store(prefix) for prefix in prefixes)
