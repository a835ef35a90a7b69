"""The model card of a run's facts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from treering.config import Recipe
from treering.report.table import escaped, markdown
from treering.schema import values


def card(recipe: Recipe, summary: dict[str, Any], branch: str | None = None) -> str:
    """The README.md of an exported model: what it was trained on, what it learned and lost.
    `branch`: it is of weights beside the trained ones, and so is the summary."""
    which = f'The weights "{escaped(branch)}" beside those of the run. ' if branch else ""
    return f"""---
library_name: transformers
tags: [continual-pretraining, treering]
---
# A model of continual pre-training

{which}Made by Treering with the recipe below. Held-out loss of every corpus before training
(base) and at the end of each phase, in nats/token:

{markdown(summary)}

```toml
{tomli_w.dumps(without_folders(values(recipe))).strip()}
```
"""


def merged(formula: str, parents: Sequence[tuple[str, str | None]]) -> str:
    """The README.md of a model made of others: the formula, and what each was, by name and digest
    (None: unknown)."""
    lines = [f"- {escaped(called(source))}: {digest or 'of the hub'}" for source, digest in parents]
    return f"""---
library_name: transformers
tags: [merge, treering]
---
# A model made of others

Made by Treering from the weights of the models below, tensor by tensor:

    {formula}

Each by a digest of its config and of the sizes and ends of its files of weights:

{chr(10).join(lines)}
"""


def called(source: str) -> str:
    """A model's folder without what it lies in, but for a run's: of those all are called model."""
    return "/".join(Path(source).parts[-2 if Path(source).name == "model" else -1 :])


def without_folders(value: Any) -> Any:
    """A recipe's tables with the names of files alone: cards and pages are given to strangers."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def ours(folder: Path) -> bool:
    """Whether what lies there has a card that was written here."""
    card = folder / "README.md"
    return card.exists() and "treering]\n" in card.read_text(encoding="utf-8", errors="replace")
