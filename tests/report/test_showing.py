"""How examples are shown: found out from their values, or by the user's function; and what the page makes of numbers and options."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import keras
import numpy as np
import pytest
from PIL import Image

from beam_influence.report.examples import StoredExample, Value
from beam_influence.report.numbers import change, percent, plain
from beam_influence.report.page import with_options
from beam_influence.report.pictures import Picture, of_file
from beam_influence.report.predictions import Prediction, prediction
from beam_influence.report.showing import Shown, ShowOptions, View
from beam_influence.report.tokens import tokenizers


def show(values: Mapping[str, Value], **options) -> Shown:
    example = StoredExample("file:0", "file", 0, values)
    return View([example], ShowOptions(**options)).show(example)


def pixels(picture: Picture | None) -> np.ndarray:
    assert picture is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2]))))


def png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(side * side * 3).reshape(side, side, 3).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_images() -> None:
    flat = np.arange(64) / 64  # digits' own: 8 by 8
    assert np.array_equal(pixels(show({"image": flat, "label": 3}, roles=frozenset({"label"})).picture), np.round(255 * flat).reshape(8, 8))
    colours = np.random.default_rng(0).integers(0, 256, (9, 11, 3)).astype(float)
    assert np.array_equal(pixels(show({"image": colours}).picture), colours)
    centred = np.linspace(-1, 1, 100)
    assert show({"x": centred}).picture is None  # numbers of both signs may be anything, but for the model's own shape
    seen = pixels(show({"x": centred}, shapes={"x": (10, 10, 1)}).picture)
    assert np.array_equal(seen, np.round(255 * (centred + 1) / 2).reshape(10, 10))
    assert np.array_equal(pixels(show({"file": png(20)}).picture), np.asarray(Image.open(io.BytesIO(png(20)))))
    large = show({"file": png(300)}).picture
    assert large is not None and (large.width, large.height, large.pixelated) == (96, 96, False)
    assert of_file(b"\x89PNG damaged") is None and show({"file": b"\x89PNG damaged"}) == Shown()
    columns = {f"p{place}": place / 64 for place in range(64)}
    assert np.array_equal(pixels(show(columns, combined={"p*": (tuple(columns), (64,))}).picture), np.round(255 * flat).reshape(8, 8))


def test_text_has_the_tokens_that_the_model_makes_of_it() -> None:
    words = keras.layers.TextVectorization(ngrams=2, output_mode="multi_hot", vocabulary=["good", "a film", "film"])
    inputs = keras.Input((), dtype="string", name="review")
    found = tokenizers(keras.Model([inputs, other := keras.Input((1,), name="stars")], [words(inputs), other]))
    shown = show({"review": "A film! A film, a GOOD one", "stars": 4}, tokenizers=found)
    assert shown.text == "A film! A film, a GOOD one" and list(found) == ["review"]
    assert shown.tokens[:7] == ("[UNK]", "film", "[UNK]", "film", "[UNK]", "good", "[UNK]") and shown.tokens.count("a film") == 2


def test_text_and_rows() -> None:
    text = show({"text": b"a film that helps", "tokens": np.array([5, 2, 9]), "stars": 4}, roles=frozenset({"stars"}))
    assert (text.text, text.tokens, text.fields) == ("a film that helps", ("5", "2", "9"), ())
    words = show({"words": np.array([b"a", b"film"], dtype=object)})
    assert words.tokens == ("a", "film")
    row = show({"age": 41, "income": 1234.5678, "town": b"Bonn", "raw": b"\xff\x00", "x": np.arange(9.0), "gone": None})
    assert row.fields == (
        ("age", "41"), ("income", "1234.6"), ("town", "Bonn"), ("raw", "2 bytes"), ("x", "0, 1, 2, 3, 4, 5 … (9)"), ("gone", "none"),
    )  # fmt: skip
    assert show({f"c{place}": place for place in range(50)}).left_out == 20


def as_square(values: dict) -> np.ndarray:
    return values["x"].reshape(2, 2)


def as_nothing(values: dict) -> object:
    return object()


def test_a_function_of_the_user() -> None:
    assert pixels(show({"x": np.array([0.0, 0.2, 0.4, 1.0])}, function=f"{__name__}:as_square").picture).tolist() == [[0, 51], [102, 255]]
    with pytest.raises(ValueError, match="as_square' failed on example 'file:0': KeyError: 'x'"):
        show({"y": 1}, function=f"{__name__}:as_square")
    with pytest.raises(ValueError, match="as_nothing' returned object for example 'file:0'; it must return text"):
        show({"y": 1}, function=f"{__name__}:as_nothing")


def test_predictions_in_words() -> None:
    seen = prediction(np.array([0.02, 0.95, 0.03]), np.array(2), 3.5)
    assert (seen.text, seen.label, seen.is_right, seen.loss) == ("1 (95 %)", "2", False, 3.5)
    logits = prediction(np.array([-1.0, 4.5]), np.array([0, 1]), float("nan"))
    assert (logits.text, logits.is_right, logits.loss) == ("1 (output 4.5)", True, None)
    assert prediction(np.array([0.2]), np.array([1]), 1.0) == Prediction("0 (80 %)", 1.0, "1", False)
    assert prediction(np.array([2.25]), np.array(3.5), 1.0).text == "2.25"
    assert prediction(np.zeros((4, 5)), None, 1.0).is_right is None


def test_predictions_of_several_labels() -> None:
    """One positive label among several is no class."""
    names = ("red", "green", "blue")
    seen = prediction(np.array([0.97, 0.996, 0.1]), np.array([0, 1, 0]), 3.5, True, names, has_tags=True)
    assert seen == Prediction("red (97 %), green (99.60 %)", 3.5, "green", False)
    logits = prediction(np.array([-1.0, 4.5, 2.0]), np.array([0, 1, 1]), 0.1, False, names, has_tags=True)
    assert (logits.label, logits.is_right) == ("green, blue", True)
    assert prediction(np.array([0.2, 0.3]), np.array([0, 0]), 1.0, has_tags=True) == Prediction("none", 1.0, "none", True)
    assert prediction(np.array([0.2, 0.3]), np.array([0.5, 0.1]), 1.0, has_tags=True) == Prediction("0.2, 0.3", 1.0)


def test_numbers() -> None:
    found = [plain(value) for value in (0.87945, 5.18e-4, -1234.5, 0.0, 1697, None, 1e9)]
    assert found == ["0.879", "5.18e−4", "−1,234", "0", "1,697", "–", "1.00e9"]
    assert (change(0.1964), change(-2e-7)) == ("+0.196", "−2.00e−7")
    assert [percent(part) for part in (330 / 2410, 0.99999, 1)] == ["13.7 %", "99.9 %", "100 %"]
    assert with_options("<b> --outputs top_k,scores adds.") == "&lt;b&gt; <code>--outputs top_k,scores</code> adds."
