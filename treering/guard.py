"""Whether a step is to be skipped, decided on the device: its gradient is not finite, or it is a
spike.

A spike is a loss or a gradient norm that lies more than so many standard deviations above the mean
of the last steps of the phase. These begin anew with each phase: that the loss rises there is what
continual training is about.
"""

from __future__ import annotations

import torch

from treering import tables


class Guard:
    """The last losses and gradient norms. `state` are its tensors, for the checkpoint; there are
    none where spikes are not looked for."""

    def __init__(self, wanted: tables.Guard, device: torch.device) -> None:
        self._spike = wanted.spike
        self.state: dict[str, torch.Tensor] = {}
        if wanted.spike:
            self.state["last"] = torch.zeros(2, wanted.window, device=device)  # a ring each
            for name in ("seen", "phase"):
                self.state[name] = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def begin(self, phase: int) -> None:
        """Said before each step; `phase` is its number."""
        if self._spike:
            self.state["seen"] *= self.state["phase"] == phase
            self.state["phase"].fill_(phase)

    @torch.no_grad()
    def refuses(self, loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """1.0 where the step is to be skipped, else 0.0; float32[]. Others are remembered."""
        finite = torch.isfinite(norm) & torch.isfinite(loss)
        if not self._spike:
            return (~finite).float()
        last, seen = self.state["last"], self.state["seen"]
        window = last.shape[1]
        now = torch.stack([loss.float(), norm.float()])
        places = torch.arange(window, device=last.device)
        known = (places < seen).float()
        count = known.sum().clamp(min=1)
        mean = (last * known).sum(1) / count
        spread = (((last - mean[:, None]) ** 2 * known).sum(1) / count).sqrt()
        enough = seen >= window // 2
        spikes = (now > mean + self._spike * spread).any() & enough
        taken = finite & ~spikes
        here = (places == seen % window) & taken  # to index by a tensor would wait for the device
        last.copy_(torch.where(here, now[:, None], last))
        seen += taken
        return (~taken).float()
