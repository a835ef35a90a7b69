"""What the verbs do that make models and tokenizers without training. Returns the exit code."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as RichTable

from treering.config import Invalid

if TYPE_CHECKING:
    from treering.combining import Rule


def extend_tokenizer(options: argparse.Namespace) -> int:
    from treering import bpe, tokenizer

    words, out = tokenizer.load(options.base), Path(options.out)
    before, after = bpe.extend(words, options.corpus, options.add, out, field=options.field)
    if options.json:
        both = {"before": before, "after": after}
        print(json.dumps({name: dataclasses.asdict(each) for name, each in both.items()}))
        return 0
    table = RichTable("held-out documents", "tokens", "tokens/word", "tokens/byte")
    for name, each in ((options.base, before), (options.out, after)):
        table.add_row(name, f"{each.tokens:,}", f"{each.per_word:.3f}", f"{each.per_byte:.4f}")
    Console().print(table)
    return 0


def layers(options: argparse.Namespace) -> int:
    from treering import doubling, pretrained, tokenizer

    words = tokenizer.load(options.model)
    rows = doubling.windows(words, options.corpus, options.field, options.length)
    similar = doubling.similarities(pretrained.load(options.model), rows)
    half = max(1, len(similar) // 2)
    a, b = doubling.window(similar, half if options.double is None else options.double)
    if options.json:
        print(json.dumps({"similar": similar, "window": [a, b], "tokens": rows.size}))
        return 0
    table = RichTable("layer", "cosine of what goes in and comes out")
    for layer, cosine in enumerate(similar):
        table.add_row(f"{layer}{' *' if a <= layer < b else ''}", f"{cosine:.4f}")
    Console().print(table)
    print(f"most similar: window = [{a}, {b}], mean {sum(similar[a:b]) / (b - a):.4f}, of "
          f"{rows.size:,} tokens")  # fmt: skip
    return 0


def merge(options: argparse.Namespace) -> int:
    from treering import combining
    from treering import merge as merging

    rule: Rule
    added = [*options.add, *options.subtract]
    if bool(options.models) == bool(options.base) or bool(options.base) != bool(added):
        raise Invalid("merge: name either models, of which the mean is taken, or --base with --add "
                      "or --subtract")  # fmt: skip
    if options.base is not None:
        if options.slerp is not None:
            raise Invalid(f"--slerp {options.slerp}: is for two models without --base")
        minus = [(source, -weight) for source, weight in map(_weighted, options.subtract)]
        parents = [(options.base, 1.0), *map(_weighted, options.add), *minus]
        rule = combining.Arithmetic()
    else:
        parents = [*map(_weighted, options.models)]
        rule = combining.Linear() if options.slerp is None else combining.Slerp(options.slerp)
    merging.merge(parents, rule, Path(options.out), like=options.like, dtype=options.dtype)
    print(options.out)
    return 0


def _weighted(text: str) -> tuple[str, float]:
    """A folder or id, and the weight after its last colon, if that is one."""
    name, colon, weight = text.rpartition(":")
    if colon and not Path(text).exists():
        try:
            return name, float(weight)
        except ValueError:
            pass
    return text, 1.0
