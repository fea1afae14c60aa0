"""What structured pruning returns: a smaller ordinary UNet, with the sizes before and after."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..measure.macs import count_macs

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = ["Smaller", "build", "cast", "check_unet", "plain_config", "sizes"]


@dataclass(frozen=True, kw_only=True)
class Smaller:
    """A smaller UNet and its size beside that of the one it was cut from.

    Attributes:
        unet: the smaller model, dense, in evaluation mode. `unet.save_pretrained(folder)` writes it, and
            `UNet2DConditionModel.from_pretrained(folder)` reads it back; `pipe.unet = unet` puts it into a pipeline.
        params_before, params_after: parameters.
        macs_before, macs_after: of one call, batch 1, with attention products.
    """

    unet: UNet2DConditionModel = field(repr=False)
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int

    @property
    def params_ratio(self) -> float:
        """Share of the parameters that was removed."""
        return 1 - self.params_after / self.params_before

    @property
    def macs_ratio(self) -> float:
        """Share of the MACs that was removed."""
        return 1 - self.macs_after / self.macs_before


def sizes(before: nn.Module, after: nn.Module) -> dict[str, int]:
    """Return the four counts of `Smaller`."""
    whole, less = count_macs(before), count_macs(after)
    return {
        "params_before": whole.params, "params_after": less.params,
        "macs_before": whole.macs, "macs_after": less.macs,
    }  # fmt: skip


def plain_config(unet: UNet2DConditionModel) -> dict[str, object]:
    """Return a copy of the configuration in which every entry counts, for `from_config` of a changed one."""
    config = dict(unet.config)
    config.pop(
        "_use_default_values", None
    )  # diffusers would put the defaults back, whatever stands there now
    return config


def cast(unet: UNet2DConditionModel, dtype: torch.dtype) -> UNet2DConditionModel:
    """Return the module itself with weights of another type, without the warning that diffusers gives for it."""
    return nn.Module.to(unet, dtype)


def build(config: dict[str, object], device: torch.device) -> UNet2DConditionModel:
    """Return an untrained UNet in evaluation mode, made where it belongs: on the meta device that costs nothing."""
    from diffusers import UNet2DConditionModel  # here: it brings half of diffusers and transformers

    with torch.device(device):
        return UNet2DConditionModel.from_config(config).eval()


def check_unet(unet: object, what: str, more: str = "") -> None:
    """Raise TypeError unless `unet` is a `UNet2DConditionModel`; `what` says what wanted one, `more` why."""
    from diffusers import UNet2DConditionModel

    if not isinstance(unet, UNet2DConditionModel):
        hint = " Pass its unet: pipe.unet." if hasattr(unet, "components") else ""
        raise TypeError(f"{what} a UNet2DConditionModel; got {type(unet).__name__}.{hint}{more}")
