"""Small networks, one for each kind of layer whose gradients are factored, and some that no rule knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

Layers = keras.layers


class Subclassed(keras.Model):
    """A subclassed model, one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Layers.Dense(5, "tanh", dtype="float64")
        self.shared = Layers.Dense(5, "tanh", dtype="float64")
        self.last = Layers.Dense(3, dtype="float64")

    def call(self, inputs: Any, training: Any = None) -> Any:
        return self.last(self.shared(self.shared(self.first(inputs))))


class Tied(keras.Model):
    """Uses an embedding's table again, outside its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = Layers.Embedding(7, 5, dtype="float64")
        self.hidden = Layers.Dense(5, "tanh", dtype="float64")

    def call(self, inputs: Any, training: Any = None) -> Any:
        looked_up = self.embedding(inputs)
        hidden = self.hidden(tf.reshape(looked_up, [tf.shape(looked_up)[0], 20]))
        table: Any = self.embedding.embeddings
        return tf.matmul(hidden, table.value, transpose_b=True)


def _sequential(shape: tuple[int | None, ...], *layers: Any, dtype: str = "float32") -> keras.Model:
    return keras.Sequential([keras.Input(shape, dtype=dtype, name="x"), *layers])


def _attention() -> keras.Model:
    x = keras.Input((5, 6), name="x")
    y = Layers.MultiHeadAttention(2, 3)(x, x)
    y = Layers.LayerNormalization()(x + y)
    return keras.Model(x, Layers.Dense(3)(Layers.GlobalAveragePooling1D()(y)))


def _shared() -> keras.Model:
    x = keras.Input((6,), name="x")
    layer = Layers.Dense(6, "tanh")
    return keras.Model(x, Layers.Dense(3)(layer(layer(x)) + x))


def _sequences(*layers: Any) -> keras.Model:
    return _sequential((4, 6), *layers, Layers.Flatten(), Layers.Dense(3))


def _images(*layers: Any) -> keras.Model:
    return _sequential((7, 8, 3), *layers, Layers.GlobalAveragePooling2D(), Layers.Dense(3))


def _volumes(*layers: Any) -> keras.Model:
    return _sequential((5, 6, 7, 2), *layers, Layers.Flatten(), Layers.Dense(3))


def _both_ways() -> keras.Model:
    """Two recurrent layers, one both ways, over tokens of which some are padding."""
    tokens = _sequential((4,), Layers.Embedding(7, 5, mask_zero=True), dtype="int32")
    x = tokens.outputs[0]
    both = Layers.Bidirectional(Layers.LSTM(3, return_sequences=True))(x)
    return keras.Model(tokens.inputs, Layers.Dense(3)(Layers.GRU(4)(both)))


def _reversible(**options: Any) -> keras.Model:
    x = keras.Input((4,), name="x", dtype="int32")
    table = Layers.ReversibleEmbedding(7, 5, **options)
    return keras.Model(x, Layers.Dense(3)(Layers.Flatten()(table(Layers.Dense(5, "tanh")(table(x)), reverse=True))))


def low_rank_adapters() -> keras.Model:
    """LoRA on an embedding and dense layers of one and two axes."""
    inputs = keras.Input((4,), dtype="int32")
    table, split = Layers.Embedding(7, 5), Layers.EinsumDense("abc,cde->abde", (4, 2, 3), bias_axes="de")
    merge, join = Layers.EinsumDense("abde,dec->abc", (4, 5)), Layers.Dense(4, "tanh")
    model = keras.Model(inputs, Layers.Dense(3)(Layers.Flatten()(join(merge(split(table(inputs)))))))
    for layer in (table, split, merge, join):
        layer.enable_lora(2, lora_alpha=3)
    return model


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "dense": lambda: _sequential((6,), Layers.Dense(5, "relu"), Layers.Dense(3)),
    "dense-no-bias": lambda: _sequential((6,), Layers.Dense(5, "tanh", use_bias=False), Layers.Dense(3)),
    "dense-over-sequence": lambda: _sequences(Layers.Dense(5, "tanh")),
    "dense-penalised-kernel": lambda: _sequential((6,), Layers.Dense(5, "tanh", kernel_regularizer="l2"), Layers.Dense(3)),
    "einsum": lambda: _sequences(Layers.EinsumDense("abc,cde->abde", (4, 2, 3), bias_axes="de")),
    "einsum-swapped": lambda: _sequences(Layers.EinsumDense("abc,dc->abd", (4, 5), bias_axes="d")),
    "einsum-ellipsis": lambda: _sequences(Layers.EinsumDense("...x,xy->...y", 5, bias_axes="y")),
    "einsum-odd-bias": lambda: _sequences(Layers.EinsumDense("abc,cd->abd", (4, 5), bias_axes="bd")),
    "conv2d": lambda: _images(Layers.Conv2D(4, 3, activation="tanh")),
    "conv2d-strided-same": lambda: _images(Layers.Conv2D(4, (3, 2), strides=2, padding="same", activation="tanh", use_bias=False)),
    "conv2d-dilated": lambda: _images(Layers.Conv2D(4, 3, dilation_rate=2)),
    "conv2d-grouped": lambda: _images(Layers.Conv2D(6, 3, groups=3, activation="tanh")),
    "conv1d": lambda: _sequential((9, 3), Layers.Conv1D(4, 3, strides=2, activation="tanh"), Layers.Flatten(), Layers.Dense(3)),
    "conv1d-causal": lambda: _sequential((9, 3), Layers.Conv1D(4, 3, padding="causal", dilation_rate=2), Layers.Flatten(), Layers.Dense(3)),
    "depthwise": lambda: _images(Layers.DepthwiseConv2D(3, depth_multiplier=2, activation="tanh")),
    "depthwise1d": lambda: _sequential((9, 3), Layers.DepthwiseConv1D(3, strides=2), Layers.Flatten(), Layers.Dense(3)),
    "embedding": lambda: _sequential((4,), Layers.Embedding(7, 5), Layers.Flatten(), Layers.Dense(3), dtype="int32"),
    "attention": _attention,
    "layer-norm": lambda: _sequences(Layers.Dense(5), Layers.LayerNormalization()),
    "batch-norm": lambda: _images(Layers.Conv2D(4, 3), Layers.BatchNormalization(), Layers.Activation("tanh")),
    "shared": _shared,
    "subclassed": Subclassed,
    "tied": Tied,
    "lstm": lambda: _sequential((4, 6), Layers.LSTM(4), Layers.Dense(3)),
    "lstm-stacked-both-ways": _both_ways,
    "gru-no-bias": lambda: _sequential((4, 6), Layers.GRU(4, use_bias=False, unroll=True, go_backwards=True), Layers.Dense(3)),
    "gru-reset-before": lambda: _sequential((None, 6), Layers.GRU(4, reset_after=False), Layers.Dense(3)),
    "simple-rnn-penalised": lambda: _sequential((4, 6), Layers.SimpleRNN(4, kernel_regularizer="l2"), Layers.Dense(3)),
    "conv-lstm": lambda: _sequential((3, 6, 5, 2), Layers.ConvLSTM2D(2, 3, strides=2), Layers.Flatten(), Layers.Dense(3)),
    "own-cells": lambda: _sequential((4, 6), Layers.RNN([Layers.LSTMCell(4), Layers.GRUCell(3)]), Layers.Dense(3)),
    "time-distributed": lambda: _sequential(
        (None, 6), Layers.TimeDistributed(Layers.Dense(4)), Layers.GlobalAveragePooling1D(), Layers.Dense(3)
    ),
    "separable": lambda: _images(Layers.SeparableConv2D(4, 3, depth_multiplier=2, activation="tanh")),
    "conv3d": lambda: _volumes(Layers.Conv3D(2, (2, 3, 2), strides=2, padding="same"), Layers.Conv3D(3, 2, dilation_rate=(1, 2, 2))),
    "transposed": lambda: _images(Layers.Conv2DTranspose(4, (3, 2), strides=2, padding="same"), Layers.Activation("tanh")),
    "transposed1d": lambda: _sequential((5, 3), Layers.Conv1DTranspose(4, 3, strides=2), Layers.Flatten(), Layers.Dense(3)),
    "group-norm": lambda: _images(Layers.Conv2D(4, 3), Layers.GroupNormalization(2), Layers.Activation("tanh")),
    "rms-norm-prelu": lambda: _sequences(Layers.Dense(5), Layers.RMSNormalization(), Layers.PReLU(shared_axes=[1])),
    "reversible": _reversible,
    "reversible-capped": lambda: _reversible(logit_soft_cap=2.0),
    "reversible-untied": lambda: _reversible(tie_weights=False, logit_soft_cap=2.0),
}

MATERIALISED = {"einsum-odd-bias": 1, "tied": 1, "own-cells": 6}
"""How many of a network's variables no rule covers; 0 for the others."""
