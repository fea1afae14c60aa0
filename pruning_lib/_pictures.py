"""Where drawn pictures go: names, and a check of the place before any drawing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .files import check_place

__all__ = ["picture_paths"]

_OTHER = {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def picture_paths(out: Path, prompts: Sequence[str], seed: int) -> list[Path]:
    """Return one PNG path per prompt, in a folder that is made and can be written to.

    Args:
        out: a folder; or, for one prompt, a .png file.
        prompts: name the files, after their number.
        seed: ends the names.

    Raises:
        ValueError: several prompts for one file, another kind of file, or a place that cannot be written to.
    """
    one_file = out.suffix.lower() == ".png"
    if one_file and len(prompts) > 1:
        raise ValueError(f"{len(prompts)} prompts do not fit into one file, {out}. Give a folder.")
    if out.suffix.lower() in _OTHER:
        raise ValueError(f"--out {out}: pictures are saved as PNG. Give a folder or a .png.")
    slugs = [re.sub(r"\W+", "-", prompt.lower()).strip("-")[:40] or "prompt" for prompt in prompts]
    paths = [out] if one_file else [out / f"{i:02d}-{slug}-{seed}.png" for i, slug in enumerate(slugs)]
    try:
        for path in paths:
            check_place(path)
    except OSError as error:
        raise ValueError(
            f"--out {out}: cannot make the folder {path.parent}, or write there: {error.strerror or error}. "
            "Give a folder or a .png."
        ) from error
    return paths
