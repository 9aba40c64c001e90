"""Texts as arrays that can be saved: bytes of one width, which NumPy pads with NULs and cuts at the last one that is none."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_END = b"."  # so that a text's own trailing NULs stay


def texts_to_bytes(texts: Iterable[object]) -> np.ndarray:
    """Texts (N,) as UTF-8 in an array without objects."""
    return np.array([str(text).encode() + _END for text in texts], dtype=np.bytes_)


def bytes_to_texts(encoded: np.ndarray) -> np.ndarray:
    """What `texts_to_bytes` was given: (N,) of str."""
    return np.array([text[: -len(_END)].decode() for text in encoded.tolist()], dtype=object)
