"""The model card of a run's facts."""

from __future__ import annotations

from typing import Any

from treering.config import Recipe, to_toml, without_folders
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
