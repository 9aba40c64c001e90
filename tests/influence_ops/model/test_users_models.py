"""Models, losses and data that people have, each against Keras's own `compute_loss` on the original, one example at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence import InfluenceModel
from beam_influence.influence_ops.model.evaluate import evaluate
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from tests.influence_ops.model.forgetful_layer import Forgetful
from tests.influence_ops.model.keras_oracle import losses_and_gradients

layers, losses = keras.layers, keras.losses
FLOAT32 = 2e-5  # Keras computes the other side in float32
ROWS = 6
LARGE = 1000  # above what `vectors` become


@dataclasses.dataclass
class Case:
    """A compiled model with its data, and what is special about it."""

    model: keras.Model
    x: Any
    y: Any
    weights: np.ndarray | None = None
    dtype: str = "float64"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def vectors(size: int = 4) -> np.ndarray:
    return rng(1).normal(5, 3, (ROWS, size)).astype(np.float32)


def classes(count: int = 3, *shape: int) -> np.ndarray:
    return rng(2).integers(0, count, (ROWS, *shape))


CE, MSE = "sparse_categorical_crossentropy", "mse"


def model_of(*body: Any, loss: Any = CE, shape: tuple[int, ...] = (4,), dtype: str = "float32") -> keras.Model:
    model = keras.Sequential([keras.Input(shape, dtype=dtype), *body])
    model.compile(loss=loss)
    return model


def adapted(layer: Any, data: Any) -> Any:
    layer.adapt(tf.constant(data.tolist()) if data.dtype == object else data)
    return layer


def normalization() -> Case:
    return Case(model_of(adapted(layers.Normalization(), vectors()), layers.Dense(3, "softmax")), vectors(), classes())


def nested_normalization() -> Case:
    inner = keras.Sequential([keras.Input((4,)), adapted(layers.Normalization(), vectors()), layers.Dense(5, "tanh")])
    return Case(model_of(inner, layers.Dense(3, "softmax")), vectors(), classes())


def rank_one_labels(loss: Any) -> Callable[[], Case]:
    def make() -> Case:
        y = np.abs(rng(3).normal(size=ROWS)).astype(np.float32)
        return Case(model_of(layers.Dense(1, "softplus"), loss=loss), vectors() / 10, y)

    return make


def own_loss(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(labels - outputs), axis=-1)


def scalar_loss(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(labels - outputs))


class OwnLoss(losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return tf.reduce_mean(tf.abs(y_true - y_pred) ** 1.5, axis=-1)


def last_dense_twice() -> Case:
    head, inputs = layers.Dense(4, "softmax"), keras.Input((4,))
    model = keras.Model(inputs, head(head(inputs)))
    model.compile(loss="sparse_categorical_crossentropy")
    return Case(model, vectors(), classes(4))


def operation_after_the_last_layer() -> Case:
    inputs = keras.Input((4,))
    model = keras.Model(inputs, 2.0 * layers.Dense(3)(inputs) + 1.0)
    model.compile(loss=losses.SparseCategoricalCrossentropy(from_logits=True))
    return Case(model, vectors(), classes())


def positions(loss: Any, *tail: Any) -> Callable[[], Case]:
    def make() -> Case:
        body = tail or (layers.Dense(3, "softmax"),)
        return Case(model_of(*body, loss=loss, shape=(5, 4)), rng(4).normal(size=(ROWS, 5, 4)).astype(np.float32), classes(3, 5))

    return make


def one_hot_positions() -> Case:
    case = positions("categorical_crossentropy")()
    return dataclasses.replace(case, y=np.eye(3, dtype=np.float32)[case.y])


def masked(loss: Any, smoothing: bool = False) -> Callable[[], Case]:
    def make() -> Case:
        x = np.array([[1, 2, 3, 0, 0], [2, 3, 0, 0, 0], [1, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 0, 0, 0, 0], [3, 3, 3, 0, 0]], np.int32)
        body = (layers.Embedding(5, 3, mask_zero=True), layers.Dense(3, "softmax"))
        return Case(model_of(*body, loss=loss, shape=(5,), dtype="int32"), x, classes(3, 5))

    return make


def masked_lstm() -> Case:
    case = masked("sparse_categorical_crossentropy")()
    body = (layers.Embedding(5, 3, mask_zero=True), layers.LSTM(4, return_sequences=True), layers.Dense(3, "softmax"))
    return dataclasses.replace(case, model=model_of(*body, shape=(5,), dtype="int32"))


def weighted_positions() -> Case:
    case = positions("sparse_categorical_crossentropy")()
    return dataclasses.replace(case, weights=rng(5).uniform(0, 2, (ROWS, 5)).astype(np.float32))


def weighted_masked_positions() -> Case:
    case = masked("sparse_categorical_crossentropy")()
    return dataclasses.replace(case, weights=rng(5).uniform(0, 2, (ROWS, 5)).astype(np.float32))


def weighted() -> Case:
    weights = rng(5).uniform(0, 2, ROWS).astype(np.float32)
    body = (layers.Dense(4, "tanh", activity_regularizer="l2"), layers.Dense(3, "softmax"))
    return Case(model_of(*body), vectors(), classes(), weights)


def activity(*body: Any) -> Callable[[], Case]:
    return lambda: Case(model_of(*body), vectors(), classes())


class Penalty(layers.Layer):
    """Adds a loss of its own, a mean or a sum over the batch."""

    def __init__(self, reduce: str, **options: Any):
        super().__init__(**options)
        self.reduce = reduce

    def call(self, x: Any) -> Any:
        each = tf.reduce_sum(tf.square(x), axis=-1)
        self.add_loss(0.01 * (tf.reduce_mean(each) if self.reduce == "mean" else tf.reduce_sum(each)))
        return x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "reduce": self.reduce}


def regularised() -> Case:
    body = (layers.Dense(4, "tanh", kernel_regularizer="l1l2"), layers.Dense(3, "softmax", kernel_regularizer="l2", bias_regularizer="l2"))
    return Case(model_of(*body), vectors(), classes())


TEXTS = np.array([["the cat"], ["a dog"], ["cat dog"], ["the the"], ["a cat"], ["dog"]], dtype=object)
NUMBERS = np.array([[7], [9], [7], [11], [12], [9]])


def looked_up(layer: Any, data: np.ndarray, dtype: str, *tail: Any) -> Callable[[], Case]:
    def make() -> Case:
        found = adapted(layer(), data) if hasattr(layer(), "adapt") else layer()
        body = tail or (layers.Embedding(20, 3), layers.Flatten())
        return Case(model_of(found, *body, layers.Dense(3, "softmax"), shape=(1,), dtype=dtype), data, classes())

    return make


def integers_into_the_last_dense() -> Case:
    return Case(model_of(layers.Dense(3, "softmax"), dtype="int32"), rng(6).integers(0, 5, (ROWS, 4)).astype(np.int32), classes())


def unregistered_metric() -> Case:
    def f1(y: Any, p: Any) -> Any:
        return tf.reduce_mean(p)

    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax")])
    model.compile(loss="sparse_categorical_crossentropy", metrics=[f1])
    return Case(model, vectors(), classes())


def own_activation(x: Any) -> Any:
    return tf.tanh(x) * 0.5


class Scaled(layers.Layer):
    """A layer of the user's that Keras does not know by name."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x: Any) -> Any:
        return x * self.scale


class Tied(layers.Layer):
    """Logits by the table of an embedding that another part of the model uses too."""

    def __init__(self, embedding: Any, **options: Any):
        super().__init__(**options)
        self.embedding = embedding

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, keras.ops.transpose(self.embedding.embeddings))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "embedding": keras.saving.serialize_keras_object(self.embedding)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Tied:
        return cls(keras.saving.deserialize_keras_object(config.pop("embedding")), **config)


def tied_embedding() -> Case:
    inputs, embedding = keras.Input((5,), dtype="int32"), layers.Embedding(6, 3)
    model = keras.Model(inputs, Tied(embedding)(layers.Dense(3, "tanh")(embedding(inputs))))
    model.compile(loss=losses.SparseCategoricalCrossentropy(from_logits=True))
    return Case(model, rng(7).integers(0, 6, (ROWS, 5)).astype(np.int32), classes(6, 5), dtype="float32")


def binary(loss: Any) -> Callable[[], Case]:
    return lambda: Case(model_of(layers.Dense(1, "sigmoid"), loss=loss), vectors() / 5, classes(2).astype(np.float32))


def per_pixel(loss: Any) -> Callable[[], Case]:
    x = rng(8).normal(size=(ROWS, 4, 4, 2)).astype(np.float32)
    return lambda: Case(model_of(layers.Conv2D(3, 1, activation="softmax"), loss=loss, shape=(4, 4, 2)), x, classes(3, 4, 4))


def autoencoder() -> Case:
    x = rng(8).uniform(size=(ROWS, 4, 4, 2)).astype(np.float32)
    return Case(model_of(layers.Conv2D(2, 3, padding="same", activation="sigmoid"), loss="mse", shape=(4, 4, 2)), x, x)


def several_outputs(names: bool, **options: Any) -> Callable[[], Case]:
    def make() -> Case:
        inputs = keras.Input((4,))
        hidden = layers.Dense(4, "tanh")(inputs)
        price, kind = layers.Dense(1, name="price")(hidden), layers.Dense(3, "softmax", name="kind")(hidden)
        model = keras.Model(inputs, {"price": price, "kind": kind} if names else [price, kind])
        model.compile(**options)
        return Case(model, vectors(), {"price": rng(9).normal(size=ROWS).astype(np.float32), "kind": classes()})

    return make


def auxiliary_output() -> Case:
    case = several_outputs(True, loss={"kind": "sparse_categorical_crossentropy"})()
    return dataclasses.replace(case, y={"kind": classes()})


def two_inputs() -> Case:
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    model = keras.Model([a, b], layers.Dense(3, "softmax")(layers.Subtract()([a, b])))
    model.compile(loss="sparse_categorical_crossentropy")
    return Case(model, {"a": vectors(), "b": vectors()[::-1].copy()}, classes())


CASES: dict[str, Callable[[], Case]] = {
    "normalization": normalization,
    "normalization-nested": nested_normalization,
    **{f"rank-one-{loss}": rank_one_labels(loss) for loss in ("poisson", "kl_divergence", "mae", "log_cosh", "msle")},
    "rank-one-own-function": rank_one_labels(own_loss),
    "rank-one-function-of-a-batch": rank_one_labels(scalar_loss),
    "own-loss-class": lambda: Case(model_of(layers.Dense(1), loss=OwnLoss()), vectors(), rng(3).normal(size=(ROWS, 1)).astype(np.float32)),
    "squared-hinge": lambda: Case(model_of(layers.Dense(1, "tanh"), loss="squared_hinge"), vectors() / 9, classes(2).astype(np.float32)),
    "hinge-class": lambda: Case(model_of(layers.Dense(1, "tanh"), loss=losses.Hinge()), vectors() / 9, classes(2).astype(np.float32)),
    "last-dense-twice": last_dense_twice,
    "operation-after-the-last-layer": operation_after_the_last_layer,
    "positions": positions(CE),
    "positions-softmax-layer": positions(CE, layers.Dense(3), layers.Softmax()),
    "positions-logits": positions(losses.SparseCategoricalCrossentropy(from_logits=True), layers.Dense(3)),
    "positions-sum": positions(losses.SparseCategoricalCrossentropy(reduction="sum")),
    "positions-none": positions(losses.SparseCategoricalCrossentropy(reduction="none")),
    "positions-ignored-class": positions(losses.SparseCategoricalCrossentropy(ignore_class=0)),
    "positions-one-hot": one_hot_positions,
    "mask": masked(CE),
    "mask-class": masked(losses.SparseCategoricalCrossentropy()),
    "mask-sum": masked(losses.SparseCategoricalCrossentropy(reduction="sum")),
    "mask-ignored-class": masked(losses.SparseCategoricalCrossentropy(ignore_class=1)),
    "mask-lstm": masked_lstm,
    "weights-of-positions": weighted_positions,
    "weights-of-masked-positions": weighted_masked_positions,
    "weights-beside-an-activity-regulariser": weighted,
    "activity-regulariser": activity(layers.Dense(3, "tanh", activity_regularizer="l2"), layers.Dense(3, "softmax")),
    "activity-regulariser-on-outputs": activity(layers.Dense(3, "softmax", activity_regularizer="l1")),
    "activity-regularisation-layer": activity(layers.Dense(3, "tanh"), layers.ActivityRegularization(l2=1.0), layers.Dense(3, "softmax")),
    "add-loss-mean": activity(layers.Dense(3, "tanh"), Penalty("mean"), layers.Dense(3, "softmax")),
    "add-loss-sum": activity(layers.Dense(3, "tanh"), Penalty("sum"), layers.Dense(3, "softmax")),
    "weight-regularisers": regularised,
    "string-lookup": looked_up(layers.StringLookup, TEXTS, "string"),
    "string-lookup-one-hot": looked_up(lambda: layers.StringLookup(output_mode="one_hot"), TEXTS, "string", layers.Flatten()),
    "integer-lookup": looked_up(layers.IntegerLookup, NUMBERS, "int64"),
    "text-vectorization": looked_up(lambda: layers.TextVectorization(output_sequence_length=3), TEXTS, "string"),
    "tf-idf": looked_up(lambda: layers.TextVectorization(output_mode="tf_idf"), TEXTS, "string", layers.Dense(2)),
    "hashing": looked_up(lambda: layers.Hashing(7), TEXTS, "string"),
    "discretization": looked_up(lambda: layers.Discretization(num_bins=3), NUMBERS.astype(np.float32), "float32"),
    "category-encoding": looked_up(lambda: layers.CategoryEncoding(20, "one_hot"), NUMBERS, "int64", layers.Flatten()),
    "rescaling": activity(layers.Rescaling(0.1, offset=-1.0), layers.Dense(3, "softmax")),
    "integers-into-the-last-dense": integers_into_the_last_dense,
    "unregistered-metric": unregistered_metric,
    "unregistered-loss": lambda: Case(model_of(layers.Dense(2), loss=own_loss), vectors(), vectors(2)),
    "lambda": activity(layers.Lambda(lambda x: x * 0.5 + 1), layers.Dense(3, "softmax")),
    "own-activation": activity(layers.Dense(4, own_activation), layers.Dense(3, "softmax")),
    "own-layer": activity(Scaled(), layers.Dense(3, "softmax")),
    "tied-embedding": tied_embedding,
    "binary-crossentropy-by-name": binary("binary_crossentropy"),
    "binary-crossentropy-class": binary(losses.BinaryCrossentropy(label_smoothing=0.1)),
    "binary-focal": binary("binary_focal_crossentropy"),
    "crossentropy-by-shape": activity(layers.Dense(3, "softmax")),
    "per-pixel-by-name": per_pixel(CE),
    "per-pixel-class": per_pixel(losses.SparseCategoricalCrossentropy()),
    "autoencoder": autoencoder,
    "outputs-by-name": several_outputs(True, loss={"price": MSE, "kind": CE}, loss_weights={"price": 0.3, "kind": 2.0}),
    "outputs-in-a-list": several_outputs(False, loss=[MSE, CE], loss_weights=[0.3, 2.0]),
    "outputs-in-a-list-losses-by-name": several_outputs(False, loss={"price": MSE, "kind": CE}),
    "auxiliary-output": auxiliary_output,
    "two-inputs": two_inputs,
    "bidirectional": lambda: Case(model_of(layers.Bidirectional(layers.LSTM(3)), layers.Dense(3, "softmax"), shape=(5, 4)),
                                  rng(4).normal(size=(ROWS, 5, 4)).astype(np.float32), classes()),
    "time-distributed": positions(CE, layers.TimeDistributed(layers.Dense(4, "tanh")), layers.Dense(3, "softmax")),
    "nested-sequential": activity(keras.Sequential([layers.Dense(4, "tanh"), layers.Dense(4, "relu")]), layers.Dense(3, "softmax")),
    "label-smoothing": lambda: Case(model_of(layers.Dense(3, "softmax"), loss=losses.CategoricalCrossentropy(label_smoothing=0.2)),
                                    vectors(), np.eye(3, dtype=np.float32)[classes()]),
    "focal": lambda: Case(model_of(layers.Dense(3, "softmax"), loss="categorical_focal_crossentropy"),
                          vectors() / 5, np.eye(3, dtype=np.float32)[classes()]),
    "cosine": lambda: Case(model_of(layers.Dense(3), loss="cosine_similarity"), vectors(), vectors(3)),
}  # fmt: skip


def batch(case: Case) -> ExampleBatch:
    return ExampleBatch(np.arange(ROWS).astype(str).astype(object), case.x, case.y, case.weights)


RECURRENT = ("mask-lstm", "bidirectional")  # some ten seconds each, to trace their loops example by example
PRECISIONS = [(name, "auto") for name in CASES] + [(name, "native") for name in CASES if name not in RECURRENT]


@pytest.mark.parametrize(("name", "precision"), PRECISIONS)
def test_losses_and_gradients_are_kerass(name: str, precision: str) -> None:
    keras.utils.set_random_seed(3)
    case = CASES[name]()
    wanted_losses, wanted = losses_and_gradients(case.model, case.x, case.y, case.weights)
    before = [np.asarray(variable) for variable in case.model.variables]
    model = InfluenceModel(case.model, weights="all", precision=precision, **case.options)  # type: ignore[arg-type]
    found_losses, gradients = model.losses_and_gradients(batch(case))
    assert model.dtype == ("float32" if precision == "native" else case.dtype)
    np.testing.assert_allclose(found_losses, wanted_losses, rtol=FLOAT32, atol=FLOAT32 * np.abs(wanted_losses).max())
    np.testing.assert_allclose(np.asarray(gradients), wanted, rtol=0, atol=FLOAT32 * np.abs(wanted).max())
    agreement = model.check(batch(case))
    assert agreement.examples == ROWS and max(dataclasses.astuple(agreement)[1:]) < 1e-4
    assert all((a == b).all() for a, b in zip(before, case.model.variables, strict=True))


def test_labels_of_padding_change_nothing() -> None:
    keras.utils.set_random_seed(3)
    case = CASES["mask"]()
    model = InfluenceModel(case.model, weights="all")
    found = np.asarray(model.losses_and_gradients(batch(case))[1])
    other = dataclasses.replace(case, y=np.where(case.x == 0, (case.y + 1) % 3, case.y))
    np.testing.assert_array_equal(found, np.asarray(model.losses_and_gradients(batch(other))[1]))
    assert (case.x == 0).any()


# Losses that are named beside the model.


@pytest.mark.parametrize(
    ("named", "head", "right"),
    [
        ("softmax_cross_entropy", "softmax", losses.SparseCategoricalCrossentropy()),
        ("softmax_cross_entropy", None, losses.SparseCategoricalCrossentropy(from_logits=True)),
        (losses.SparseCategoricalCrossentropy(from_logits=True), "softmax", losses.SparseCategoricalCrossentropy()),
        ("squared_error", "softmax", lambda y, p: 3 * losses.mean_squared_error(y, p)),
        (CE, "softmax", CE),
        (losses.sparse_categorical_crossentropy, "softmax", CE),
        (lambda y, p: tf.reduce_mean(tf.square(p - tf.one_hot(y, 3, dtype=p.dtype)), axis=-1), "softmax",
         lambda y, p: tf.reduce_mean(tf.square(p - tf.one_hot(tf.cast(y, tf.int32)[:, 0], 3)), axis=-1)),
    ],
)  # fmt: skip
def test_a_loss_beside_the_model(named: Any, head: str | None, right: Any) -> None:
    keras.utils.set_random_seed(3)
    y = classes() if named != "squared_error" else np.eye(3, dtype=np.float32)[classes()]
    case = Case(model_of(layers.Dense(3, head), loss=right), vectors(), y)
    if callable(named) and not isinstance(named, losses.Loss):
        y = y.astype(np.int64)
    wanted_losses, wanted = losses_and_gradients(case.model, case.x, y[:, None] if callable(right) and y.ndim == 1 else y)
    model = InfluenceModel(case.model, weights="all", loss_function=named)
    found_losses, gradients = model.losses_and_gradients(batch(case))
    np.testing.assert_allclose(found_losses, wanted_losses, rtol=FLOAT32)
    np.testing.assert_allclose(np.asarray(gradients), wanted, rtol=0, atol=FLOAT32 * np.abs(wanted).max())
    model.check(batch(case))


def takes_its_weights(labels: tf.Tensor, outputs: tf.Tensor, sample_weight: tf.Tensor) -> tf.Tensor:
    return sample_weight * tf.reduce_sum(tf.square(labels - outputs), axis=-1)


@pytest.mark.parametrize("loss", [takes_its_weights, lambda y, p: tf.reduce_sum(tf.square(y - p), axis=-1, keepdims=True)])
def test_a_function_that_takes_weights_or_gives_a_column(loss: Any) -> None:
    x, y, weights = vectors(), vectors(2) / 3, rng(5).uniform(0, 2, ROWS)
    case = Case(model_of(layers.Dense(2), loss=MSE), x, y, weights)
    model = InfluenceModel(case.model, weights="all", loss_function=loss)
    found, gradients = model.losses_and_gradients(batch(case))
    kernel, bias = (np.asarray(value, np.float64) for value in case.model.get_weights())
    errors = x @ kernel + bias - y
    np.testing.assert_allclose(found, weights * (errors**2).sum(1), rtol=1e-6)
    of_kernel = 2 * weights[:, None, None] * x[:, :, None] * errors[:, None]
    np.testing.assert_allclose(np.asarray(gradients)[:, :8], of_kernel.reshape(ROWS, 8), rtol=1e-5, atol=1e-6)
    model.check(batch(case))


# What can't be right is refused, with the mend.


def check(model: keras.Model, x: Any, y: Any, **options: Any) -> None:
    InfluenceModel(model, weights="all", **options).check(ExampleBatch(np.arange(len(y)).astype(str).astype(object), x, y))


@pytest.mark.parametrize("precision", ["auto", "native"])
def test_a_loss_that_reads_the_weights_is_refused(precision: Any) -> None:
    model = model_of(layers.Dense(3, "softmax"))

    def penalised(labels: Any, outputs: Any) -> Any:
        return losses.sparse_categorical_crossentropy(labels, outputs) + tf.reduce_sum(tf.square(model.layers[0].kernel.value))

    model.compile(loss=penalised)
    with pytest.raises(ValueError, match="the loss itself reads the weight 'sequential.*kernel'.*kernel_regularizer=, or by weight_decay"):
        check(model, vectors(), classes(), precision=precision)


def test_a_stateful_layer_is_refused() -> None:
    model = keras.Sequential([keras.Input(batch_shape=(2, 5, 4)), layers.LSTM(3, stateful=True), layers.Dense(3, "softmax")])
    model.compile(loss=CE)
    with pytest.raises(ValueError, match="'lstm.*' is stateful.*stateful=False and load its weights"):
        InfluenceModel(model)


def test_an_int8_model_is_refused() -> None:
    model = model_of(layers.Dense(8, "tanh"), layers.Dense(3, "softmax"))
    model.quantize("int8")
    model.compile(loss=CE)
    with pytest.raises(ValueError, match=r"'dense.*' is quantised \(int8\).*as it was before model.quantize"):
        InfluenceModel(model)


class Noise(layers.Layer):
    def call(self, x: Any) -> Any:
        return x + tf.random.normal(tf.shape(x), dtype=x.dtype)


class BatchCentred(layers.Layer):
    def call(self, x: Any) -> Any:
        return x - tf.reduce_mean(x, axis=0, keepdims=True)


class Counting(layers.Layer):
    """Keeps state when it predicts."""

    def build(self, shape: Any) -> None:
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x: Any) -> Any:
        self.count.assign_add(1.0)
        return x * self.count


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Noise, "second time"),
        (Counting, "second time"),
        (BatchCentred, "mixes the examples of a batch"),
    ],
)
@pytest.mark.parametrize("precision", ["auto", "native"])
def test_a_layer_that_is_no_function_of_the_example_is_refused(layer: Any, message: str, precision: Any) -> None:
    with pytest.raises(ValueError, match=message):
        check(model_of(layer(), layers.Dense(3, "softmax")), vectors(), classes(), precision=precision)


def test_a_copy_that_is_not_the_model_is_refused_by_layer() -> None:
    model = model_of(layers.Dense(3), Forgetful(2.0), layers.Dense(3, "softmax"))
    with pytest.raises(ValueError, match=r"first in the layer 'forgetful.*' \(Forgetful\); use precision 'native'"):
        check(model, vectors(), classes(), precision="float64")
    for precision in ("auto", "native"):
        explained = InfluenceModel(model, weights="all", precision=precision)  # type: ignore[arg-type]
        explained.check(batch(Case(model, vectors(), classes())))
        assert explained.dtype == "float32"


class Bins(layers.Layer):
    """Rounds what it has computed: 0.7 · 10 is 7 in float32, and below 7 for the same number in float64."""

    def call(self, x: Any) -> Any:
        return tf.one_hot(tf.cast(tf.floor(x[:, 0] * 10), tf.int32), 10, dtype=x.dtype)


def test_a_model_that_rounds_is_computed_as_it_is() -> None:
    x = np.array([[0.55]] * 3 + [[0.7], [0.6], [0.3]], np.float32)
    case = Case(model_of(Bins(), layers.Dense(3, "softmax"), shape=(1,)), x, classes())
    model = InfluenceModel(case.model, weights="all")
    assert model.dtype == "float32"
    found = np.asarray(model.losses_and_gradients(batch(case))[1])
    wanted = losses_and_gradients(case.model, x, case.y)[1]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=FLOAT32 * np.abs(wanted).max())
    with pytest.raises(ValueError, match="rounds what it has computed .Floor.*precision 'native'"):
        InfluenceModel(case.model, precision="float64")


def by_count_in_the_batch(labels: Any, outputs: Any) -> Any:
    """Weighs each class by how rare it is in the batch."""
    each = losses.sparse_categorical_crossentropy(labels, outputs)
    same = tf.cast(tf.equal(tf.reshape(labels, [-1, 1]), tf.reshape(labels, [1, -1])), outputs.dtype)
    return each / tf.reduce_sum(same, axis=1)


def test_a_loss_of_the_users_own_sees_one_example() -> None:
    """However large the batch: data that are sorted by label hide what it does from any first examples."""
    model = model_of(layers.Dense(3, "softmax"), loss=by_count_in_the_batch)
    y = np.array([0, 0, 0, 1, 1, 2])
    wanted = losses_and_gradients(model, vectors(), y)[1]
    for precision in ("auto", "native"):
        explained = InfluenceModel(model, weights="all", precision=precision)  # type: ignore[arg-type]
        found = np.asarray(explained.losses_and_gradients(batch(Case(model, vectors(), y)))[1])
        np.testing.assert_allclose(found, wanted, rtol=0, atol=FLOAT32 * np.abs(wanted).max())
        with pytest.raises(ValueError, match="it mixes the examples of a batch"):
            explained.check(batch(Case(model, vectors(), y)))


def with_constants(labels: Any, outputs: Any) -> Any:
    """Weights of classes, as users write them: in float32."""
    weights = tf.gather(tf.constant([1.0, 5.0, 0.2]), tf.cast(tf.reshape(labels, [-1]), tf.int32))
    return weights * losses.sparse_categorical_crossentropy(labels, outputs)


def test_a_loss_that_can_not_be_had_in_float64_is_computed_in_the_models_own() -> None:
    model = model_of(layers.Dense(3, "softmax"), loss=with_constants)
    case = Case(model, vectors(), classes())
    explained = InfluenceModel(model, weights="all")
    explained.check(batch(case))
    assert explained.dtype == "float32"
    wanted = losses_and_gradients(model, case.x, case.y)[1]
    np.testing.assert_allclose(
        np.asarray(explained.losses_and_gradients(batch(case))[1]), wanted, rtol=0, atol=FLOAT32 * np.abs(wanted).max()
    )


@pytest.mark.parametrize("kind", ["gauss_newton", "kfac", "ekfac", "random_projection"])
def test_a_negative_weight_has_no_part_in_a_curvature_that_is_never_negative(kind: str) -> None:
    from beam_influence.influence_ops.curvature import FinishOptions, curvature_by_name, fit

    model = InfluenceModel(model_of(layers.Dense(4, "tanh"), layers.Dense(3, "softmax")), weights="all")
    weights = np.array([1.0, 1.0, -0.5, 1.0, 1.0, 1.0])
    data = ExampleBatch(np.arange(ROWS).astype(str).astype(object), vectors(), classes(), weights)
    with pytest.raises(ValueError, match="example 2 has the weight -0.5.*--curvature exact"):
        fit(model, curvature_by_name(kind), lambda: [data], FinishOptions(1.0))
    with pytest.raises(ValueError, match="example 2 has the weight -0.5"):
        model.gauss_newton_products(data, np.ones((1, model.size)))


def test_inputs_whose_keys_are_not_their_names_are_refused() -> None:
    a, b = keras.Input((4,), name="b"), keras.Input((4,), name="a")
    model = keras.Model({"a": a, "b": b}, layers.Dense(3, "softmax")(layers.Subtract()([a, b])))
    model.compile(loss=CE)
    with pytest.raises(ValueError, match="input 'b' has the key 'a'.*name both alike"):
        InfluenceModel(model)


def test_checkpoints_that_give_up_their_copies_are_refused() -> None:
    from beam_influence.influence_ops.model.checkpoints import CheckpointSum

    networks = [model_of(layers.Dense(3), Forgetful(factor), layers.Dense(3, "softmax")) for factor in (1.0, 2.0)]
    data = batch(Case(networks[0], vectors(), classes()))
    with pytest.raises(ValueError, match="a checkpoint's float64 copy is not the checkpoint.*precision 'native' for all"):
        CheckpointSum([InfluenceModel(network, weights="all") for network in networks]).check(data)
    CheckpointSum([InfluenceModel(network, weights="all", precision="native") for network in networks]).check(data)


def test_an_added_loss_that_mixes_examples_is_refused() -> None:
    class Spread(layers.Layer):
        def call(self, x: Any) -> Any:
            self.add_loss(tf.math.reduce_variance(x))
            return x

    with pytest.raises(ValueError, match="neither their mean nor their sum, so no example has a share of it; add a mean"):
        check(model_of(layers.Dense(3), Spread(), layers.Dense(3, "softmax")), vectors(), classes())


class MixesLargeValues(layers.Layer):
    def call(self, x: Any) -> Any:
        return x + tf.where(tf.reduce_max(x) > LARGE, tf.reduce_mean(x, axis=0), 0)


class AddsSpreadOfLargeValues(layers.Layer):
    def call(self, x: Any) -> Any:
        self.add_loss(tf.where(tf.reduce_max(x) > LARGE, tf.math.reduce_variance(x), 0))
        return x


@pytest.mark.parametrize("precision", ["auto", "native"])
@pytest.mark.parametrize("layer", [MixesLargeValues, AddsSpreadOfLargeValues])
def test_mixing_that_the_first_batch_does_not_show_is_refused_in_a_later_one(layer: Any, precision: Any) -> None:
    from beam_influence.influence_ops.model.evaluate import evaluate

    network = model_of(layers.Dense(4, kernel_initializer="ones"), layer(), layers.Dense(3, "softmax"))
    model = InfluenceModel(network, weights="all", precision=precision)
    for _ in range(3):
        evaluate(model, batch(Case(network, vectors(), classes())))
    with pytest.raises(ValueError, match="a batch of 6 examples gives other losses or gradients than each .*mixes the examples of a batch"):
        evaluate(model, batch(Case(network, vectors() * LARGE, classes())))  # the fourth


def test_a_second_softmax_is_refused(tmp_path: Any) -> None:
    """A SavedModel shows no logits behind its probabilities."""
    model = model_of(layers.Dense(3, "softmax"))
    model.export(str(tmp_path / "saved"), verbose=False)
    from beam_influence.influence_ops.model.saved_model import SavedModelNetwork

    for loss in ("softmax_cross_entropy", losses.SparseCategoricalCrossentropy(from_logits=True)):
        with pytest.raises(ValueError, match="probabilities already .they sum to 1.*--loss sparse_categorical_crossentropy"):
            check(SavedModelNetwork(str(tmp_path / "saved")), vectors(), classes(), loss_function=loss)  # type: ignore[arg-type]
    check(SavedModelNetwork(str(tmp_path / "saved")), vectors(), classes(), loss_function=CE)  # type: ignore[arg-type]


def test_a_mean_by_the_batchs_weights_is_refused() -> None:
    model = model_of(layers.Dense(3, "softmax"), loss=losses.SparseCategoricalCrossentropy(reduction="mean_with_sample_weight"))
    explained = InfluenceModel(model)
    weighted_batch = ExampleBatch(np.arange(ROWS).astype(str).astype(object), vectors(), classes(), np.ones(ROWS))
    with pytest.raises(ValueError, match="mean_with_sample_weight.*reduction='sum_over_batch_size', or leave the weights out"):
        explained.check(weighted_batch)
    explained.check(dataclasses.replace(weighted_batch, weights=None))


def test_a_second_sigmoid_is_refused_and_small_logits_are_not(tmp_path: Any) -> None:
    from beam_influence.influence_ops.model.saved_model import SavedModelNetwork

    x, y, loss = rng(1).uniform(-1, 1, (32, 4)).astype(np.float32), rng(2).integers(0, 2, 32), losses.BinaryCrossentropy(from_logits=True)
    model = model_of(layers.Dense(1, "sigmoid"))
    model.export(str(tmp_path / "saved"), verbose=False)
    hidden = model_of(layers.Dense(1), layers.Lambda(tf.nn.sigmoid))
    for network in (SavedModelNetwork(str(tmp_path / "saved")), hidden):
        with pytest.raises(ValueError, match="all are between 0 and 1.*--loss binary_crossentropy"):
            check(network, x, y, loss_function=loss)  # type: ignore[arg-type]
    small = model_of(layers.Dense(1))
    small.set_weights([np.full((4, 1), 0.01), np.full(1, 0.5)])
    check(small, x, y, loss_function=loss)


def test_labels_that_find_no_output_are_refused() -> None:
    case = several_outputs(True, loss={"price": MSE, "kind": CE})()
    with pytest.raises(ValueError, match="the output 'price' has a loss and no label; the labels are kind"):
        check(case.model, case.x, {"kind": case.y["kind"]})


def test_a_first_example_whose_gradient_alone_is_not_finite() -> None:
    """Keras's loss of an ignored class is 0 whatever the outputs are: such an example is rejected, and is no sign of another model."""
    network = keras.Sequential([keras.Input((3,)), layers.Dense(3)])
    network.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1))
    random = np.random.default_rng(0)
    x, labels = random.standard_normal((4, 3)), np.array([1, 0, 2, 0])
    x[0, 1] = np.nan
    model = InfluenceModel(network)
    batch = ExampleBatch(np.array(list("abcd"), dtype=object), x, labels)
    assert model.check(batch).examples == 3
    kept, losses, gradients, rejected = evaluate(model, batch)
    assert [each.message for each in rejected] == ["example a: its gradient is not finite"]
    assert list(kept.ids) == ["b", "c", "d"] and np.isfinite(losses).all() and gradients.finite().all()
