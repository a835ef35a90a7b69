"""Files from elsewhere, damaged at random: they are read, or refused by one line; never a crash.

Thousands instead of a hundred: pytest --hypothesis-profile=thorough --timeout=0
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recorded
import tiny
import tomli_w
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import megatron, ours
from transformers import AutoModelForCausalLM, LlamaConfig

from treering import checkpoint, config, pretrained, records, weights
from treering.analysis.runs import gather
from treering.config import Invalid
from treering.mesh import Mesh
from treering.report import write
from treering.report.page import compared, page
from treering.speed import Speed
from treering.store import open_store

fuzz = settings(deadline=None)  # how many is the profile's to say
slow = settings(deadline=None, max_examples=settings.default.max_examples // 4)

EXTREMES = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
SCRAPS = [b"", b"\n", b"\x00", b"\xff", b'"', b"{}", b"[]", b"null", b"-1", b"1e999", b"NaN",
          b"9" * 5000, b"[" * 100_000, b'"\\ud800"', b"\xf0\x9f\x8c\xb3"]  # fmt: skip


@st.composite
def damages(draw: st.DrawFn, content: bytes) -> bytes:
    """The content after one to three accidents."""
    for _ in range(draw(st.integers(1, 3))):
        at, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        match draw(st.sampled_from(["bytes", "count", "cut", "lose", "splice", "scrap"])):
            case "bytes":
                new = draw(st.binary(min_size=1, max_size=4))
                content = content[:at] + new + content[at + len(new) :]
            case "count":
                form = draw(st.sampled_from(["<I", "<Q"]))
                new = struct.pack(
                    form, draw(st.sampled_from(EXTREMES)) % 256 ** struct.calcsize(form)
                )
                content = content[:at] + new + content[at + len(new) :]
            case "cut":
                content = content[:at]
            case "lose":
                content = content[:at] + content[end:]
            case "splice":
                content = content[:at] + content[end:] + content[at:end]
            case "scrap":
                content = content[:at] + draw(st.sampled_from(SCRAPS)) + content[end:]
    return content


@contextmanager
def invalid_alone() -> Iterator[None]:
    """What is refused within is refused by one line of Invalid; anything else is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foreign stores
        try:
            yield
        except Invalid as error:
            assert "\n" not in str(error) and len(str(error)) > 20


def read_all(path: str) -> None:
    with invalid_alone():
        store = open_store(path)
        store.read(np.arange(store.samples(1)), 1)
        store.close()


@fuzz
@given(st.data(), st.sampled_from([".bin", ".idx", ".json"]), st.booleans())
def test_a_damaged_store(data: st.DataObject, suffix: str, sidecar: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prefix = ours(Path(folder) / "x")
        target = Path(f"{prefix}{suffix}")
        target.write_bytes(data.draw(damages(target.read_bytes())))
        if not sidecar:
            Path(f"{prefix}.json").unlink()
        read_all(str(prefix))


@fuzz
@given(
    st.sampled_from([*range(10), 255]),
    st.sampled_from(EXTREMES) | st.integers(0, 40),
    st.sampled_from(EXTREMES) | st.integers(0, 40),
    st.binary(max_size=400),
)
def test_an_index_that_claims_anything(code: int, sequences: int, starts: int, rest: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prefix = megatron(Path(folder) / "x", [[1, 2, 3]], 8, "<u2")
        header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, sequences, starts)
        Path(f"{prefix}.idx").write_bytes(header + rest)
        read_all(str(prefix))


@fuzz
@given(st.data(), st.sampled_from(["<u2", "<i8", "<f4", "?"]))
def test_a_damaged_npy(data: st.DataObject, dtype: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        np.save(path, np.arange(20).astype(dtype))
        path.write_bytes(data.draw(damages(path.read_bytes())))
        read_all(str(path))


VALUES = st.one_of(
    st.sampled_from([*EXTREMES, -1, 10**400, 0.0, 1e308, float("nan"), float("inf"), True]),
    st.sampled_from(
        ["", "en", "\x00", "~nobody-here/x", "x" * 5000, "..", "/", "hf://", "日本語\n"]
    ),
    st.text(max_size=8),
    st.lists(st.integers() | st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers() | st.floats(), max_size=2),
    st.dates(),
    st.datetimes(),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in nested tables and lists."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    """Another value at a path, or none where `new` is ..."""
    for key in path[:-1]:
        value = value[key]
    if new is ...:
        del value[path[-1]]
    else:
        value[path[-1]] = deepcopy(new)


@fuzz
@given(data=st.data())
def test_a_recipe_with_other_values(place: Path, data: st.DataObject) -> None:
    table = tomllib.loads((place / "recipe.toml").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([*places(table)]))
        put(table, path, data.draw(VALUES | st.just(...)))
    text = tomli_w.dumps(table)
    (place / "fuzzed.toml").write_text(text)
    with invalid_alone():
        found = config.load(place / "fuzzed.toml")
        assert config.resolve(tomllib.loads(config.to_toml(found)), place) == found


@fuzz
@given(data=st.data())
def test_a_recipe_with_other_bytes(place: Path, data: st.DataObject) -> None:
    damaged = data.draw(damages((place / "recipe.toml").read_bytes()))
    (place / "fuzzed.toml").write_bytes(damaged)
    with invalid_alone():
        config.load(place / "fuzzed.toml")


def whole() -> list[bytes]:
    """The records of a run with every kind in them."""
    more = [
        {"kind": "task", "step": 0, "phase": "base", "task": "t", "metric": "acc", "value": 0.5,
         "stderr": None, "n": 8},
        {"kind": "probe", "step": 2, "phase": "p1", "cosine": 0.1, "tokens": 64},
        {"kind": "ranks", "step": 2, "phase": "p1", "seconds": 9.0, "waited_for_text": [1.0, 2.0],
         "computed": [3.0, 4.0], "slowest": 1, "waited_for_slowest": 0.5, "memory": [8, 9]},
        {"kind": "checkpoint", "step": 2, "path": "checkpoints/step-000000002"},
    ]  # fmt: skip
    run = recorded.run([[9.0, 9.5], [4.0, 8.0], [5.0, 3.0]], mixtures=[["t1"], ["t2"]],
                       branches={"average": [[4.0, 8.0], [5.0, 3.0]]})  # fmt: skip
    speed = Speed(6e9, 5e9, devices=2, peak=989.0)
    run[0] |= {"speed": speed.described(), "versions": {"python": "3"}, "hardware": {"cores": 2},
               "parameters": 1e6}  # fmt: skip
    for record in run:
        record |= speed.of(64, 0.5) if record["kind"] == "step" else {}
    return [json.dumps(record).encode() + b"\n" for record in [*run[:3], *more, *run[3:]]]


LINES = whole()


def reported(content: bytes, folder: Path) -> None:
    """Everything that is made of the records of a run, beside one that is whole."""
    (folder / "records.jsonl").write_bytes(content)
    with invalid_alone():
        records.read(folder)
        arms = gather([str(folder)])
        table = compared(arms)
        page(arms, table)
        for form in ("md", "csv"):
            write.report(arms, folder / "report", form, table=table)


@fuzz
@given(data=st.data())
def test_records_with_other_bytes(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(LINES) - 1))
    content = [*LINES[:at], data.draw(damages(LINES[at])), *LINES[at + 1 :]]
    with tempfile.TemporaryDirectory() as folder:
        reported(b"".join(content), Path(folder))


@fuzz
@given(data=st.data())
def test_records_with_other_values(data: st.DataObject) -> None:
    found = [json.loads(line) for line in LINES]
    for _ in range(data.draw(st.integers(1, 3))):
        record = found[data.draw(st.just(0) | st.integers(0, len(found) - 1))]
        put(record, data.draw(st.sampled_from([*places(record), ("kind",)])), data.draw(JSON))
    escaped = data.draw(st.booleans())
    content = "".join(json.dumps(record, ensure_ascii=escaped) + "\n" for record in found)
    with tempfile.TemporaryDirectory() as folder:
        reported(content.encode(errors="surrogatepass"), Path(folder))


JSON = st.one_of(
    st.sampled_from([*EXTREMES, -1, 10**400, 0.5, 1e308, float("nan"), float("inf"), True, None]),
    st.sampled_from(["", "t1", "step", "\x00", "\ud800", "日本語\n", "</script>"]),
    st.just([]) | st.just({}) | st.just([1]) | st.just({"t1": 1}) | st.just([[1], {}]),
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (1, 2):
        tensors = {"weights/a": torch.full((2, 3), float(step))}
        checkpoint.save(folder, step, tensors, {"plan": {"step": step}}, keep=2, mesh=Mesh())
    return folder


@slow
@given(data=st.data())
def test_a_damaged_checkpoint_is_passed_over_or_loads_as_it_was(
    sound: Path, data: st.DataObject
) -> None:
    """Several of its files, the manifest among them, or the names of its files."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(shutil.copytree(sound, Path(name) / "checkpoints"))
        files = sorted((folder / "step-000000002").iterdir())
        for path in data.draw(st.lists(st.sampled_from(files), min_size=1, unique=True)):
            content = data.draw(damages(path.read_bytes()) | st.none())
            path.unlink() if content is None else path.write_bytes(content)
        found = checkpoint.newest(folder)
        assert found is not None
        path, numbers = found
        tensors = {"weights/a": torch.zeros(2, 3)}
        checkpoint.load(path, tensors, Mesh())
        assert path.name == f"step-{numbers['step']:09d}"
        assert torch.equal(tensors["weights/a"], torch.full((2, 3), float(numbers["step"])))
        saved = {"weights/a": torch.ones(2, 3)}
        checkpoint.save(folder, 3, saved, {}, keep=1, mesh=Mesh())
        assert tiny.checkpoints(Path(name)) == ["step-000000003"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    shape = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=32,
                        num_attention_heads=2)  # fmt: skip
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    return folder


@slow
@given(data=st.data(), name=st.sampled_from(["model.safetensors"] * 3 + ["config.json"]))
def test_a_damaged_model(model: Path, data: st.DataObject, name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(model, Path(place) / "model"))
        content = (folder / name).read_bytes()
        end = len(content) if name == "config.json" else 8 + int.from_bytes(content[:8], "little")
        (folder / name).write_bytes(data.draw(damages(content[:end])) + content[end:])
        with invalid_alone():
            found = pretrained.load(str(folder))
            assert all(p.isfinite().all() for p in found.parameters())
        with invalid_alone():
            empty = pretrained.described(str(model))
            weights.read(folder, {n: torch.empty(p.shape) for n, p in empty.named_parameters()})
        assert isinstance(weights.check(folder), str | None)
