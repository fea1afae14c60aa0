"""What all modified denoisers have in common: the first call, up to the operator that was changed.

The first step begins with the same noise, text and time for every modified denoiser.  So each module that had finished
before the changed operator was first called gives what it gave in the original, bit for bit, and need not run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..checks import path_levels

__all__ = ["FirstCall"]

_LEVELS = 2  # "down_blocks.0.resnets.1" has two; deeper ones are too many to keep, and cheap to run again


@dataclass
class FirstCall:
    """Outputs of the modules in one call of a denoiser.

    Attributes:
        bytes: of all kept outputs together.
    """

    bytes: int = 0
    _outputs: dict[str, object] = field(default_factory=dict)  # in the order in which they finished
    _versions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _before: dict[str, int] = field(default_factory=dict)  # operator -> how many had finished when it began

    @contextmanager
    def recording(self, denoiser: nn.Module, operators: Iterable[str]) -> Iterator[None]:
        """Keep what the modules give in the first call inside this context.

        Args:
            denoiser: the unchanged model.
            operators: paths of all that may be changed later.
        """
        calls: dict[str, int] = {}
        hooks = []

        def stop(*_) -> None:
            while hooks:
                hooks.pop().remove()

        def ended(path: str):
            def hook(module, args, output) -> None:
                calls[path] = calls.get(path, 0) + 1
                self._outputs[path], self._versions[path] = output, _versions(output)

            return hook

        def begun(path: str):
            def hook(module, args) -> None:
                self._before.setdefault(path, len(self._outputs))

            return hook

        for path, module in denoiser.named_modules():
            if 0 < len(path_levels(path)) <= _LEVELS:
                hooks.append(module.register_forward_hook(ended(path)))
        for path in operators:
            hooks.append(denoiser.get_submodule(path).register_forward_pre_hook(begun(path)))
        hooks.append(denoiser.register_forward_hook(stop))
        try:
            yield
        finally:
            stop()
        self._versions = {path: kept for path, kept in self._versions.items() if calls[path] == 1}
        stored = {t.untyped_storage().data_ptr(): t for output in self._outputs.values() for t in _tensors(output)}
        self.bytes = sum(t.untyped_storage().nbytes() for t in stored.values())

    def shared(self, changed: Iterable[str]) -> list[str]:
        """Return the paths of the modules that need not run in the first call when these operators are changed."""
        first = min((self._before.get(path, 0) for path in changed), default=0)
        # A module that was called twice, or whose output was written to since, has no output to give.
        return [
            path
            for path, output in list(self._outputs.items())[:first]
            if self._versions.get(path) == _versions(output)
        ]

    @contextmanager
    def replaying(self, denoiser: nn.Module, changed: Iterable[str]) -> Iterator[None]:
        """Give what was kept instead of running it, in the first call inside this context.

        Args:
            denoiser: the model with some operators changed.
            changed: their paths.
        """
        patched = []

        def stop(*_) -> None:
            while patched:
                _restore(*patched.pop())

        for path in self.shared(changed):
            patched.append(_replace_forward(denoiser.get_submodule(path), self._outputs[path]))
        hook = denoiser.register_forward_hook(stop)
        try:
            yield
        finally:
            hook.remove()
            stop()


def _replace_forward(module: nn.Module, output: object) -> tuple[nn.Module, object]:
    before = module.__dict__.get("forward")  # accelerate and diffusers hang theirs there
    module.__dict__["forward"] = lambda *args, **kwargs: output
    return module, before


def _restore(module: nn.Module, before: object) -> None:
    if before is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = before


def _tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):  # diffusers' output classes are dicts too
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return [tensor for item in output for tensor in _tensors(item)]
    return []


def _versions(output: object) -> tuple[int, ...]:
    """Return how often each tensor was written to in place."""
    return tuple(-1 if t.is_inference() else t._version for t in _tensors(output))
