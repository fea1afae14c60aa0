"""The pruner network of DiP-GO (arXiv 2410.16942, Section 3.3), and the gates that its logits open and shut.

One learned query for each call and unit; self-attention among the queries of a call; then an MLP per query, whose two
logits say "reuse" and "keep".  The network has no input: its weights are a way of writing down T x N numbers that
share what they learn.  After training only the numbers are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GateTable", "PrunerNetwork", "keep_probability", "straight_through"]

_KEEP = (0.0, 1.0)  # first logits, "reuse" and "keep": the probability to keep begins at 0.73


class PrunerNetwork(nn.Module):
    """N x T learned queries -> self-attention -> MLP -> two logits each.

    Args:
        calls: T, calls of the denoiser, >= 1.
        units: N, >= 1.
        width: of a query; the published code has 512.
        heads: of the attention; must divide the width.

    Raises:
        ValueError: numbers out of range.
    """

    def __init__(self, calls: int, units: int, *, width: int = 512, heads: int = 8):
        super().__init__()
        for name, value in (("calls", calls), ("units", units), ("width", width), ("heads", heads)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}; it must be a whole number >= 1.")
        if width % heads or width < 4:
            raise ValueError(f"width={width} must be at least 4 and a multiple of heads={heads}.")
        self.queries = nn.Parameter(torch.randn(calls, units, width))
        self.encoder = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)
        hidden = width // 4
        self.head = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2)
        )
        # Zero weights and this bias: at first every gate is open, and all of them alike.
        nn.init.zeros_(self.head[-1].weight)
        self.head[-1].bias.data = torch.tensor(_KEEP)

    def forward(self) -> Tensor:
        """Return logits `[T, N, 2]`: reuse, keep."""
        return self.head(self.encoder(self.queries))  # the calls are the batch


class GateTable(nn.Module):
    """The same T x N x 2 logits without a network: each learns for itself.

    Args:
        calls, units: T and N.
    """

    def __init__(self, calls: int, units: int):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(_KEEP).repeat(calls, units, 1))

    def forward(self) -> Tensor:
        """Return logits `[T, N, 2]`: reuse, keep."""
        return self.logits


def keep_probability(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the probability to keep, the second softmax value.

    Args:
        logits: `[..., 2]`.
        temperature: > 0; the lower, the nearer to 0 and 1.

    Returns:
        `[...]`, in [0, 1].
    """
    return F.softmax(logits.float() / temperature, dim=-1)[..., 1]


def straight_through(probability: Tensor, on: Tensor | None = None, leak: float = 0.0) -> Tensor:
    """Return hard gates that pass gradients on as if they were the probabilities (Bengio et al. 2013).

    Args:
        probability: `[T, N]`.
        on: bool `[T, N]`, the gates to open. Default: those with a probability of at least one half.
        leak: what a shut gate lets through, in [0, 1). At 0 nothing behind a shut gate has a gradient.

    Returns:
        `[T, N]`: 1 where open, `leak` where shut; row 0 is always open.
    """
    on = (probability >= 0.5) if on is None else on
    hard = torch.where(on, 1.0, leak).to(probability)
    hard[0] = 1.0
    return hard + probability - probability.detach()
