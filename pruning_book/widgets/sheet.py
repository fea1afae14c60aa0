"""Many small pictures as one: a sheet of equal tiles, row by row, that a page loads once."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Above this a sheet is stored with loss in a page; the pictures on disk stay as they are.
LOSSLESS_BYTES = 500_000


def to_pil(images: Any) -> list[Image.Image]:
    """Return RGB PIL images.

    They are given as such, as uint8 `[n, h, w, 3]`, or as a tensor `[n, 3, h, w]`, uint8 or float in [0, 1]; another
    shape or type is a ValueError.
    """
    if hasattr(images, "detach"):
        array = images.detach().cpu().float().numpy() * (1 if not images.is_floating_point() else 255)
        if array.ndim != 4 or array.shape[1] != 3:
            raise ValueError(f"images is a tensor of shape {tuple(images.shape)}; give [n, 3, height, width]")
        images = array.round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    if isinstance(images, np.ndarray):
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise ValueError(f"images is {images.dtype} {images.shape}; give uint8 [n, height, width, 3]")
        images = [Image.fromarray(image) for image in images]
    for image in images:
        if not isinstance(image, Image.Image):
            raise ValueError(f"images holds a {type(image).__name__}; give PIL images, a uint8 array or a tensor")
    return [image.convert("RGB") for image in images]


def data_url(image: Image.Image, budget: int = LOSSLESS_BYTES) -> str:
    """Return `image` as a WebP data URL, lossless where that stays within `budget` bytes."""
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True, method=4)
    if file.tell() > budget:
        file = io.BytesIO()
        image.save(file, "WEBP", quality=90, method=4)
    return _url(file.getvalue())


def _url(webp: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(webp).decode()


class Sheet:
    """`count` tiles of `width` x `height` pixels as one image, row by row; the last row may have empty places."""

    def __init__(self, image: Image.Image, width: int, height: int, count: int) -> None:
        if width < 1 or height < 1 or image.width % width or image.height % height:
            size = f"{image.width} x {image.height} px"
            raise ValueError(f"the sheet is {size}, which no tiles of {width} x {height} px fill")
        self.image, self.width, self.height, self.count = image.convert("RGB"), width, height, count
        self._file: bytes | None = None  # that was read; it needs no second encoding
        self.columns, rows = image.width // width, image.height // height
        if not self.columns * (rows - 1) < count <= self.columns * rows:
            wanted = f"{count} pictures are wanted (one for each combination of stops)"
            room = f"the sheet has room for {self.columns} x {rows} tiles"
            raise ValueError(f"{room}, and {wanted}. Record the missing ones, or remove empty rows.")

    @classmethod
    def pack(cls, images: Sequence) -> Sheet:
        """Make a sheet of at least one image, all of one size (as `to_pil` takes them), about as wide as high."""
        pictures = to_pil(images)
        sizes = {picture.size for picture in pictures}
        if not sizes:
            raise ValueError("images is empty")
        if len(sizes) > 1:
            raise ValueError(f"images have sizes {sorted(sizes)}; all must have the same")
        width, height = sizes.pop()
        columns = math.ceil(math.sqrt(len(pictures)))
        whole = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height), "white")
        for index, picture in enumerate(pictures):
            whole.paste(picture, (index % columns * width, index // columns * height))
        return cls(whole, width, height, len(pictures))

    @classmethod
    def read(cls, path: str | Path, width: int, height: int, count: int) -> Sheet:
        """Read a WebP that `save` wrote."""
        file = Path(path).read_bytes()
        with Image.open(io.BytesIO(file)) as image:
            sheet = cls(image.copy(), width, height, count)
        sheet._file = file
        return sheet

    def save(self, path: str | Path, quality: int | None = None) -> None:
        """Write the sheet as WebP, of a quality from 1 to 100; None stores it without loss."""
        how = {"lossless": True} if quality is None else {"quality": quality, "method": 6}
        self.image.save(path, "WEBP", **how)

    def url(self) -> str:
        """Return the sheet as a data URL: the file it was read from, or as `data_url` stores it."""
        return data_url(self.image) if self._file is None else _url(self._file)

    def url_of(self, picture: object) -> str:
        """Return a picture that was drawn anew, and takes the place of a tile of its size, as a data URL."""
        (image,) = to_pil([picture])
        if image.size != (self.width, self.height):
            raise ValueError(f"on_change returned an image of {image.size}; recorded: {(self.width, self.height)}")
        return data_url(image)

    def tile(self, index: int) -> Image.Image:
        """Return one picture."""
        left, top = index % self.columns * self.width, index // self.columns * self.height
        return self.image.crop((left, top, left + self.width, top + self.height))
