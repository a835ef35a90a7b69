"""The model card of a run's facts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from treering.config import Corpus, Recipe, to_toml
from treering.report.table import markdown


def card(recipe: Recipe, summary: dict[str, Any]) -> str:
    """The README.md of an exported model: what it was trained on, what it learned and lost."""
    return f"""---
library_name: transformers
tags: [continual-pretraining, treering]
---
# A model of continual pre-training

Made by Treering with the recipe below. Held-out loss of every corpus before training (base) and
at the end of each phase, in nats/token:

{markdown(summary)}

```toml
{to_toml(without_folders(recipe)).strip()}
```
"""


def without_folders(recipe: Recipe) -> Recipe:
    """The recipe with the names of its files alone: for a model card that strangers read."""

    def name(path: str | float | None) -> Any:
        return Path(path).name if isinstance(path, str) and Path(path).is_absolute() else path

    corpora = {n: Corpus(name(c.train), name(c.validation)) for n, c in recipe.corpora.items()}
    evaluate = dataclasses.replace(
        recipe.evaluate,
        task_folder=name(recipe.evaluate.task_folder),
        task_data=name(recipe.evaluate.task_data),
    )
    return dataclasses.replace(
        recipe,
        corpora=corpora,
        evaluate=evaluate,
        model=dataclasses.replace(recipe.model, from_=name(recipe.model.from_)),
        tokenizer=dataclasses.replace(recipe.tokenizer, from_=name(recipe.tokenizer.from_)),
    )
