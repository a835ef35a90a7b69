"""GEM: as A-GEM, with a reference gradient for each corpus.

    g of the fresh rows, R: a row for each corpus, the gradient of its replayed rows; where R g has
    a negative number:  g <- g + R' v,  v = argmin 1/2 v' R R' v + (R g)' v  over v >= strength

(Lopez-Paz 2017, arXiv 1706.08840, equations 11 and 12; `strength` is the margin of its code.) At a
strength of 0 this is the nearest gradient that raises none of the losses to first order. Products
are over all weights at once and over all ranks, never weight by weight (TRACE's are). For its 1e-3
on the diagonal of R R' directions that are rounding alone are left out, which changes no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from treering.batch import Batch
from treering.config import Invalid
from treering.methods.updates.agem import stepped
from treering.methods.updates.descent import Descent
from treering.protocols import Learner, Metrics


@dataclass(frozen=True)
class GEM:
    """Holds a gradient more for each corpus among the step's replayed rows; a memory `over =
    "past"` has those of earlier phases alone. The program is solved on the host in float64, so that
    once a step the device is waited for. Where none disagrees it is plain training on the fresh
    rows, bit for bit; steps without replayed rows, or with no others, are plain steps."""

    strength: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise Invalid(f"update.strength = {self.strength}: must not be negative")

    def __call__(self, learner: Learner, batch: Batch) -> Metrics:
        if batch.replayed.all() or not batch.replayed.any():
            return Descent()(learner, batch)
        old, references = self._references(learner, batch)
        new = learner.backward(batch.only(~batch.replayed))  # the last: its loss is the guard's
        gradient = learner.waiting_gradient()
        every = [*references, gradient]
        pairs = [(i, j) for i in range(len(every)) for j in range(i + 1)][:-1]
        found = torch.stack([learner.dot(every[i], every[j]) for i, j in pairs]).tolist()
        products = np.zeros((len(every), len(every)))
        for (i, j), product in zip(pairs, found, strict=True):
            products[i, j] = products[j, i] = product
        gram, slopes = products[:-1, :-1], products[-1, :-1]
        factors = np.zeros(len(gram))
        if not np.isfinite(products).all():
            factors += np.nan  # the guard skips the step
        elif (slopes < 0).any():
            factors = solve(gram, slopes, self.strength)
        with torch.no_grad():
            for factor, reference in zip(factors, references, strict=True):
                if factor != 0:
                    torch._foreach_add_(gradient, reference, alpha=float(factor))
        return stepped(learner, batch, new, old, products=len(pairs))

    def _references(
        self, learner: Learner, batch: Batch
    ) -> tuple[Metrics, list[list[torch.Tensor]]]:
        """The gradient of each corpus's replayed rows; metrics with the mean loss of all."""
        gradients, parts = [], []
        sources = batch.refs.source
        for source in np.unique(sources[batch.replayed]):
            rows = batch.only(batch.replayed & (sources == source))
            parts.append((learner.backward(rows), len(rows) / int(batch.replayed.sum())))
            gradients.append(learner.take_gradient())
        loss = torch.stack([share * metrics.loss for metrics, share in parts]).sum()
        flops = sum(metrics.training_flops for metrics, _ in parts)
        return replace(parts[0][0], loss=loss, training_flops=flops), gradients

    def state(self, learner: Learner) -> dict[str, list[torch.Tensor]]:
        return {}

    def counters(self) -> dict[str, Any]:
        return {}

    def restore(self, counters: Mapping[str, Any]) -> None:
        pass

    def branches(self) -> dict[str, list[torch.Tensor]]:
        return {}


def solve(
    gram: NDArray[np.float64], slopes: NDArray[np.float64], margin: float
) -> NDArray[np.float64]:
    """argmin over v >= margin of 1/2 v' gram v + slopes' v, for gram = R R' and slopes = R g.

    By least squares over u = v - margin >= 0: with gram = F' F it is |F u + c|^2 where F' c is the
    slope at the margin, which lies in the rows of R, and so in those of F.
    """
    from scipy.optimize import nnls  # a third of a second, for this alone

    sizes, axes = np.linalg.eigh(gram)
    kept = sizes > 1e-12 * sizes.max()
    roots, axes = np.sqrt(sizes[kept]), axes[:, kept]
    at_margin = gram @ np.full(len(gram), margin) + slopes
    found: NDArray[np.float64] = nnls(roots[:, None] * axes.T, -(axes.T @ at_margin) / roots)[0]
    return margin + found
