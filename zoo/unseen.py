"""Twenty-four things that emoji-sd never learned to draw, for teaching it something new.

They are Noto pictures like those it learned (Apache-2.0), plain objects that are no near duplicate of a known one.  The
autoencoder and the mini CLIP have seen them, in both styles; the denoiser has not.
"""

from __future__ import annotations

import json
from pathlib import Path

from .data import EmojiData

__all__ = ["UNSEEN", "save_unseen"]

UNSEEN = tuple(
    "key|bell|mobile phone|pencil|envelope|coin|watch|alarm clock|compass|mirror|window|bed|shopping cart|wheel|tent|"
    "hourglass done|brick|basket|shorts|church|amphora|yarn|package|telephone".split("|")
)
SIDE, COLUMNS = 64, 6


def save_unseen(data: EmojiData, folder: str | Path) -> None:
    """Write `images.png` and `captions.json` into `folder`.

    Args:
        data: the prepared pictures, see `EmojiData`.
        folder: made when absent.

    Raises:
        ValueError: `data` lacks one of the pictures in Noto's style, or it is one that emoji-sd learns.
    """
    place = {
        label: i
        for i, (label, style, concept) in enumerate(
            zip(data.labels, data.style.tolist(), data.concept.tolist(), strict=True)
        )
        if style == 0 and not concept
    }
    if missing := [name for name in UNSEEN if name not in place]:
        raise ValueError(f"The data has no unlearned Noto picture of {', '.join(missing)}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    from .assemble import contact_sheet  # here: it brings the whole training recipe with it

    pictures = data.images[[place[name] for name in UNSEEN]]
    contact_sheet(pictures, columns=COLUMNS).save(folder / "images.png", optimize=True)
    (folder / "captions.json").write_text(json.dumps(UNSEEN, indent=0) + "\n", encoding="utf-8")
