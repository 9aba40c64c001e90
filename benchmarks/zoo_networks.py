"""Networks of the kinds that people have, compiled, with random weights, and random data for them.

A builder makes the same network in whatever dtype policy Keras has at that time, so that it can be built again in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

Layers = keras.layers
WORDS = np.array(["red", "green", "blue", "", "violet"])
Build = Callable[[], keras.Model]
Draw = Callable[[np.random.Generator, int], tuple[Any, Any]]


def classes(rng: np.random.Generator, count: int) -> np.ndarray:
    """[count] labels of three classes."""
    return rng.integers(0, 3, count)


def floats(*shape: int) -> Draw:
    """Normal inputs of this shape, and classes."""
    return lambda rng, count: (rng.standard_normal((count, *shape)).astype(np.float32), classes(rng, count))


def tokens(length: int, vocabulary: int, padded: bool = False) -> Draw:
    """Token ids from 1 on, and classes; `padded`: the last third of every other example is 0."""

    def draw(rng: np.random.Generator, count: int) -> tuple[Any, Any]:
        found = rng.integers(1, vocabulary, (count, length)).astype(np.int32)
        if padded:
            found[::2, -(length // 3) :] = 0
        return found, classes(rng, count)

    return draw


def next_tokens(length: int, vocabulary: int) -> Draw:
    """Token ids, and at each position the next of them."""

    def draw(rng: np.random.Generator, count: int) -> tuple[Any, Any]:
        found = rng.integers(1, vocabulary, (count, length + 1)).astype(np.int32)
        return found[:, :-1], found[:, 1:]

    return draw


def compiled(model: keras.Model, loss: Any = None, **options: Any) -> keras.Model:
    """`model`, compiled with the loss of its logits."""
    model.compile(optimizer="adam", loss=loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options)
    return model


def sequential(shape: tuple[int | None, ...], *layers: Any, dtype: str | None = None) -> keras.Model:
    """These layers on an input `x`."""
    return compiled(keras.Sequential([keras.Input(shape, name="x", dtype=dtype), *layers]))


def images(*layers: Any) -> Build:
    """Makes a network on images of 12 × 12 × 3."""
    return lambda: sequential((12, 12, 3), *(layer() for layer in layers), Layers.GlobalAveragePooling2D(), Layers.Dense(3))


def sequences(*layers: Any, shape: tuple[int | None, ...] = (10, 6)) -> Build:
    """Makes a network on sequences of 10 × 6."""
    return lambda: sequential(shape, *(layer() for layer in layers), Layers.Dense(3))


def preprocessing() -> keras.Model:
    """Every kind of preprocessing layer, and a perceptron."""
    made = {name: keras.Input((1,), name=name, dtype=kind) for name, kind in _COLUMNS.items()}
    city = Layers.StringLookup(vocabulary=["red", "green", "blue"], output_mode="one_hot")(made["city"])
    hashed = Layers.CategoryEncoding(7, "one_hot")(Layers.Hashing(7)(made["city"]))
    age = Layers.CategoryEncoding(4, "one_hot")(Layers.Discretization([20.0, 40.0, 60.0])(made["age"]))
    scaled = Layers.Normalization(mean=[40.0], variance=[100.0])(made["age"])
    code = Layers.IntegerLookup(vocabulary=[10, 20, 30], output_mode="one_hot")(made["code"])
    crossed = Layers.HashedCrossing(5, output_mode="one_hot")((made["city"], made["code"]))
    words = Layers.TextVectorization(vocabulary=["red", "green", "blue"], output_sequence_length=4)(made["text"])
    text = Layers.Flatten()(Layers.Embedding(5, 3)(words))
    joined = Layers.Concatenate()([city, hashed, age, scaled, code, crossed, text])
    hidden = Layers.Dropout(0.3)(Layers.Dense(8, "relu")(joined))
    return compiled(keras.Model(list(made.values()), Layers.Dense(3)(hidden)))


_COLUMNS = {"city": "string", "age": "float32", "code": "int64", "text": "string"}


def draw_columns(rng: np.random.Generator, count: int) -> tuple[Any, Any]:
    """A row for `preprocessing`."""
    found = {
        "city": rng.choice(WORDS, (count, 1)).astype(object),
        "age": rng.uniform(10, 80, (count, 1)).astype(np.float32),
        "code": rng.integers(1, 5, (count, 1)) * 10,
        "text": np.array([[" ".join(rng.choice(WORDS, 3))] for _ in range(count)], dtype=object),
    }
    return found, classes(rng, count)


def wide_and_deep() -> keras.Model:
    """A linear part on crossed strings, a deep one on embeddings."""
    city, age = keras.Input((1,), name="city", dtype="string"), keras.Input((1,), name="age")
    one_hot = Layers.StringLookup(vocabulary=["red", "green", "blue"], output_mode="one_hot")(city)
    ids = Layers.StringLookup(vocabulary=["red", "green", "blue"])(city)
    deep = Layers.Concatenate()([Layers.Flatten()(Layers.Embedding(4, 3)(ids)), Layers.Rescaling(0.02)(age)])
    deep = Layers.Dense(5, "relu")(Layers.Dense(6, "relu")(deep))
    outputs = Layers.Dense(1, "sigmoid")(Layers.Concatenate()([one_hot, deep]))
    return compiled(keras.Model([city, age], outputs), "binary_crossentropy")


def draw_wide_and_deep(rng: np.random.Generator, count: int) -> tuple[Any, Any]:
    """Rows for `wide_and_deep`."""
    columns = draw_columns(rng, count)[0]
    return {name: columns[name] for name in ("city", "age")}, rng.integers(0, 2, (count, 1)).astype(np.float32)


def two_towers() -> keras.Model:
    """The inner product of a user's and an item's vector."""
    user, item = keras.Input((1,), name="user", dtype="int32"), keras.Input((1,), name="item", dtype="int32")
    towers = [Layers.Dense(4)(Layers.Dense(6, "relu")(Layers.Flatten()(Layers.Embedding(9, 5)(side)))) for side in (user, item)]
    return compiled(keras.Model([user, item], Layers.Dot(axes=1)(towers)), keras.losses.BinaryCrossentropy(from_logits=True))


def draw_pairs(rng: np.random.Generator, count: int) -> tuple[Any, Any]:
    """Rows for `two_towers`."""
    found = {name: rng.integers(0, 9, (count, 1)).astype(np.int32) for name in ("user", "item")}
    return found, rng.integers(0, 2, (count, 1)).astype(np.float32)


def multi_task() -> keras.Model:
    """Two outputs, each with a loss and a weight."""
    x = keras.Input((6,), name="x")
    hidden = Layers.Dense(7, "tanh")(x)
    outputs = {"price": Layers.Dense(1, name="price")(hidden), "kind": Layers.Dense(3, "softmax", name="kind")(hidden)}
    losses = {"price": "mse", "kind": "sparse_categorical_crossentropy"}
    return compiled(keras.Model(x, outputs), losses, loss_weights={"price": 0.3, "kind": 2.0})


def draw_multi_task(rng: np.random.Generator, count: int) -> tuple[Any, Any]:
    """Rows for `multi_task`."""
    labels = {"price": rng.standard_normal((count, 1)).astype(np.float32), "kind": classes(rng, count)}
    return rng.standard_normal((count, 6)).astype(np.float32), labels


def unet() -> keras.Model:
    """A class for each pixel: down by a stride, up by a transposed convolution, with a skip."""
    x = keras.Input((12, 12, 3), name="x")
    first = Layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    down = Layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(first)
    up = Layers.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu")(down)
    return compiled(keras.Model(x, Layers.Conv2D(3, 1)(Layers.Concatenate()([first, up]))))


def draw_pixels(rng: np.random.Generator, count: int) -> tuple[Any, Any]:
    """Images and a class for each pixel."""
    return rng.standard_normal((count, 12, 12, 3)).astype(np.float32), rng.integers(0, 3, (count, 12, 12))


def pretrained(name: str, size: int, **options: Any) -> Build:
    """A body of `keras.applications` without its weights, frozen statistics, and a head."""

    def build() -> keras.Model:
        body = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(size, size, 3), **options)
        x = keras.Input((size, size, 3), name="x")
        return compiled(keras.Model(x, Layers.Dense(3)(Layers.GlobalAveragePooling2D()(body(x)))))

    return build


def transformer(causal: bool, tied: bool = False) -> Build:
    """An encoder that classifies, or a decoder that says the next token (from its own embedding's table where `tied`)."""

    def build() -> keras.Model:
        x = keras.Input((10,), name="x", dtype="int32")
        table = (Layers.ReversibleEmbedding if tied else Layers.Embedding)(20, 8)
        h = table(x)
        for _ in range(2):
            h = Layers.LayerNormalization()(h + Layers.MultiHeadAttention(2, 4)(h, h, use_causal_mask=causal))
            h = Layers.LayerNormalization()(h + Layers.Dense(8)(Layers.Dense(16, "gelu")(h)))
        if tied:
            return compiled(keras.Model(x, table(h, reverse=True)))
        return compiled(keras.Model(x, Layers.Dense(20)(h) if causal else Layers.Dense(3)(Layers.GlobalAveragePooling1D()(h))))

    return build


def modern_decoder() -> keras.Model:
    """Grouped queries, root-mean-square norms, a gated feed-forward layer: Llama's block from public Keras layers, without rotation."""
    x = keras.Input((10,), name="x", dtype="int32")
    h = Layers.Embedding(20, 8)(x)
    for _ in range(2):
        n = Layers.RMSNormalization()(h)
        h = h + Layers.GroupQueryAttention(4, 4, 2, use_bias=False)(n, n, use_causal_mask=True)
        n = Layers.RMSNormalization()(h)
        h = h + Layers.Dense(8, use_bias=False)(Layers.Dense(16, "silu", use_bias=False)(n) * Layers.Dense(16, use_bias=False)(n))
    return compiled(keras.Model(x, Layers.Dense(20, use_bias=False)(Layers.RMSNormalization()(h))))


def in_precision(policy: str) -> Build:
    """A convolutional network in a mixed precision."""

    def build() -> keras.Model:
        narrow = None if keras.config.floatx() == "float64" else policy
        x = keras.Input((8, 8, 3), name="x")
        h = Layers.Conv2D(4, 3, activation="relu", dtype=narrow)(x)
        h = Layers.BatchNormalization(dtype=narrow)(h)
        return compiled(keras.Model(x, Layers.Dense(3, dtype=narrow and "float32")(Layers.Flatten(dtype=narrow)(h))))

    return build


def low_rank_adapters() -> keras.Model:
    """LoRA on a dense layer, an embedding and an attention's projections."""
    x = keras.Input((8,), name="x", dtype="int32")
    table, dense, attention = Layers.Embedding(12, 6), Layers.Dense(6, "tanh"), Layers.MultiHeadAttention(2, 3)
    h = table(x)
    h = attention(h, h)
    model = keras.Model(x, Layers.Dense(3)(Layers.GlobalAveragePooling1D()(dense(h))))
    for layer in (table, dense, attention._query_dense, attention._value_dense):
        layer.enable_lora(2)
    return compiled(model)


def frozen_and_nested() -> keras.Model:
    """A frozen model inside another."""
    body = keras.Sequential([keras.Input((6,)), Layers.Dense(8, "relu"), Layers.Dense(8, "relu")], name="body")
    body.trainable = False
    x = keras.Input((6,), name="x")
    return compiled(keras.Model(x, Layers.Dense(3)(Layers.Dense(5, "tanh")(body(x)))))


@keras.saving.register_keras_serializable("benchmarks")
class Gated(keras.layers.Layer):
    """A layer of the user's own: W x · sigmoid(v · x)."""

    def __init__(self, units: int, **options: Any):
        super().__init__(**options)
        self.units = units

    def build(self, input_shape: Any) -> None:
        self.matrix = self.add_weight(shape=(input_shape[-1], self.units), name="matrix")
        self.gate = self.add_weight(shape=(input_shape[-1],), name="gate")

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, self.matrix) * keras.ops.sigmoid(keras.ops.sum(x * self.gate, axis=-1, keepdims=True))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


class Subclassed(keras.Model):
    """A subclassed model."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Layers.Dense(7, "relu"), Layers.Dense(3)

    def call(self, x: Any, training: Any = None) -> Any:
        return self.last(self.first(x))


def subclassed() -> keras.Model:
    """It, built."""
    model = Subclassed()
    model(np.zeros((1, 6)))
    return compiled(model)


def lstm(*more: Any, **options: Any) -> Callable[[], Any]:
    """Makes an LSTM."""
    return lambda: Layers.LSTM(5, *more, **options)


def convolution(kind: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
    """Makes a layer of this kind."""
    return lambda: getattr(Layers, kind)(*arguments, **options)
