"""Other frameworks train the folder that `work.prepare` filled, each by its own entry point; run by
a Python that has them: `python bench/theirs.py litgpt FOLDER`. Nothing of Treering is imported.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from turns import Turns


class Between(IterableDataset[torch.Tensor]):
    """Samples in order; turns are taken between one step's and the next one's. For loaders that
    read no further than the step that is trained."""

    def __init__(self, samples: torch.Tensor, rows: int, turns: Turns) -> None:
        self._samples, self._rows, self._turns = samples, rows, turns

    def __iter__(self) -> Iterator[torch.Tensor]:
        self._turns.begin()
        for number, sample in enumerate(self._samples):
            if number and number % self._rows == 0:
                self._turns.stepped()
            yield sample


def litgpt(folder: Path) -> None:
    """`litgpt pretrain`, with a data module of ours and its losses overheard."""
    from litgpt import Config, pretrain
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import DataModule
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama

    turns = Turns()
    wanted = json.loads((folder / "shape.json").read_text())
    rows, length = wanted["rows"], wanted["length"]
    config = Config(
        name="bench",
        block_size=length,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        **wanted["shape"],
    )
    weights: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, {}, weights, torch.load(folder / "weights.pt"))
    torch.save(weights, folder / "lit_model.pth")
    samples = torch.from_numpy(np.load(folder / "batches.npy"))

    class Data(DataModule):
        def connect(self, *_: Any, **__: Any) -> None:
            pass

        def train_dataloader(self) -> DataLoader[torch.Tensor]:
            return DataLoader(Between(samples, rows, turns), batch_size=rows)

        def val_dataloader(self) -> DataLoader[torch.Tensor]:
            return DataLoader(samples[:rows], batch_size=rows)  # type: ignore[arg-type]

    pretrain.chunked_cross_entropy = overheard(pretrain.chunked_cross_entropy, turns)
    pretrain.setup(
        "bench",
        config,
        out_dir=folder / "litgpt",
        precision="bf16-mixed" if wanted["bf16"] else "32-true",
        initial_checkpoint_dir=folder,
        data=Data(),
        train=TrainArgs(
            save_interval=None,
            log_interval=10**9,
            global_batch_size=rows,
            micro_batch_size=rows,
            max_tokens=10**12,
            max_norm=wanted["clip"],
            min_lr=wanted["adamw"]["lr"],
            lr_warmup_steps=0,
            tie_embeddings=True,
        ),
        eval=EvalArgs(interval=10**9, max_iters=1),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": wanted["adamw"]},
        devices=1,
        logger_name="csv",
    )


def overheard(loss: Callable[..., torch.Tensor], turns: Turns) -> Callable[..., torch.Tensor]:
    """The same function, which keeps what it returns in training."""

    def kept(logits: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        found = loss(logits, *given, **named)
        if found.requires_grad and not found.is_meta:
            turns.loss(found)
        return found

    return kept


def torchtitan(_: Path) -> None:
    """Its trainer is made, which fails where it cannot run."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29555"}
    from torchtitan.models.llama3.config_registry import llama3_debugmodel
    from torchtitan.trainer import Trainer

    Trainer(llama3_debugmodel())


if __name__ == "__main__":
    {"litgpt": litgpt, "torchtitan": torchtitan}[sys.argv[1]](Path(sys.argv[2]))
