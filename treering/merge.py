"""Weights of several models made into one, tensor by tensor, in fp64: no model is ever whole.

    Arithmetic   base + w1 (A - base) + w2 (B - base) + ...   task arithmetic (arXiv 2212.04089)
    Linear       (w1 A + w2 B + ...) / (w1 + w2 + ...)        averages (arXiv 2203.05482)
    Slerp        along the arc from A to B, each tensor a vector (Shoemake 1985)

The instruction residual (arXiv 2410.10739), a base trained further plus what instruction tuning
added to that base, is Arithmetic of the two: base + (trained - base) + (instruct - base).
"""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from treering import pretrained, tokenizer, weights
from treering.atomic import replacing
from treering.combining import Parent, Rows, Rule
from treering.config import Invalid
from treering.folder import check_writable
from treering.mesh import Mesh
from treering.report.card import merged

TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
SAME = ("model_type", "num_attention_heads", "num_key_value_heads")  # shapes do not show heads


def merge(
    parents: Sequence[Parent], rule: Rule, out: Path, *, like: str | None, dtype: str | None
) -> None:
    """Write the model that a rule makes of its parents as a Hugging Face folder. Config and
    tokenizer are those of `like`, or of the first; the type of the numbers is `dtype`, or the
    widest that a parent has. Of vocabularies of other lengths the rows that all have are merged;
    the others are those of `like`, one of the parents.

    Raises Invalid where the parents differ in architecture, names, shapes or tokens, or are
    quantised.
    """
    rule.check(parents)
    if out.exists():
        raise Invalid(f"--out {out}: exists; name another folder")
    check_writable(out.parent)
    sources = [source for source, _ in parents]
    named = like is not None
    like = like or sources[0]
    folders = {source: pretrained.folder(source) for source in dict.fromkeys([*sources, like])}
    words = _tokenizer(folders, like, named=named)
    settings = {source: _config(folder) for source, folder in folders.items()}
    _check_alike(settings, like)
    _check_positions(folders, like, named=named)
    own = sources.index(like) if named and like in sources else None
    rows = Rows(sources, [settings[source].get("vocab_size") for source in sources], own)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as beside, ExitStack() as stack:
        opened = [stack.enter_context(weights.mapped(folders[source])) for source in sources]
        shapes = _shapes(opened, rows, dtype)

        def value(name: str) -> torch.Tensor:
            each: list[torch.Tensor] = [files[name].get_tensor(name) for files in opened]
            if not each[0].is_floating_point():
                if not all(torch.equal(each[0], other) for other in each):
                    raise Invalid(f"merge: {name} is of integers that differ; they have no mean")
                return each[0]
            doubles, by = [tensor.double() for tensor in each], [weight for _, weight in parents]
            return rows.combined(rule, doubles, by).to(shapes[name].dtype)

        beside.mkdir()
        weights.write_each(beside, shapes, value, Mesh())
        widest = next(t.dtype for t in shapes.values() if t.is_floating_point())
        config = settings[like] | {"dtype": str(widest).removeprefix("torch.")}
        marks = [(source, pretrained.fingerprint(str(folders[source]))) for source in sources]
        card = merged(rule.formula(parents) + rows.formula(), marks)
        _write_beside(beside, config, words, card, folders[like])


def _write_beside(
    out: Path,
    config: Mapping[str, Any],
    words: PreTrainedTokenizerBase | None,
    card: str,
    like: Path,
) -> None:
    """Write what a folder of weights has beside them; how to generate is as the folder `like` says,
    if it does."""
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if (like / "generation_config.json").exists():
        shutil.copy(like / "generation_config.json", out)
    if words is not None:
        tokenizer.save(words, out)
    (out / "README.md").write_text(card, encoding="utf-8")


def _shapes(
    opened: Sequence[dict[str, Any]], rows: Rows, dtype: str | None
) -> dict[str, torch.Tensor]:
    """Tensors without memory, of the shapes and types to be written. Raises Invalid where the
    models differ in names or types."""
    shapes: dict[str, torch.Tensor] = {}
    for files, source in zip(opened, rows.sources, strict=True):
        if other := sorted(files.keys() ^ opened[0].keys()):
            has = source if other[0] in files else rows.sources[0]
            lacks = rows.sources[0] if has == source else source
            raise Invalid(f"merge: {has} has a weight {other[0]!r}, which {lacks} has not "
                          f"({len(other)} differ); they are not of one architecture")  # fmt: skip
    for name in opened[0]:
        slices = [files[name].get_slice(name) for files in opened]
        shape = rows.shape(name, [each.get_shape() for each in slices])
        kinds = {each.get_dtype() for each in slices}
        floats = [TYPES[kind] for kind in kinds if kind in TYPES]
        if len(floats) == len(kinds):
            widest = functools.reduce(torch.promote_types, floats)
            kind = widest if dtype is None else getattr(torch, dtype)
        elif floats or any(kind.startswith("F") for kind in kinds):
            raise Invalid(f"merge: {name} is of type {', '.join(sorted(kinds))}; known: "
                          f"{', '.join(TYPES)}")  # fmt: skip
        else:
            kind = opened[0][name].get_tensor(name).dtype
        shapes[name] = torch.empty(shape, dtype=kind, device="meta")
    return shapes


def _check_alike(settings: Mapping[str, dict[str, Any]], like: str) -> None:
    """Raises Invalid for a config that cannot be of the same model as that of `like`."""
    for source, found in settings.items():
        if found.get("quantization_config"):
            raise Invalid(f"merge: {source} is quantised; name the model that it was made of")
        for key in SAME:
            if found.get(key) != settings[like].get(key):
                raise Invalid(f"merge: {key} is {found.get(key)!r} in {source}, but "
                              f"{settings[like].get(key)!r} in {like}")  # fmt: skip


def _check_positions(folders: Mapping[str, Path], like: str, *, named: bool) -> None:
    """Warns of a model that turns positions otherwise than `like`; raises Invalid for one where
    `like` was not `named`, as then nobody said which is right."""
    found = {source: _rope(folder) for source, folder in folders.items()}
    for source, rope in found.items():
        if rope != found[like]:
            words = f"merge: positions are {rope} in {source}, but {found[like]} in {like}"
            if not named:
                raise Invalid(f"{words}; say by --like whose are right")
            warnings.warn(f"{words}, which counts", stacklevel=3)


def _rope(folder: Path) -> dict[str, Any]:
    """How a model turns positions, in whatever words its config says so."""
    try:
        text = AutoConfig.from_pretrained(folder).get_text_config()
        return dict(text.to_dict().get("rope_parameters") or {})
    except Exception:  # of remote code, which is not run here, or what its family knows no longer
        settings = _config(folder)
        older = {**(settings.get("rope_scaling") or {}), "rope_theta": settings.get("rope_theta")}
        return dict(settings.get("rope_parameters") or older)


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Invalid(f"{folder}: has no readable config.json ({error})") from error
    assert isinstance(found, dict)
    return found


def _tokenizer(
    folders: Mapping[str, Path], like: str, *, named: bool
) -> PreTrainedTokenizerBase | None:
    """That of `like`, if it has one. Rows of different tokens would be mixed: raises Invalid where
    a token has two ids, or an id two tokens and nobody said by `named` whose is right."""
    found = {
        source: tokenizer.load(folder)
        for source, folder in folders.items()
        if (folder / "tokenizer_config.json").exists()
    }
    ids, tokens = dict[str, tuple[int, str]](), dict[int, tuple[str, str]]()
    renamed = []
    for source in sorted(found, key=lambda source: source != like):
        for token, i in found[source].get_vocab().items():
            other, where = ids.setdefault(token, (i, source))
            if other != i:
                raise Invalid(f"merge: the token {token!r} is {i} in {source}, but {other} in "
                              f"{where}: their rows are not of the same tokens")  # fmt: skip
            word, where = tokens.setdefault(i, (token, source))
            if word != token:
                renamed.append(f"id {i} is the token {token!r} in {source}, but {word!r} in "
                               f"{where}")  # fmt: skip
    if renamed and not named:
        raise Invalid(f"merge: {renamed[0]}; say by --like whose are right")
    if renamed:
        warnings.warn(f"merge: {renamed[0]}; its rows are mixed ({len(renamed)} such ids)",
                      stacklevel=3)  # fmt: skip
    return found.get(like)
