"""What tells one denoiser from another."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

from torch import nn

from ..measure.denoiser import denoiser_of

__all__ = ["Base", "denoiser_of"]

@dataclass(frozen=True)
class Base:
    """What a plan must fit: the structure of a denoiser. Weights do not count, so a fine-tuned model fits as well.

    Attributes:
        class_name: of the denoiser.
        params: number of parameters.
        structure: hash of the names and shapes of all its weights.
    """

    class_name: str
    params: int
    structure: str

    @classmethod
    def of(cls, denoiser: nn.Module) -> Base:
        """Describe a denoiser, as it stands."""
        weights = denoiser.state_dict(keep_vars=True)
        text = "\n".join(f"{name} {tuple(value.shape)}" for name, value in sorted(weights.items()))
        params = sum(p.numel() for p in denoiser.parameters())
        return cls(type(denoiser).__name__, params, hashlib.sha256(text.encode()).hexdigest()[:16])

    def __str__(self) -> str:
        return f"{self.class_name} of {self.params:,} parameters (structure {self.structure})"

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict of plain values."""
        return asdict(self)
