"""Handwritten digits, 8 × 8 pixels, from scikit-learn: gzip TFRecord files, and a small network of which the last layer is watched."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from beam_influence.pipelines.demo.demo import Demo, Examples, Splits, shuffled

_TESTS = 100


def load() -> Splits:
    """1,697 and 100 images [N, 64] in 0..1, with their digits."""
    digits: Any = load_digits()
    return shuffled(Examples({"image": (digits.data / 16).astype(np.float32)}, digits.target), _TESTS)


def example(image: np.ndarray, label: int) -> bytes:
    """One serialized tf.Example: the image, its label, and the group that it belongs to."""
    feature = {
        "image": tf.train.Feature(float_list=tf.train.FloatList(value=image)),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        "digit": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"digit %d" % label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def write(path: pathlib.Path, examples: Examples) -> None:
    """Writes a gzip TFRecord file of tf.Example."""
    with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
        for image, label in zip(examples.features["image"], examples.labels, strict=True):
            writer.write(example(image, int(label)))


def make_network() -> keras.Model:
    """A small network with 32 hidden units; its last layer (P = 330) is what is watched."""
    inputs = keras.Input((64,), name="image")
    hidden = keras.layers.Dense(32, activation="relu")(inputs)
    penalty = keras.regularizers.L2(5e-4)
    outputs = keras.layers.Dense(10, activation="softmax", kernel_regularizer=penalty, bias_regularizer=penalty)(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
    return model


DEMO = Demo(
    question="Which digit is it?",
    classes=tuple(map(str, range(10))),
    extension="tfrecord.gz",
    load=load,
    write=write,
    network=lambda examples: make_network(),
    epochs=30,
    batch_size=128,
    options=("--curvature", "exact", "--group_feature", "digit"),
)
