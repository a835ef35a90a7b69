"""What is asked of a model itself, as no config says it of all models."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from treering import attention
from treering.config import Invalid
from treering.forward import Forward
from treering.methods.objectives.next_token import NextToken
from treering.protocols import Objective


@torch.no_grad()
def is_linear(forward: Forward, chunked: Objective, whole: Objective) -> bool:
    """Whether a model's losses are the same by `chunked`, which multiplies hidden states and head
    itself, as by `whole`, which asks for the model's logits.

    They are not where these have a bias, a cap or a scale. So the model is asked, over a few
    tokens, with its head made 1,024 times as large (which is exact, and undone): a cap shows at
    large logits alone. All ranks must ask.
    """
    root = forward.root
    head = root.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    given, was = root.objective, root.training
    tokens = torch.arange(9, device=forward.mesh.device)[None] % head.weight.shape[0]
    count = torch.ones(1, device=forward.mesh.device)
    head.weight.mul_(1024)
    root.eval()
    losses = []
    with torch.compiler.set_stance("force_eager"):
        for root.objective in (chunked, whole):
            losses.append(root(tokens, count)[1])
            forward.settle()
    root.train(was)
    head.weight.div_(1024)
    root.objective = given
    return torch.allclose(losses[0], losses[1], rtol=1e-4)


def check_attention(forward: Forward, whole: NextToken) -> None:
    """Raises Invalid for a model that sees across the end of a document although it should not, as
    some have layers that know nothing of positions. One that sees what is to come when it is given
    no mask goes back to what transformers makes for it. All ranks must ask."""
    model = forward.root.model
    if attention.is_own(model) and not _is_causal(forward, replace(whole, document_end=None)):
        attention.back(model)
    end = whole.document_end
    if end is None:
        return
    a, b, c, d, e = [token for token in range(6) if token != end][:5]
    logits = _logits(forward, whole, [[a, b, c, end, d, e], [c, d, e, end, d, e]])
    if not torch.allclose(logits[0, 3:], logits[1, 3:], rtol=1e-3, atol=1e-3):
        raise Invalid(
            "model.attention = 'document': this model's layers see across documents; use 'causal'"
        )


def _is_causal(forward: Forward, whole: NextToken) -> bool:
    """Whether what comes later changes nothing of what is predicted before."""
    logits = _logits(forward, whole, [[1, 2, 3, 4, 5, 6], [1, 2, 3, 6, 5, 4]])
    near = 1e-5 * float(logits.abs().max())  # what is to come shows little in a fresh model
    return torch.allclose(logits[0, :3], logits[1, :3], rtol=1e-5, atol=near)


@torch.no_grad()
def _logits(forward: Forward, whole: NextToken, inputs: list[list[int]]) -> torch.Tensor:
    """Those of rows of inputs, as in training but without dropout."""
    tokens = torch.tensor([[*row, 0] for row in inputs], device=forward.mesh.device)
    with forward.gathered() as model, torch.compiler.set_stance("force_eager"):
        was = model.training
        model.eval()  # type: ignore[no-untyped-call]
        logits = whole.logits(model, tokens)
        model.train(was)
    return logits
