"""Out of memory, in words that help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["explains_out_of_memory"]

# What PyTorch says when memory is short on a CPU; on a GPU it raises its own kind of error.
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory")


@contextmanager
def explains_out_of_memory(batch: int, checkpointing: bool, bf16: bool) -> Iterator[None]:
    """Turn running out of memory into a MemoryError that says what to lower.

    Args:
        batch: prompts that were run together.
        checkpointing: whether a call's activations were computed again instead of kept.
        bf16: whether half precision was used.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        short = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not short and not any(sign in str(error).lower() for sign in _SIGNS):
            raise
        advice = []
        if not checkpointing:
            advice.append("checkpointing=True, so that one call's activations are kept instead of all calls'")
        if batch > 1:
            advice.append(
                f"a smaller batch, such as batch={batch // 2} (with accumulation=2 for the same step)"
            )
        if not bf16:
            advice.append("bf16=True")
        advice.append("loss='latent', which decodes no picture, or a smaller picture")
        raise MemoryError(
            f"Out of memory with batch={batch}, checkpointing={checkpointing}. Try {'; or '.join(advice)}."
        ) from error
