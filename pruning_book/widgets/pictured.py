"""Widgets with one sheet of pictures, and how they lie on disk: a record, and the sheet beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from pruning_lib.checks import place
from pruning_lib.records import RecordError, check_writable, load_record, record_path, save_record

from .base import TwinWidget, passport_line
from .sheet import Sheet, data_url

MAX_ALT = 250


class Pictured(TwinWidget):
    """A widget whose pictures lie in one sheet. Subclasses say what their records hold.

    Args:
        name, on_change: as of a `TwinWidget`.
        images: PIL images, uint8 `[n, h, w, 3]`, a tensor `[n, 3, h, w]`, or a `Sheet`.
        count, counted: how many there must be, and what makes them so many, for the message.
        title: one line above the controls.
        picture: what the pictures are, for those who do not see them, as in "image from emoji-sd".
        passport: of the record, or a sentence; shown below.
    """

    kind: ClassVar[str] = ""  # what a record of it is called in messages
    fields: ClassVar[tuple[str, ...]] = ()  # of a record; each is an argument of the class

    def __init__(
        self,
        name: str,
        images: Any,
        count: int,
        counted: str,
        *,
        title: str,
        picture: str = "generated image",
        passport: Mapping | str | None = None,
        on_change: Callable[[dict], Mapping] | None = None,
    ) -> None:
        super().__init__(name, on_change=on_change)
        self.title, self.picture, self.passport = title, picture, passport_line(passport)
        self.sheet = images if isinstance(images, Sheet) else Sheet.pack(images)
        if self.sheet.count != count:
            raise ValueError(f"there are {self.sheet.count} images; {counted} make {count}, and each needs one.")

    count: Callable[[Mapping[str, Any]], int]  # the number of pictures, from the data of a record
    record: Callable[[], dict[str, Any]]  # the data of a record

    @classmethod
    def arguments(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the class is called with, from the data of a record."""
        return {key: data[key] for key in cls.fields}

    @classmethod
    def from_record(cls, record: str | Path, name: str, **options: Any) -> Any:
        """Make a widget from a record that `save` wrote, given by name or file.

        `name` and `options` are as for the class; `passport` comes from the record. A RecordError says that the record
        cannot be read or is of another kind, or that its sheet is missing or another one.
        """
        found, path = load_record(record), record_path(record)
        data = found["data"]
        if missing := [key for key in (*cls.fields, "tile", "sheet") if key not in data]:
            raise RecordError(f"{path} is no record of {cls.kind}: its data lack {', '.join(missing)}.")
        file = path.with_name(data["sheet"]["file"])
        if not file.is_file():
            raise RecordError(f"{file}, the sheet of {path.name}, is missing. Restore it from version control.")
        if _checksum(file) != data["sheet"]["sha256"]:
            told = f"{file} is not the sheet that {path.name} was written with (its SHA-256 differs)."
            raise RecordError(f"{told} Restore both from version control, or measure again.")
        try:
            arguments = cls.arguments(data)
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"{path} is damaged: {error!r}. Record it anew.") from error
        sheet = Sheet.read(file, *data["tile"], cls.count(data))
        return cls(name, images=sheet, **arguments, **{"passport": found["passport"], **options})

    def save(
        self, path: str | Path, experiment: str, passport: Mapping, *, quality: int | None = None, **more: Any
    ) -> Path:
        """Write the figures as a record, `path`, ending in .json, and the pictures as a sheet beside it, with .webp.

        `experiment` is its name, `passport` as `passport()` returns it, `quality` that of the sheet, 1 to 100, or None
        for no loss; `more` are further data, JSON-ready. A place that cannot be written to is a RecordError.
        """
        path = check_writable(path)
        file = path.with_suffix(".webp")
        self.sheet.save(file, quality)
        told = {"tile": [self.sheet.width, self.sheet.height], "sheet": {"file": file.name, "sha256": _checksum(file)}}
        return save_record(path, experiment, {**told, **self.record(), **more}, passport)

    def data(self) -> dict:
        """Return what all modules draw; subclasses add to it."""
        return {"version": 1, "name": self.name, "title": self.title, "picture": self.picture}

    def tiles(self, src: str) -> dict[str, Any]:
        """Return what the module needs to find its pictures in the sheet at an address."""
        return {"src": src, "columns": self.sheet.columns, "width": self.sheet.width, "height": self.sheet.height}

    def pair(self, shown: Iterable[tuple[str, Image.Image]], *about: str) -> str:
        """Return pictures beside one another for the static side, each with its words below."""
        figures = (
            f'<figure><img src="{data_url(tile)}" width="{tile.width}" height="{tile.height}" '
            f'alt="{escape(", ".join((self.picture, *about, what))[:MAX_ALT])}">'
            f"<figcaption>{escape(what)}</figcaption></figure>"
            for what, tile in shown
        )
        return f'<div class="pl-pair">{"".join(figures)}</div>'


class Prompted(Pictured):
    """A widget that shows the same `prompts`, of a `model`, for each of several changes to it.

    `images` are for each prompt one picture of every change, `n` the pictures behind each mean SSIM; `changes` has what
    each change is called in messages, and the SSIM of its pictures, one for each prompt; `counted` says how many
    changes there are of what kinds. The rest is as of a `Pictured`.
    """

    answers: ClassVar[tuple[str, ...]] = ("ssim",)  # numbers that `on_change` returns beside the image

    def __init__(
        self,
        name: str,
        images: Any,
        *,
        model: str,
        prompts: Sequence[str],
        n: int,
        changes: Sequence[tuple[str, Sequence[float]]],
        counted: str,
        **options: Any,
    ) -> None:
        self.model, self.prompts, self.n, self.each = model, list(prompts), n, len(changes)
        if not self.prompts or len(set(self.prompts)) < len(self.prompts):
            raise ValueError(f"prompts are {self.prompts}; give at least one, none twice.")
        for label, values in changes:
            if len(values) != len(self.prompts):
                raise ValueError(f"{label} has {len(values)} values of ssim for {len(self.prompts)} prompts.")
        counted = f"{len(self.prompts)} prompts with {counted}"
        super().__init__(name, images, self.each * len(self.prompts), counted, **options)

    def record(self) -> dict[str, Any]:
        return {"model": self.model, "n": self.n, "prompts": self.prompts}

    def data(self) -> dict:
        told = {"model": self.model, "passport": self.passport, "prompts": self.prompts, "n": self.n}
        return {**super().data(), **told, "start": self.start}

    def tile_of(self, prompt: str, change: int) -> Image.Image:
        """Return the recorded picture of a prompt and the change at a place of the list."""
        return self.sheet.tile(place(prompt, self.prompts, "prompt") * self.each + change)

    def answer(self, state: dict) -> dict:
        """Return what `on_change` computed for `state`, checked and ready for the page."""
        given = dict(self.on_change(state))
        return {"image": self.sheet.url_of(given["image"]), **{key: float(given[key]) for key in self.answers}}


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
