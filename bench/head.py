"""The loss of a linear head, forward and backward, four ways: `python bench/head.py`.

Ours (chunks, compiled), PyTorch's chunks (`LinearCrossEntropyOptions`: they break a graph and do
not know autocast, so they run eagerly on weights that were cast), whole logits compiled, and
Liger's kernel where it is installed beside an accelerator. All take turns; the peak of memory is
that of a process for each.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable

import torch
from common import alternate, ratio, report
from torch.nn import functional
from turns import forget_highest, highest

from treering.methods.objectives.cross_entropy import linear_cross_entropy

SHAPES = {"3M": (4096, 192, 8192), "20M": (4096, 512, 8192), "large": (1024, 512, 65536)}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def ours(hidden_ND: torch.Tensor, head_VD: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    counts_N = torch.ones(len(targets_N), device=DEVICE)
    return linear_cross_entropy(hidden_ND, head_VD, targets_N, counts_N)[0]


def whole(hidden_ND: torch.Tensor, head_VD: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    logits = functional.linear(hidden_ND, head_VD).float()
    return functional.cross_entropy(logits, targets_N, reduction="sum")


def torchs(hidden_ND: torch.Tensor, head_VD: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    return functional.linear_cross_entropy(
        hidden_ND.bfloat16(), head_VD.bfloat16(), targets_N, reduction="sum",
        options=torch.nn.LinearCrossEntropyOptions(),
    )  # fmt: skip


def ligers(hidden_ND: torch.Tensor, head_VD: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return loss(head_VD.bfloat16(), hidden_ND.bfloat16(), targets_N)


def arms() -> dict[str, Loss]:
    found: dict[str, Loss] = {
        "ours": torch.compile(ours, dynamic=False),
        "PyTorch's chunks": torchs,
        "whole logits": torch.compile(whole, dynamic=False),
    }
    if DEVICE == "cuda" and importlib.util.find_spec("liger_kernel"):
        found["Liger"] = ligers
    return found


def made(loss: Loss, shape: str) -> Callable[[], list[torch.Tensor]]:
    """A call that gives the loss and both gradients, on the same numbers for every arm."""
    positions, width, vocabulary = SHAPES[shape]
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, width, generator=draw).to(DEVICE).requires_grad_()
    head = (torch.randn(vocabulary, width, generator=draw) * width**-0.5).to(DEVICE)
    targets = torch.randint(vocabulary, (positions,), generator=draw).to(DEVICE)
    head.requires_grad_()

    def call() -> list[torch.Tensor]:
        hidden.grad = head.grad = None
        with torch.autocast(DEVICE, torch.bfloat16):
            total = loss(hidden, head, targets)
        total.backward()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        assert hidden.grad is not None and head.grad is not None
        return [total.detach(), hidden.grad, head.grad]

    return call


def peak(name: str, shape: str) -> float:
    """MiB that a call needs beyond what a process holds between calls."""
    asked = [sys.executable, __file__, "--peak", name, shape]
    return float(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)


def measure_peak(name: str, shape: str) -> None:
    call = made(arms()[name], shape)
    call()  # compiles
    forget_highest()
    before = highest()
    call()
    print(highest() - before)


def main(rounds: int) -> None:
    figures: dict[str, object] = {"torch": torch.__version__}
    for shape in SHAPES:
        calls = {name: made(loss, shape) for name, loss in arms().items()}
        found = {name: call() for name, call in calls.items()}  # compile, and compare
        exact, *slopes = found["whole logits"]
        for name, (loss, *gradients) in found.items():
            off = [float((a - b).norm() / b.norm()) for a, b in zip(gradients, slopes, strict=True)]
            assert max(off) < 0.01, f"{name}: gradients differ by more than bf16 does: {off}"
            figures[f"{shape}: {name}, loss off by"] = float(abs(loss / exact - 1))
        took = alternate(calls, rounds)
        for name in calls:
            figures[f"{shape}: {name}, time of ours"] = ratio(took, name, "ours")
        for name in calls:
            figures[f"{shape}: {name}, peak MiB of a call"] = peak(name, shape)
    report("head", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--peak", nargs=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.peak:
        measure_peak(*options.peak)
    else:
        main(options.rounds)
