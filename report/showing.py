"""How an example is shown: as a picture, as text with its tokens, or as a row; found out from the examples, or by the user's function."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from beam_influence.influence_ops.import_path import load_object
from beam_influence.report.examples import StoredExample, Value, as_text
from beam_influence.report.pictures import LARGEST_SIDE, Picture, is_encoded, of_array, of_file
from beam_influence.report.tokens import Tokenizer

MOST_FIELDS = 30
_MOST_CHARACTERS = 600
MOST_TOKENS = 60
_LEAST_SIDE = 8

ShowFunction: TypeAlias = Callable[[dict[str, Any]], Any]


@dataclasses.dataclass(frozen=True)
class Shown:
    """An example as a page has it: any of a picture, text, tokens, and named values.

    Attributes:
      token_count: how many tokens there are, also those that are not shown.
      is_padded: whether the model makes them of its only text, and pads or cuts them to a length of its own.
    """

    picture: Picture | None = None
    text: str = ""
    tokens: tuple[str, ...] = ()
    fields: tuple[tuple[str, str], ...] = ()
    left_out: int = 0
    token_count: int = 0
    is_padded: bool = False

    @property
    def words(self) -> str:
        """All of its text, to be searched."""
        return " ".join([self.text, *self.tokens, *(f"{name} {value}" for name, value in self.fields)]).strip()


@dataclasses.dataclass(frozen=True)
class ShowOptions:
    """What is known of the features.

    Attributes:
      roles: features with a role of their own (label, id, group, weight), which are not shown again.
      shapes: feature → the shape in which the model takes it.
      combined: the model's input → the features that it is put together from, and its shape.
      function: `module:function` of the user's, or None.
      tokenizers: feature → how the model makes tokens of its text.
      by_position: whether the model reads a sequence whose positions have scores: whole numbers are tokens without a text beside them, too.
    """

    roles: frozenset[str] = frozenset()
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    combined: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]] = dataclasses.field(default_factory=dict)
    function: str | None = None
    tokenizers: Mapping[str, Tokenizer] = dataclasses.field(default_factory=dict)
    by_position: bool = False


def load_show(path: str) -> ShowFunction:
    """The user's function from an example's features, {name: array, number, text or bytes}, to what is shown: text, an image file's bytes,
    an array [h, w], [h, w, 1] or [h, w, 3], or a dictionary of named values.

    Raises:
      ValueError: there is no such function.
    """
    function = load_object(path)
    if not callable(function):
        raise ValueError(f"--show {path!r} is not a function; it must take an example's features, and return what is shown")
    return function


class View:
    """Decides once how all of a split's examples are shown, so that they look alike.

    Args:
      examples: those that will be shown.
      options: what is known of their features.
      side: the longest side of a larger picture.
    """

    def __init__(self, examples: Sequence[StoredExample], options: ShowOptions, side: int = LARGEST_SIDE):
        self._options = options
        self._side = side
        self._function = load_show(options.function) if options.function else None
        self._image: tuple[str, tuple[int, ...], float, float] | None = None
        self._encoded: str | None = None
        names = dict.fromkeys(name for example in examples for name in example.values if name not in options.roles)
        if self._function is None:
            for name in [*options.combined, *names]:
                values = [value for example in examples if (value := self._value(example, name)) is not None]
                if values and all(is_encoded(value) for value in values):
                    self._encoded = name
                elif values and (shape := image_shape(values, options.shapes.get(name) or self._combined_shape(name))):
                    self._image = (name, shape, *_range(values))
                if self._encoded or self._image:
                    break

    def show(self, example: StoredExample) -> Shown:
        """The example as the page has it.

        Raises:
          ValueError: the user's function failed, or returned what can't be shown.
        """
        if self._function is not None:
            return self._by_function(example, self._function)
        picture, used = None, set(self._options.roles)
        if self._encoded is not None and is_encoded(example.values.get(self._encoded)):
            data = example.values[self._encoded]
            picture = of_file(data, self._side) if isinstance(data, bytes) else None
            used.add(self._encoded)
        if self._image is not None:
            name, shape, low, high = self._image
            value = self._value(example, name)
            if isinstance(value, np.ndarray) and value.size == math.prod(shape):
                picture = of_array(value.reshape(shape), low, high, self._side)
                used |= {name, *self._options.combined.get(name, ((), ()))[0]}
        values = {name: value for name, value in example.values.items() if name not in used}
        return _of_values(values, picture, self._options.tokenizers, self._options.by_position)

    def _value(self, example: StoredExample, name: str) -> Value:
        if name not in self._options.combined:
            return example.values.get(name)
        parts = [example.values.get(part) for part in self._options.combined[name][0]]
        if any(part is None or isinstance(part, (bytes, str)) for part in parts):
            return None
        return np.concatenate([np.ravel(np.asarray(part)) for part in parts])

    def _combined_shape(self, name: str) -> tuple[int, ...] | None:
        return self._options.combined[name][1] if name in self._options.combined else None

    def _by_function(self, example: StoredExample, function: ShowFunction) -> Shown:
        path = self._options.function
        try:
            found = function(dict(example.values))
        except Exception as error:
            raise ValueError(f"--show {path!r} failed on example {example.id!r}: {type(error).__name__}: {error}") from error
        if isinstance(found, str):
            return Shown(text=_cut(found))
        if isinstance(found, bytes) and is_encoded(found):
            return Shown(picture=of_file(found, self._side))
        if isinstance(found, Mapping):
            fields = tuple((str(name), in_words(value)) for name, value in found.items())
            return Shown(fields=fields[:MOST_FIELDS], left_out=max(len(fields) - MOST_FIELDS, 0))
        array = np.asarray(found)
        if array.dtype.kind in "biuf" and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))):
            return Shown(picture=of_array(array, *_range([array]), self._side))
        raise ValueError(
            f"--show {path!r} returned {type(found).__name__} for example {example.id!r}; it must return text, an image file's bytes, "
            "an array [h, w], [h, w, 1] or [h, w, 3], or a dictionary of named values"
        )


def image_shape(values: Sequence[Value], known: tuple[int, ...] | None = None) -> tuple[int, ...] | None:
    """The shape in which values are images, or None: [h, w], [h, w, 1] or [h, w, 3] as the model takes them or as they are stored; or a
    flat square of at least 8 by 8 numbers (64 numbers, or 3 × 64), none of them negative."""
    arrays = [value for value in values if isinstance(value, np.ndarray) and value.dtype.kind in "biuf"]
    if not arrays or len(arrays) < len(values) or len({array.size for array in arrays}) > 1:
        return None
    shape = known if known is not None and math.prod(known) == arrays[0].size and len(known) > 1 else arrays[0].shape
    if len(shape) == 3 and shape[2] in (1, 3) and min(shape[:2]) >= _LEAST_SIDE:
        return shape
    if len(shape) == 2 and min(shape) >= _LEAST_SIDE and all(array.min() >= 0 for array in arrays):
        return shape
    if len(shape) == 1 and all(np.isfinite(array).all() and array.min() >= 0 for array in arrays):
        for channels in (1, 3):
            side = math.isqrt(shape[0] // channels)
            if side >= _LEAST_SIDE and side * side * channels == shape[0]:
                return (side, side, channels)
    return None


def _range(values: Sequence[Value]) -> tuple[float, float]:
    """What is black and what is white: [0, 1], [−1, 1] or [0, 255] where all values lie in it, else from the least to the largest."""
    arrays = [np.asarray(value, np.float64) for value in values]
    low = min(float(np.nanmin(array)) for array in arrays)
    high = max(float(np.nanmax(array)) for array in arrays)
    if low >= 0:
        return (0.0, 1.0) if high <= 1 else (0.0, 255.0) if 32 < high <= 255 else (0.0, high)
    return (-1.0, 1.0) if low >= -1 and high <= 1 else (low, high)


def _of_values(values: Mapping[str, Value], picture: Picture | None, tokenizers: Mapping[str, Tokenizer], by_position: bool) -> Shown:
    """Text where there is some, with the model's own tokens, or lists of whole numbers or words beside it as those; the rest by name."""
    texts = {name: as_text(value) for name, value in values.items() if isinstance(value, (bytes, str)) and _is_text(value)}
    long = max(texts, key=lambda name: len(texts[name]), default=None)
    if long is not None and picture is None and (len(texts[long]) >= 20 or len(values) == 1 or " " in texts[long]):
        text = texts[long]
    else:
        text, long = "", None
    every: Sequence[str] = ()
    listed: str | None = None
    if long is not None and long in tokenizers:
        every = tokenizers[long](text)
    elif picture is None:
        lists = {name: value for name, value in values.items() if isinstance(value, np.ndarray) and value.ndim == 1}
        found = [name for name, value in lists.items() if _are_tokens(value, bool(text) or by_position)]
        # Beside a sequence there may be its mask, of two values.
        listed = max(found, key=lambda name: len(set(lists[name].tolist())), default=None) if by_position else next(iter(found), None)
        every = [] if listed is None else [as_text(token) for token in lists[listed].tolist()]
    tokens = (*every[:MOST_TOKENS], *(["…"] if len(every) > MOST_TOKENS else []))
    fields = [(name, in_words(value)) for name, value in values.items() if name not in (long, listed)]
    left_out, is_padded = max(len(fields) - MOST_FIELDS, 0), listed is None and len(tokenizers) == 1
    return Shown(picture, _cut(text), tokens, tuple(fields[:MOST_FIELDS]), left_out, len(every), is_padded)


def _are_tokens(value: np.ndarray, beside_text: bool) -> bool:
    if value.dtype == object:
        return all(isinstance(part, (bytes, str)) for part in value[:MOST_TOKENS].tolist())
    return value.dtype.kind in "iu" and beside_text


def _is_text(value: bytes | str) -> bool:
    if isinstance(value, str):
        return True
    try:
        return all(character.isprintable() or character.isspace() for character in value[:2000].decode("utf-8", "strict"))
    except UnicodeDecodeError as error:
        return error.start > 1990  # cut inside a character


def in_words(value: Value) -> str:
    """A value in a few words: a number in five digits, bytes by their number, a long list by its ends."""
    if value is None:
        return "none"
    if isinstance(value, (bytes, str)):
        return _cut(as_text(value), 120) if _is_text(value) else f"{len(value):,} bytes"
    if isinstance(value, np.ndarray):
        parts = [in_words(part) for part in value.reshape(-1)[:6].tolist()]
        shape = "" if value.ndim == 1 and value.size <= 6 else f" … ({' × '.join(map(str, value.shape))})"
        return ", ".join(parts) + shape
    return str(value) if isinstance(value, (bool, int)) else f"{value:.5g}"


def _cut(text: str, most: int = _MOST_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
