"""Images as small files in the page itself."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

LARGEST_SIDE = 96
_SMALL = 64
"""Images of at most so many pixels a side are kept as they are, without loss."""
_MOST_PIXELS = 64 << 20
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM")


class Picture(NamedTuple):
    """An image for the page: a data URI, its own width and height, and whether it is shown pixel by pixel."""

    uri: str
    width: int
    height: int
    pixelated: bool


def is_encoded(value: object) -> bool:
    """Whether bytes are those of an image file."""
    return isinstance(value, bytes) and value.startswith(_MAGIC)


def of_file(data: bytes, side: int = LARGEST_SIDE) -> Picture | None:
    """The image in an image file; None where it can't be read, or is larger than 64 million pixels."""
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > _MOST_PIXELS:
            return None
        image.draft("RGB", (2 * side, 2 * side))
        return _encoded(image.convert("RGBA" if "A" in image.getbands() else "RGB"), side)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # of which Pillow raises each for damaged files
        return None


def of_array(pixels: np.ndarray, low: float, high: float, side: int = LARGEST_SIDE) -> Picture:
    """The image of an array [h, w], [h, w, 1] or [h, w, 3] whose values lie between `low` (black) and `high` (white)."""
    scaled = (np.nan_to_num(np.asarray(pixels, np.float64)) - low) / ((high - low) or 1.0)
    eight = np.clip(np.round(255 * scaled), 0, 255).astype(np.uint8)
    return _encoded(Image.fromarray(eight[..., 0] if eight.ndim == 3 and eight.shape[-1] == 1 else eight), side)


def _encoded(image: Image.Image, side: int) -> Picture:
    buffer = io.BytesIO()
    if max(image.size) <= _SMALL:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.convert("RGB").save(buffer, "JPEG", quality=82, optimize=True)
        kind = "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(uri, image.width, image.height, max(image.size) <= _SMALL)
