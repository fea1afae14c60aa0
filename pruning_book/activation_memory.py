"""What the backward pass needs to find in memory, counted without weights on the meta device, as MACs are.

The count is a lower bound of what a GPU shows: passing temporaries, libraries' work space and the allocator's gaps come
on top. Attention is counted as fused kernels keep it (queries, keys, values, output and one number per row), not the
table of all products that the plain formula would keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pruning_lib.denoisers import example_inputs, meta_copy


def kept_for_backward(call: Callable[[], Any], apart: Iterable[Tensor] = ()) -> int:
    """Return the bytes that autograd keeps while `call`, a forward pass with gradients on, runs, each storage once.

    Zero if nothing in the call asks for a gradient. `apart` are tensors that are there anyway, such as weights, and are
    not counted.

    Example:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> kept_for_backward(lambda: x.exp())
        4000
    """
    known = {_storage(t) for t in apart}
    # The storages are kept alive until the end: an address that is free again would be taken for a known one.
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in known:
            found[_storage(tensor)] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storage.nbytes() for storage in found.values())


def backward_bytes(
    denoiser: nn.Module,
    *,
    sample_size: int | tuple[int, int] | None = None,
    batch: int = 1,
    dtype: torch.dtype = torch.float16,
    checkpointing: bool = False,
) -> int:
    """Count the bytes, without weights, that one call of a frozen denoiser keeps for a gradient at its input.

    Args:
        denoiser: of a known family; it is only read, its weights may be absent.
        sample_size, batch: as in `example_inputs`; guidance doubles the batch.
        dtype: of weights and activations.
        checkpointing: with diffusers' own gradient checkpointing, block by block; a ValueError says that there is none.
    """
    copy = nn.Module.to(meta_copy(denoiser), dtype).requires_grad_(False)  # diffusers' own `to` warns
    if checkpointing:
        if not getattr(copy, "_supports_gradient_checkpointing", False):
            raise ValueError(f"{type(copy).__name__} has no gradient checkpointing of its own.")
        copy.enable_gradient_checkpointing()
        copy.train()  # diffusers checkpoints in training only
    inputs = example_inputs(copy, sample_size=sample_size, batch=batch, dtype=dtype)
    inputs["sample" if "sample" in inputs else "hidden_states"].requires_grad_()
    with torch.enable_grad(), _fused_attention():
        return kept_for_backward(lambda: copy(**inputs), [*copy.parameters(), *copy.buffers()])


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Let attention keep what fused kernels keep; on the meta device PyTorch would take the plain formula."""
    functional, plain = torch.nn.functional, torch.nn.functional.scaled_dot_product_attention

    def fused(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype)  # the kernel takes what is added
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        return kernel(q, k, v, attn_mask, True, dropout_p, is_causal, scale=scale)[0]

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain
