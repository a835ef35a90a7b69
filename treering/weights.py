"""Weights from and to safetensors, of which no rank ever holds more than a file.

A folder of a pretrained model is read by rows: each rank maps the files and copies the part of
every weight that lies on it. It is written by files: all ranks gather weight after weight, and the
ranks take turns in keeping a file's worth and writing it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from treering.config import Invalid
from treering.mesh import Mesh
from treering.spread import local, whole

INDEX = "model.safetensors.index.json"
FILE = 2 * 2**30  # bytes of a file at most, but for a single larger weight


@contextmanager
def left_out() -> Iterator[None]:
    """Modules made within have parameters without memory, on the meta device; buffers are real."""
    register = nn.Module.register_parameter

    def without(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = without  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def read(folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Fill weights in place from a folder's files: of each only what lies on this rank. Raises
    Invalid where one is missing or of another shape."""
    files = _files(folder)
    missing = [name for name in weights if name not in files]
    if missing:
        raise Invalid(f"model {str(folder)!r}: has no weight {missing[0]!r} "
                      f"({len(missing)} are missing)")  # fmt: skip
    for path in sorted(set(files.values())):
        with _opened(path) as file:
            for name in (name for name, where in files.items() if where == path):
                if name in weights:
                    _fill(weights[name], file.get_slice(name), name, path)


@contextmanager
def mapped(folder: Path) -> Iterator[dict[str, Any]]:
    """The open files of a folder, each under the names of its weights: what is asked for is read.
    Raises Invalid where there is none."""
    with ExitStack() as stack:
        found: dict[str, Any] = {}
        for path in _paths(folder):
            file = stack.enter_context(_opened(path))
            found |= dict.fromkeys(file.keys(), file)
        if not found:
            raise Invalid(f"{folder}: holds no weights (*.safetensors); name a model's folder")
        yield found


def holds(folder: Path, names: Sequence[str]) -> bool:
    """Whether the folder's files have these weights under these very names."""
    return set(names) <= set(_files(folder))


def check(folder: Path) -> str | None:
    """What is wrong with a folder's files: one that cannot be read, or a weight of the index that
    is missing; None if nothing."""
    index = folder / INDEX
    try:
        found = _files(folder)
        wanted = json.loads(index.read_text())["weight_map"] if index.exists() else {}
    except Invalid as error:
        return str(error)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{index.name}: {type(error).__name__}: {error}"
    missing = [name for name in wanted if name not in found]
    if missing or not found:
        return f"has no weight {missing[0]!r}" if missing else "holds no weights"
    return None


def _paths(folder: Path) -> list[Path]:
    """The files that make up the model: those of the index, where there is one; a folder may have
    the same weights once more in other files."""
    index, whole = folder / INDEX, folder / "model.safetensors"
    if index.exists():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Invalid(f"{index}: cannot be read ({error}); restore it") from error
        return [folder / name for name in sorted(names) if (folder / name).exists()]
    return [whole] if whole.exists() else sorted(folder.glob("*.safetensors"))


def stored(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a folder has of a model: its parameters, a tied one once, and persistent buffers."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters())
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def _files(folder: Path) -> dict[str, Path]:
    """Which file has which weight."""
    found: dict[str, Path] = {}
    for path in _paths(folder):
        with _opened(path) as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file of safetensors; whatever is wrong with it is said with its name."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(safe_open(path, "pt"))
        except (OSError, SafetensorError) as error:
            raise Invalid(f"{path}: cannot be read ({error}); restore it") from error
        yield file


def _fill(weight: torch.Tensor, stored: object, name: str, path: Path) -> None:
    shape = tuple(stored.get_shape())  # type: ignore[attr-defined]
    if shape != tuple(weight.shape):
        raise Invalid(f"{path}: {name} is {shape}, the model's is {tuple(weight.shape)}")
    start, stop = rows(weight)
    part = stored[start:stop] if shape else stored[:]  # type: ignore[index]
    with torch.no_grad():
        local(weight).copy_(part)


def rows(weight: torch.Tensor) -> tuple[int, int]:
    """Which rows (of the first dimension) of a weight lie on this rank: FSDP's chunks."""
    count = weight.shape[0] if weight.ndim else 1
    if not isinstance(weight, DTensor):
        return 0, count
    ranks = weight.device_mesh.size(-1)
    chunk = -(-count // ranks)
    start = min(count, chunk * weight.device_mesh.get_local_rank(-1))
    return start, min(count, start + chunk)


def write(folder: Path, weights: Mapping[str, torch.Tensor], mesh: Mesh) -> None:
    """Write weights as safetensors, with an index where there is more than one file. Every rank
    must call it."""
    write_each(folder, weights, lambda name: whole(weights[name].detach()), mesh)


def write_each(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    value: Callable[[str], torch.Tensor],
    mesh: Mesh,
) -> None:
    """As `write`, where `weights` say names, shapes and types alone and `value` is asked for each
    once, in order: no more than a file's worth is held."""
    parts = _parts(weights)
    names = ["model.safetensors"]
    if len(parts) > 1:
        names = [f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    for i, (file, part) in enumerate(zip(names, parts, strict=True)):
        kept = {}
        for name in part:
            tensor = value(name)
            if i % mesh.world == mesh.rank:
                kept[name] = tensor.cpu().contiguous()
        try:
            if kept:
                save_file(kept, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:  # how it says that a disk is full
            raise OSError(f"{folder / file}: {error}") from error
    if len(parts) > 1 and mesh.rank == 0:
        index = {
            "metadata": {"total_size": sum(t.nbytes for t in weights.values())},
            "weight_map": {
                name: file for file, part in zip(names, parts, strict=True) for name in part
            },
        }
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def _parts(weights: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Names in order, file by file."""
    parts: list[list[str]] = [[]]
    size = 0
    for name, weight in weights.items():
        bytes_ = weight.numel() * weight.element_size()
        if parts[-1] and size + bytes_ > FILE:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += bytes_
    return parts
