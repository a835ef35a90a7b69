"""Documents out of files of every kind, and their split."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from treering import text
from treering.config import Invalid
from treering.formats import Tally

DOCUMENTS = ["first\nline two", "", "zweiter: ÄÖÜ", "三番目 🙂", "first\nline two", " \t spaces "]


def jsonl(documents: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({"id": 1, field: text}) + "\n" for text in documents).encode()


def parquet(path: Path, documents: list[str | None], field: str = "text") -> Path:
    table = pyarrow.table({"id": list(range(len(documents))), field: documents})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    return path


def written(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "x.jsonl": lambda path: path.write_bytes(jsonl(DOCUMENTS)),
    "x.json": lambda path: path.write_bytes(jsonl(DOCUMENTS).rstrip(b"\n")),
    "blank.jsonl": lambda path: path.write_bytes(
        b"\n" + jsonl(DOCUMENTS).replace(b"\n", b"\r\n\n")
    ),
    "x.jsonl.gz": lambda path: path.write_bytes(gzip.compress(jsonl(DOCUMENTS))),
    "x.json.zst": lambda path: path.write_bytes(zstandard.compress(jsonl(DOCUMENTS))),
    "members.jsonl.gz": lambda path: path.write_bytes(
        gzip.compress(jsonl(DOCUMENTS[:2])) + gzip.compress(jsonl(DOCUMENTS[2:]))
    ),
    "frames.jsonl.zst": lambda path: path.write_bytes(
        zstandard.compress(jsonl(DOCUMENTS[:2])) + zstandard.compress(jsonl(DOCUMENTS[2:]))
    ),
    "x.parquet": lambda path: parquet(path, list(DOCUMENTS)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    tally = Tally()
    assert list(text.documents(str(tmp_path / name), tally=tally)) == DOCUMENTS
    assert tally.consumed == pytest.approx((tmp_path / name).stat().st_size, abs=10)


def test_a_folder_gives_its_files_by_name_and_each_txt_is_one_document(tmp_path: Path) -> None:
    for number, document in enumerate(DOCUMENTS):
        packed = gzip.compress if number % 2 else bytes
        name = f"{number}.txt.gz" if number % 2 else f"{number}.txt"
        written(tmp_path / "sub" / name, packed(document.encode()))
    written(tmp_path / "sub.jsonl", jsonl(["last"]))
    written(tmp_path / "README.md", b"not a document")
    written(tmp_path / ".cache" / "hidden.txt", b"hidden")
    assert list(text.documents(str(tmp_path))) == [*DOCUMENTS, "last"]


def test_a_mark_of_byte_order_is_no_part_of_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", b"\xef\xbb\xbf" + jsonl(["a", "b"]))
    assert list(text.documents(path)) == ["a", "b"]


def test_another_field_can_be_named(tmp_path: Path) -> None:
    lines = written(tmp_path / "x.jsonl", jsonl(["a"], "content"))
    table = parquet(tmp_path / "x.parquet", ["a"], "content")
    for path in (lines, str(table)):
        assert list(text.documents(path, field="content")) == ["a"]
    with pytest.raises(Invalid, match="no column 'text'; name another: .treering prepare --field"):
        list(text.documents(str(table)))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"text": "cut', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"other": "x"}', "has no field 'text'"),
        (b'["text"]', "not an object of fields"),
        (b'{"text": 5}', "not a text"),
        (b'{"text": null}', "not a text"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "\\ud800"}', "half a surrogate"),
    ],
)
def test_a_bad_line_is_named_or_counted(tmp_path: Path, line: bytes, why: str) -> None:
    path = written(tmp_path / "x.jsonl", jsonl(["a"]) + b"\n" + line + b"\n" + jsonl(["b"]))
    with pytest.raises(Invalid, match=rf"x\.jsonl, line 3: .*{why}.*--skip-bad"):
        list(text.documents(path))
    tally = Tally()
    assert list(text.documents(path, skip_bad=True, tally=tally)) == ["a", "b"]
    assert tally.skipped == 1
    assert why in tally.first


def test_a_row_of_parquet_without_text_is_named_or_counted(tmp_path: Path) -> None:
    path = str(parquet(tmp_path / "x.parquet", ["a", None, "b", None]))
    with pytest.raises(Invalid, match=r"x\.parquet, row 2"):
        list(text.documents(path))
    tally = Tally()
    assert list(text.documents(path, skip_bad=True, tally=tally)) == ["a", "b"]
    assert tally.skipped == 2


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.json.zst", "x.parquet"])
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_damaged_file_is_named_and_never_skipped(
    tmp_path: Path, name: str, skip_bad: bool
) -> None:
    WRITERS[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for damaged in (whole[:-6], whole[: len(whole) // 2], b"nonsense" + whole[8:-8] + b"nonsense"):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(Invalid, match=f"{name}: damaged"):
            list(text.documents(str(tmp_path / name), skip_bad=skip_bad))


def test_what_holds_no_text_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "x.csv", b"a,b")
    (tmp_path / "empty").mkdir()
    for path, why in {"none": "no such file", "x.csv": "not a text", "empty": "no text"}.items():
        with pytest.raises(Invalid, match=why):
            list(text.documents(str(tmp_path / path)))


def test_a_hub_data_set_in_a_local_folder_is_streamed(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the optional package datasets")
    parquet(tmp_path / "train.parquet", list(DOCUMENTS))
    parquet(tmp_path / "test.parquet", ["held out"])
    assert list(text.documents(f"hf://{tmp_path}")) == DOCUMENTS
    assert list(text.documents(f"hf://{tmp_path}?split=test")) == ["held out"]
    with pytest.raises(Invalid, match="unknown option 'spilt'"):
        list(text.documents(f"hf://{tmp_path}?spilt=test"))
    with pytest.raises(Invalid, match="cannot be read"):
        list(text.documents(f"hf://{tmp_path}?split=none"))


def test_the_digest_follows_contents_and_names_but_not_the_place(tmp_path: Path) -> None:
    for folder, content in {"a": b"1", "b": b"1", "c": b"2"}.items():
        written(tmp_path / folder / "deep" / "x.txt", content)
    written(tmp_path / "d" / "deep" / "y.txt", b"1")
    a, b, c, d = (text.digest(str(tmp_path / folder)) for folder in "abcd")
    assert a == b
    assert len({a, c, d}) == 3
    assert text.digest(str(tmp_path / "a/deep/x.txt")) == text.digest(
        str(tmp_path / "b/deep/x.txt")
    )


def test_the_digest_of_a_local_hub_folder_follows_its_files_and_split(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", ["a"])
    first, other = (text.digest(f"hf://{tmp_path}{query}") for query in ("", "?split=test"))
    parquet(tmp_path / "train.parquet", ["b"])
    assert len({first, other, text.digest(f"hf://{tmp_path}")}) == 3


@given(st.lists(st.text(), max_size=50), st.floats(0.01, 0.99))
@settings(max_examples=50, deadline=None)
def test_the_split_knows_a_document_by_its_text_alone(documents: list[str], share: float) -> None:
    sides = {document: text.in_validation(document, share) for document in documents}
    for document in reversed(documents):
        assert text.in_validation(document, share) == sides[document]
        assert text.in_validation(document, min(1.0, share * 2)) or not sides[document]


def test_the_split_takes_its_share() -> None:
    held_out = sum(text.in_validation(f"document {i}", 0.1) for i in range(10_000))
    assert abs(held_out - 1000) < 5 * 30  # five standard deviations
