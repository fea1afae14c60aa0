"""What the schedule painter shows of a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pruning_lib.steps.schedule import Grid

__all__ = ["grid_data", "short_name"]

_SAMPLER = {"downsamplers": "\u2193", "upsamplers": "\u2191"}


def short_name(name: str) -> str:
    """Return a unit's name for a narrow row: "down 0.1" for `down_blocks.0.layers.1`, "up 2 ↑" for an upsampler."""
    parts = name.split(".")
    side = {"down_blocks": "down", "up_blocks": "up", "mid_block": "mid", "transformer_blocks": "block"}
    if parts[0] not in side:
        return name
    words = [side[parts[0]], ".".join(parts[1:])]
    if len(parts) == 4:
        last = _SAMPLER.get(parts[2])
        first = {"resnets": "r", "attentions": "a"}.get(parts[2], "")
        words[1] = f"{parts[1]} {last}" if last else f"{parts[1]}.{first}{parts[3]}"
    return " ".join(filter(None, words))


def grid_data(grid: Grid) -> dict:
    """Return what the module needs to know about a grid."""
    whole = sum(grid.macs) + grid.base_macs
    groups = [".".join(name.split(".")[:2]) for name in grid.names]
    return {
        "names": list(grid.names),
        "labels": [short_name(name) for name in grid.names],
        "blocks": [sorted(set(groups)).index(group) for group in groups],
        "steps": grid.shape[0],
        "macs": list(grid.macs),
        "macs_without_attention": list(grid.macs_without_attention),
        "base_macs": grid.base_macs,
        "base_macs_without_attention": grid.base_macs_without_attention,
        "shares": [macs / whole for macs in grid.macs],
        "inputs": [sorted(found) for found in grid.wiring.inputs],
        "output": sorted(grid.wiring.output),
        "reads": grid.wiring.output_reads_input,
    }
