"""Words with their definitions, good or bad: CSV files, and a model that splits the text into words itself.

The data are `data/definitions.csv`; where they are from is in `data/README.md`.
"""

from __future__ import annotations

import csv
import pathlib

import keras
import numpy as np
import tensorflow as tf

from beam_influence.pipelines.demo.demo import Demo, Examples, Splits, shuffled, stored_rows

_TESTS = 150
_WORDS, _LENGTH = 2000, 32


def load() -> Splits:
    """1,332 and 150 texts such as "able: having a strong healthy body", with 1 for good and 0 for bad."""
    rows = stored_rows("definitions.csv")
    texts = np.array([f"{row['word']}: {row['definition']}" for row in rows])
    return shuffled(Examples({"text": texts}, np.array([int(row["good"]) for row in rows])), _TESTS)


def write(path: pathlib.Path, examples: Examples) -> None:
    """Writes a CSV file with a header; its groups are the meanings that are called good, and those called bad."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "meaning"])
        for text, label in zip(examples.features["text"], examples.labels, strict=True):
            writer.writerow([text, label, DEMO.classes[label]])


def make_network(examples: Examples) -> keras.Model:
    """Words → embeddings of 8 numbers → their mean → the probability of good."""
    words = keras.layers.TextVectorization(max_tokens=_WORDS, output_sequence_length=_LENGTH)
    words.adapt(tf.constant(examples.features["text"]))
    inputs = keras.Input((), dtype="string", name="text")
    embedded = keras.layers.Embedding(_WORDS, 8, mask_zero=True)(words(inputs))
    mean = keras.layers.GlobalAveragePooling1D()(embedded)
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(mean))
    model.compile(keras.optimizers.Adam(0.005), keras.losses.BinaryCrossentropy(), metrics=["accuracy"])
    return model


DEMO = Demo(
    question="Does the definition say something good (1) or bad (0)?",
    classes=("bad", "good"),
    extension="csv",
    load=load,
    write=write,
    network=make_network,
    epochs=3,
    batch_size=32,
    options=("--curvature", "exact", "--group_feature", "meaning"),
)
