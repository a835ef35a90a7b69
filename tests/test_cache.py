"""Raw text in a recipe: prepared once, found again by what it holds."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_prepare import BPE, DOCUMENTS, QUIET, decoded, hashes, source

from treering import cache, text, tokenizer
from treering.config import Invalid
from treering.prepare import Options
from treering.store import open_store


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "stores").iterdir() if path.is_dir())


def test_a_text_is_prepared_on_first_use_and_then_found_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    paths = [source(tmp_path, DOCUMENTS), source(tmp_path / "elsewhere", DOCUMENTS)]
    first = cache.cached(paths[0], 0.2, BPE, tmp_path / "cache", QUIET)
    assert first[1] is not None
    assert hashes(decoded(first[0])).isdisjoint(hashes(decoded(first[1])))
    assert sorted(decoded(first[0]) + decoded(first[1])) == sorted(DOCUMENTS)
    monkeypatch.setattr("treering.cache.prepare", None)  # not called again
    assert cache.cached(paths[1], 0.2, BPE, tmp_path / "cache", QUIET) == first


def test_an_entry_is_another_when_text_or_tokenizer_or_split_differ(tmp_path: Path) -> None:
    other = tokenizer.train(["another text"] * 4, 280)
    one, two = source(tmp_path, DOCUMENTS), source(tmp_path, DOCUMENTS[1:], "two.jsonl")
    for path, share, words in [
        (one, None, BPE),
        (one, 0.2, BPE),
        (one, 0.3, BPE),
        (two, None, BPE),
        (one, None, other),
        (one, None, BPE),
    ]:
        cache.cached(path, share, words, tmp_path / "cache", QUIET)
    assert len(entries(tmp_path / "cache")) == 5


def test_stores_are_taken_as_they_are_and_texts_beside_them_prepared(tmp_path: Path) -> None:
    train, held = source(tmp_path, DOCUMENTS), source(tmp_path, ["held", "out"], "held.jsonl")
    folder = tmp_path / "cache"
    store, none = cache.cached(train, None, BPE, folder, QUIET)
    assert none is None
    assert cache.cached(store, None, BPE, folder, QUIET) == (store, None)
    assert cache.cached(store, store, BPE, folder, QUIET) == (store, store)
    same, held_out = cache.cached(store, held, BPE, folder, QUIET)
    assert same == store
    assert held_out is not None
    assert decoded(held_out) == ["held", "out"]
    with pytest.raises(Invalid, match=r"validation = 0\.1: .* is a store"):
        cache.cached(store, 0.1, BPE, folder, QUIET)


def test_a_failed_or_killed_preparation_is_no_entry(tmp_path: Path) -> None:
    path = source(tmp_path, DOCUMENTS)
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole + b"{broken\n")
    with pytest.raises(Invalid, match="line 101"):
        cache.cached(path, None, BPE, tmp_path / "cache", QUIET)
    Path(path).write_bytes(whole)
    store, _ = cache.cached(path, None, BPE, tmp_path / "cache", QUIET)
    key = Path(store).parent
    key.rename(f"{key}.part")  # what a killed run leaves
    assert cache.cached(path, None, BPE, tmp_path / "cache", QUIET) == (store, None)
    assert not Path(f"{key}.part").exists()


def test_runs_at_the_same_time_share_one_entry(tmp_path: Path) -> None:
    path = source(tmp_path, DOCUMENTS)
    with ThreadPoolExecutor(4) as pool:
        runs = [
            pool.submit(cache.cached, path, 0.2, BPE, tmp_path / "cache", QUIET) for _ in range(4)
        ]
        assert len({run.result() for run in runs}) == 1
    assert len(entries(tmp_path / "cache")) == 1


def test_a_tokenizer_is_trained_on_training_documents_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    train = tokenizer.train

    def watched(texts: Iterable[str], vocabulary: int) -> object:
        seen.extend(texts)
        return train(seen, vocabulary)

    monkeypatch.setattr("treering.tokenizer.train", watched)
    first, second = source(tmp_path, DOCUMENTS), source(tmp_path, ["b", "c"], "second.jsonl")
    found = cache.cached_tokenizer([(first, 0.3), (second, None)], 300, tmp_path / "cache")
    kept = [document for document in DOCUMENTS if not text.in_validation(document, 0.3)]
    assert seen == [*kept, "b", "c"]  # in the order of the corpora
    assert 0 < len(kept) < len(DOCUMENTS)
    again = cache.cached_tokenizer([(first, 0.3), (second, None)], 300, tmp_path / "cache")
    assert len(seen) == len(kept) + 2  # found, not trained again
    assert tokenizer.fingerprint(again) == tokenizer.fingerprint(found)
    cache.cached_tokenizer([(first, 0.3), (second, 0.5)], 300, tmp_path / "cache")
    assert len(seen) > len(kept) + 2


def test_a_tokenizer_sees_so_many_bytes_of_each_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treering.cache.LIMIT", 10)
    paths = [source(tmp_path, ["123456", "ä" * 10], "one.jsonl"), source(tmp_path, ["x" * 30])]
    seen = list(cache._training([(path, None) for path in paths], "text"))
    assert seen == ["123456", "ää", "x" * 10]


def test_a_tokenizer_cannot_be_trained_on_a_store(tmp_path: Path) -> None:
    store, _ = cache.cached(source(tmp_path, ["x"]), None, BPE, tmp_path / "cache", QUIET)
    with pytest.raises(Invalid, match=r"tokenizer\.train: .* is a store"):
        cache.cached_tokenizer([(store, None)], 300, tmp_path / "cache")


def test_a_bad_line_is_counted_where_asked_for(tmp_path: Path) -> None:
    path = source(tmp_path, ["x"])
    with open(path, "a") as file:
        file.write("{broken\n")
    options = Options(skip_bad=True, quiet=True)
    store, _ = cache.cached(path, None, BPE, tmp_path / "cache", options)
    assert open_store(store).documents == 1


def test_where_entries_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TREERING_CACHE", raising=False)
    assert cache.cache_folder() == tmp_path / ".cache" / "treering"
    monkeypatch.setenv("TREERING_CACHE", "/from/environment")
    assert cache.cache_folder() == Path("/from/environment")
    assert cache.cache_folder("/asked/for") == Path("/asked/for")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = source(tmp_path, ["x"])
    with pytest.raises(Invalid, match="cannot be written .*--cache"):
        cache.cached(path, None, BPE, Path(path) / "cache", QUIET)


def test_a_disk_that_is_full_at_the_tokenizer_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **more: object) -> None:
        raise Exception("No space left on device")  # as the backend says it

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
    with pytest.raises(Invalid, match="cannot be written .*No space left.* name another --cache"):
        cache.cached_tokenizer([(source(tmp_path, DOCUMENTS), None)], 300, tmp_path / "cache")
    assert {path.suffix for path in (tmp_path / "cache/tokenizers").iterdir()} == {".lock"}
