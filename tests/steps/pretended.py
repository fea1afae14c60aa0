"""A pretended GPU: tensors say that they are on "cuda:0", refuse what a GPU refuses, and compute on the CPU.

So tensors on two devices that meet are seen, and reads, for which the CPU waits until all queued work is done.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CUDA, aten = torch.device("cuda:0"), torch.ops.aten
_READS = {aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select, aten.bincount}
_INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class Pretended(torch.Tensor):
    """A tensor of the pretended GPU; `inner` holds its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_meta, is_cpu, is_cuda = (property(lambda self, is_it=is_it: is_it) for is_it in (False, False, True))

    @staticmethod
    def __new__(cls, real: torch.Tensor):
        options = {"strides": real.stride(), "storage_offset": real.storage_offset(), "dtype": real.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, real.shape, **options, device="meta")
        made.inner = real
        return made

    @classmethod
    def __torch_dispatch__(cls, func, *given):
        raise RuntimeError(f"{func} of a pretended tensor, outside `with gpu:`")

    def tolist(self) -> list:
        return self.cpu().tolist()


class PretendedGPU(TorchDispatchMode):
    """Runs everything inside `with gpu:`; counts by module the copies and reads that make the CPU wait."""

    def __enter__(self):
        self.waits = Counter()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") makes a CPU tensor first
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, op = kwargs or {}, func.overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        ours = [isinstance(tensor, Pretended) for tensor in tensors]
        device = kwargs.get("device")
        to_gpu = any(ours) if device is None else torch.device(device).type in ("cuda", "meta")
        if op is aten.copy_:
            to_gpu = ours[0]
        if op in (aten.copy_, aten._to_copy):
            if to_gpu != ours[-1]:
                self._count()
        elif any(ours) and not (op in _INDEXING and ours[0]):
            if any(tensor.ndim and not our for tensor, our in zip(tensors, ours, strict=True)):
                raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cuda:0 and cpu")
        if to_gpu and kwargs.get("generator") is not None:
            raise RuntimeError(f"{func}: expected a 'cuda' device type for generator but found 'cpu'")
        by_mask = op in _INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
        if any(ours) and (op in _READS or by_mask):
            self._count()
        here = {**kwargs, "device": torch.device("cpu")} if device is not None and to_gpu else kwargs
        out = func(*tree_map(real, args), **tree_map(real, here))
        if not to_gpu:
            return out
        out = tree_map(lambda x: Pretended(x) if isinstance(x, torch.Tensor) else x, out)
        return return_and_correct_aliasing(func, args, kwargs, out)

    def _count(self) -> None:
        """Name the module, outside PyTorch, that asks for an operation; samplers of diffusers read values, too."""
        frame = sys._getframe(2)
        while (name := frame.f_globals["__name__"]).partition(".")[0] in ("torch", __name__):
            frame = frame.f_back
        if not name.startswith(("diffusers.", "transformers.")):
            self.waits[name] += 1

    def holds(self, thing):
        """Return a copy of a module, or of a pipeline, on this GPU."""
        thing = copy.deepcopy(thing)
        tops = [thing] if isinstance(thing, nn.Module) else thing.components.values()
        for part in (inner for top in tops if isinstance(top, nn.Module) for inner in top.modules()):
            with self:
                for name, weight in part._parameters.items():
                    if weight is not None:
                        part._parameters[name] = nn.Parameter(Pretended(weight.detach()), weight.requires_grad)
            part._buffers.update({k: None if b is None else Pretended(b) for k, b in part._buffers.items()})
        return thing


def real(x):
    return x.inner if isinstance(x, Pretended) else x
