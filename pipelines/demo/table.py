"""Penguins of three species, measured: Parquet files, and a model whose own layers look up strings, scale numbers and know what is missing.

The data are `data/penguins.csv`; where they are from is in `data/README.md`. Files have a missing string as 'NA' and a missing number
as −1: an example that lacks a value would be rejected.
"""

from __future__ import annotations

import pathlib

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from beam_influence.pipelines.demo.demo import Demo, Examples, Splits, shuffled, stored_rows

_TESTS = 44
_STRINGS = ("island", "sex")
_NUMBERS = ("bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g")
_MISSING = -1.0


def load() -> Splits:
    """300 and 44 penguins: two strings and four numbers each, with the number of the species."""
    rows = stored_rows("penguins.csv")
    strings = {name: np.array([row[name] for row in rows]) for name in _STRINGS}
    numbers = {name: np.array([_MISSING if row[name] == "NA" else float(row[name]) for row in rows], np.float32) for name in _NUMBERS}
    return shuffled(Examples(strings | numbers, np.array([DEMO.classes.index(row["species"]) for row in rows])), _TESTS)


def write(path: pathlib.Path, examples: Examples) -> None:
    """Writes a Parquet file; its groups are the species, as labelled."""
    columns = {name: pa.array(values) for name, values in examples.features.items()}
    species = pa.array([DEMO.classes[label] for label in examples.labels])
    pq.write_table(pa.table({**columns, "label": pa.array(examples.labels), "species": species}), path)


def make_network(examples: Examples) -> keras.Model:
    """Each string one-hot, each number scaled and beside it whether it is known → 16 hidden units → the three species."""
    features = examples.features
    inputs = {name: keras.Input((1,), dtype="string" if name in _STRINGS else "float32", name=name) for name in (*_STRINGS, *_NUMBERS)}
    parts = []
    for name in _STRINGS:
        lookup = keras.layers.StringLookup(output_mode="one_hot")
        lookup.adapt(tf.constant(features[name]))
        parts.append(lookup(inputs[name]))
    for name in _NUMBERS:
        values = features[name][features[name] != _MISSING]
        scaled = keras.layers.Normalization(mean=float(values.mean()), variance=float(values.var()))(inputs[name])
        known = keras.layers.Rescaling(1.0)(keras.layers.Discretization([0.0])(inputs[name]))  # 0 below 0, else 1
        parts += [keras.layers.Multiply()([scaled, known]), known]
    hidden = keras.layers.Dense(16, activation="relu")(keras.layers.Concatenate()(parts))
    penalty = keras.regularizers.L2(1e-3)
    outputs = keras.layers.Dense(3, activation="softmax", kernel_regularizer=penalty, bias_regularizer=penalty)(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
    return model


DEMO = Demo(
    question="Which species is it: Adelie (0), Chinstrap (1) or Gentoo (2)?",
    classes=("Adelie", "Chinstrap", "Gentoo"),
    extension="parquet",
    load=load,
    write=write,
    network=make_network,
    epochs=60,
    batch_size=32,
    options=("--curvature", "exact", "--group_feature", "species"),
)
