"""The yardsticks: multiply-accumulates, latency, quality, and the record with its passport.

Nothing here knows the zoo; models come in as arguments.  Names are imported when used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

_WHERE = {
    "MacsReport": "macs",
    "ModuleCost": "macs",
    "count_macs": "macs",
    "backward_bytes": "backward",
    "kept_for_backward": "backward",
    "example_inputs": "inputs",
    "families": "inputs",
    "Latency": "latency",
    "measure_latency": "latency",
    "ratio": "latency",
    "Interval": "interval",
    "bootstrap_interval": "interval",
    "psnr": "quality",
    "ssim": "quality",
    "clip_score": "quality",
    "retrieval_rank": "quality",
    "FrechetResult": "distribution",
    "RankDeficientWarning": "distribution",
    "frechet": "distribution",
    "frechet_distance": "distribution",
    "frechet_interval": "distribution",
    "InceptionUnavailableError": "inception",
    "clean_resize": "inception",
    "torchvision_is_healthy": "inception",
    "RecordError": "record",
    "load_record": "record",
    "passport": "record",
    "save_record": "record",
}

__all__ = list(_WHERE)

if TYPE_CHECKING:
    from .backward import backward_bytes, kept_for_backward
    from .distribution import FrechetResult, RankDeficientWarning, frechet, frechet_distance, frechet_interval
    from .inception import InceptionUnavailableError, clean_resize, torchvision_is_healthy
    from .inputs import example_inputs, families
    from .interval import Interval, bootstrap_interval
    from .latency import Latency, measure_latency, ratio
    from .macs import MacsReport, ModuleCost, count_macs
    from .quality import clip_score, psnr, retrieval_rank, ssim
    from .record import RecordError, load_record, passport, save_record

__getattr__, __dir__ = lazy_names(__name__, _WHERE)
