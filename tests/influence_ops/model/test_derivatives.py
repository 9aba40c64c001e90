"""Derivatives through `InfluenceModel` against `tf.GradientTape.jacobian` of the user's own model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence import InfluenceModel
from beam_influence.influence_ops.model.linear_head import LinearHeadDerivatives
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

layers = keras.layers

KERAS_FACTOR = 1e-7  # Keras rounds a penalty's factor to float32, half of 2⁻²³, when it applies it
EXACT = 1e-10  # float64, sums of a few hundred terms in another order; relative to the largest entry


def relative(found: Any, wanted: np.ndarray) -> float:
    """max |found − wanted| / max |wanted|."""
    found = np.asarray(found)
    assert found.shape == wanted.shape
    assert np.abs(wanted).max() > 1e-6  # or there is nothing to compare
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def perturbed(model: keras.Model) -> keras.Model:
    """The model with every weight at random: biases and moving statistics would be 0 and 1 else."""
    random = np.random.default_rng(7)
    for variable in model.weights:
        if "seed_generator" in variable.path:
            continue
        value = random.uniform(0.3, 1.5, variable.shape) if "moving_variance" in variable.path else random.normal(0, 0.4, variable.shape)
        variable.assign(value)
    return model


@dataclasses.dataclass(frozen=True)
class Case:
    """A model in float64, and what autodiff is asked about it.

    Attributes:
      build: makes the model. Every layer is float64, so that it is its own reference.
      inputs: (random, count) -> inputs.
      labels: (random, count) -> labels.
      loss: for `InfluenceModel`.
      reference: (labels, the model's own outputs) -> [B], the same loss written out.
      output: (the model's own outputs) -> pre-activations.
      options: of `InfluenceModel`.
      linear: whether the closed form is used.
    """

    build: Callable[[], keras.Model]
    inputs: Callable[[np.random.Generator, int], Any]
    labels: Callable[[np.random.Generator, int], np.ndarray]
    loss: Any
    reference: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    linear: bool = False


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    picked = tf.gather(logits, tf.cast(tf.reshape(labels, [-1]), tf.int32), batch_dims=1)
    return tf.reduce_logsumexp(logits, axis=-1) - picked


def soft_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_sum(labels * logits, axis=-1)


def binary(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The mean over the outputs, as Keras has it."""
    labels = tf.cast(tf.reshape(labels, tf.shape(logits)), tf.float64)
    return tf.reduce_mean(tf.nn.softplus(logits) - labels * logits, axis=-1)


def mean_square(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(tf.reshape(labels, tf.shape(outputs)) - outputs), axis=-1)


def vectors(size: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda random, count: random.standard_normal((count, size))


def classes(number: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda random, count: random.integers(0, number, count)


def simplex(random: np.random.Generator, count: int) -> np.ndarray:
    return random.dirichlet(np.ones(3), count)


def dense(size: int, *hidden: int, outputs: int, use_bias: bool = True) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        stack = [layers.Dense(units, activation="tanh", dtype="float64") for units in hidden]
        head = layers.Dense(outputs, use_bias=use_bias, dtype="float64")
        return keras.Sequential([keras.Input((size,), dtype="float64"), *stack, head])

    return build


def with_activation(activation: str, outputs: int) -> Callable[[], keras.Model]:
    """The head's activation is the model's own: `logits_of` takes the reference's off."""

    def build() -> keras.Model:
        head = layers.Dense(outputs, activation=activation, dtype="float64")
        return keras.Sequential([keras.Input((4,), dtype="float64"), layers.Dense(3, activation="tanh", dtype="float64"), head])

    return build


def cnn() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6, 6, 1), dtype="float64"),
            layers.Conv2D(2, 3, activation="softplus", dtype="float64"),
            layers.MaxPooling2D(2, dtype="float64"),
            layers.Flatten(dtype="float64"),
            layers.Dense(3, dtype="float64"),
        ]
    )


def embedding() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int64"),
            layers.Embedding(7, 3, dtype="float64"),
            layers.GlobalAveragePooling1D(dtype="float64"),
            layers.Dense(2, dtype="float64"),
        ]
    )


def normalised() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((4,), dtype="float64"),
            layers.Dense(3, dtype="float64"),
            layers.BatchNormalization(dtype="float64"),
            layers.Activation("tanh", dtype="float64"),
            layers.Dropout(0.5, dtype="float64"),
            layers.Dense(3, dtype="float64"),
        ]
    )


def two_inputs() -> keras.Model:
    number = keras.Input((3,), dtype="float64", name="number")
    token = keras.Input((), dtype="int64", name="token")
    embedded = layers.Embedding(5, 2, dtype="float64")(token)
    joined = layers.Concatenate(dtype="float64")([layers.Dense(2, activation="tanh", dtype="float64")(number), embedded])
    return keras.Model({"number": number, "token": token}, layers.Dense(3, dtype="float64")(joined))


def number_and_token(random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    return {"number": random.standard_normal((count, 3)), "token": random.integers(0, 5, count)}


class Subclassed(keras.Model):
    """A model that can't be rebuilt."""

    def __init__(self):
        super().__init__(dtype="float64")
        self.hidden = layers.Dense(3, activation="tanh", dtype="float64")
        self.head = layers.Dense(2, dtype="float64")

    def call(self, x: Any) -> Any:
        return self.head(self.hidden(x))


def subclassed() -> keras.Model:
    model = Subclassed()
    model(np.zeros((1, 4)))
    return model


def tokens(random: np.random.Generator, count: int) -> np.ndarray:
    return random.integers(0, 7, (count, 5))


ALL = {"weights": "all"}
SPARSE, CATEGORICAL, BINARY = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.BinaryCrossentropy,
)
CASES = {
    "softmax_head": Case(dense(4, outputs=3), vectors(4), classes(3), "softmax_cross_entropy", cross_entropy, linear=True),
    "head_without_bias": Case(
        dense(4, 3, outputs=3, use_bias=False), vectors(4), classes(3), "softmax_cross_entropy", cross_entropy, linear=True
    ),
    "keras_sparse": Case(with_activation("softmax", 3), vectors(4), classes(3), SPARSE(), cross_entropy, linear=True),
    "keras_categorical": Case(with_activation("softmax", 3), vectors(4), simplex, CATEGORICAL(), soft_cross_entropy, linear=True),
    "keras_binary": Case(with_activation("sigmoid", 1), vectors(4), classes(2), BINARY(), binary, linear=True),
    "keras_binary_many": Case(
        with_activation("sigmoid", 3), vectors(4), lambda random, count: random.integers(0, 2, (count, 3)), BINARY(), binary, linear=True
    ),
    "mse": Case(dense(4, 3, outputs=2), vectors(4), vectors(2), "mse", mean_square, linear=True),
    "mse_object": Case(
        dense(4, outputs=1), vectors(4), lambda r, n: r.standard_normal(n), keras.losses.MeanSquaredError(), mean_square, linear=True
    ),
    "mlp_all": Case(dense(4, 3, 2, outputs=3), vectors(4), classes(3), "softmax_cross_entropy", cross_entropy, ALL),
    "cnn_all": Case(cnn, lambda r, n: r.standard_normal((n, 6, 6, 1)), classes(3), "softmax_cross_entropy", cross_entropy, ALL),
    "embedding_all": Case(embedding, tokens, classes(2), "softmax_cross_entropy", cross_entropy, ALL),
    "batch_norm_all": Case(normalised, vectors(4), classes(3), "softmax_cross_entropy", cross_entropy, ALL),
    "two_inputs_all": Case(two_inputs, number_and_token, classes(3), "softmax_cross_entropy", cross_entropy, ALL),
    "subclassed_all": Case(subclassed, vectors(4), classes(2), "softmax_cross_entropy", cross_entropy, ALL | {"precision": "native"}),
}


class Reference:
    """Losses, gradients and curvatures of a case at B examples, by `tf.GradientTape.jacobian` on the user's model."""

    def __init__(self, case: Case, count: int = 7, weighted: bool = False):
        random = np.random.default_rng(11)
        self.network = perturbed(case.build())
        self.inputs, self.labels = case.inputs(random, count), case.labels(random, count)
        self.weights = random.uniform(0.2, 3, count) if weighted else np.ones(count)
        self.model = InfluenceModel(self.network, loss_function=case.loss, **case.options)
        self.batch = ExampleBatch(
            np.array([str(row) for row in range(count)], dtype=object),
            self.inputs,
            self.labels,
            self.weights if weighted else None,
        )
        head = self.network.layers[-1]
        activation = getattr(head, "activation", None)
        if activation in (keras.activations.softmax, keras.activations.sigmoid):
            head.activation = keras.activations.linear  # after InfluenceModel has made its copy
        wanted = set(self.model.weight_names)
        self.variables = [variable for variable in self.network.trainable_variables if variable.path in wanted]
        assert [variable.path for variable in self.variables] == self.model.weight_names
        self._loss = case.reference
        self._derive()

    def _flat(self, parts: list[Any], rows: int) -> tf.Tensor:
        filled = [
            tf.zeros([rows, *variable.shape], tf.float64) if part is None else part
            for part, variable in zip(parts, self.variables, strict=True)
        ]
        return tf.concat([tf.reshape(part, [rows, -1]) for part in filled], axis=1)

    def _derive(self) -> None:
        values = [variable.value for variable in self.variables]
        count = len(self.labels)
        with tf.GradientTape() as outer:
            outer.watch(values)
            with tf.GradientTape(persistent=True) as inner:
                inner.watch(values)
                outputs = self.network(self.inputs, training=False)
                losses = self._loss(tf.constant(self.labels), outputs) * self.weights
                total = tf.reduce_sum(losses)
            gradient = self._flat(inner.gradient(total, values), 1)[0]
        size = self.model.size
        self.losses = losses.numpy()
        self.gradients = self._flat(inner.jacobian(losses, values), count).numpy()
        self.hessian = self._flat(outer.jacobian(gradient, values), size).numpy()
        width = outputs.shape[1]
        jacobian = tf.concat([tf.reshape(j, [count, width, -1]) for j in inner.jacobian(outputs, values)], axis=2)
        with tf.GradientTape() as outer:
            outer.watch(outputs)
            with tf.GradientTape() as inner:
                inner.watch(outputs)
                losses = self._loss(tf.constant(self.labels), outputs) * self.weights
            slopes = inner.gradient(losses, outputs)
        curvature = outer.batch_jacobian(slopes, outputs)
        self.gauss_newton = tf.einsum("bcp,bcd,bdq->pq", jacobian, curvature, jacobian).numpy()


def check_first_order(reference: Reference) -> None:
    losses, gradients = reference.model.losses_and_gradients(reference.batch)
    assert gradients.dense().dtype == tf.float64
    assert relative(losses, reference.losses) < EXACT
    assert relative(reference.model.losses(reference.batch), reference.losses) < EXACT
    assert relative(gradients, reference.gradients) < EXACT


def check_second_order(reference: Reference) -> None:
    model, batch = reference.model, reference.batch
    assert relative(model.hessian_sum(batch), reference.hessian) < EXACT
    assert relative(model.gauss_newton_sum(batch), reference.gauss_newton) < EXACT
    for start, stop in ((0, 1), (1, model.size - 1), (model.size - 2, model.size)):
        rows = slice(start, stop)
        assert relative(model.hessian_sum(batch, rows), reference.hessian[rows, start:]) < EXACT
        assert relative(model.gauss_newton_sum(batch, rows), reference.gauss_newton[rows, start:]) < EXACT
    factors = np.asarray(model.gauss_newton_factors(batch))
    assert relative(np.einsum("bcp,bcq->pq", factors, factors), reference.gauss_newton) < EXACT
    directions = np.random.default_rng(1).standard_normal((3, model.size))
    assert relative(model.hessian_vector_products(batch, directions), directions @ reference.hessian) < EXACT


def test_a_custom_activation_that_keras_does_not_know_is_copied():
    def bent(x: Any) -> Any:
        return x + 0.1 * keras.ops.sin(x)

    def build() -> keras.Model:
        hidden = layers.Dense(3, activation=bent, dtype="float64")
        return keras.Sequential([keras.Input((4,), dtype="float64"), hidden, layers.Dense(2, dtype="float64")])

    check_first_order(Reference(dataclasses.replace(CASES["mlp_all"], build=build, labels=classes(2))))


@pytest.mark.parametrize("name", CASES)
def test_equals_autodiff(name):
    reference = Reference(CASES[name], weighted=True)
    assert reference.model.size == reference.gradients.shape[1]
    check_first_order(reference)
    check_second_order(reference)
    assert isinstance(reference.model.derivatives, LinearHeadDerivatives) == CASES[name].linear
    if CASES[name].linear:
        assert relative(reference.hessian, reference.gauss_newton) < EXACT


@pytest.mark.parametrize("name", ["keras_sparse", "batch_norm_all"])
def test_batch_size_does_not_matter(name):
    """All at once without weights, one example at a time, and odd parts: through one trace."""
    reference = Reference(CASES[name], count=9)
    model, batch = reference.model, reference.batch
    for sizes in ([9], [1] * 9, [5, 1, 3]):
        ends = np.cumsum(sizes)
        parts = [batch.select(np.arange(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
        found = [model.losses_and_gradients(part) for part in parts]
        assert relative(np.concatenate([losses for losses, _ in found]), reference.losses) < EXACT
        assert relative(np.concatenate([gradients for _, gradients in found]), reference.gradients) < EXACT
        assert relative(sum(model.hessian_sum(part) for part in parts), reference.hessian) < EXACT
        assert relative(sum(model.gauss_newton_sum(part) for part in parts), reference.gauss_newton) < EXACT


def test_batch_norm_is_in_inference_mode_and_its_statistics_are_not_watched():
    reference = Reference(CASES["batch_norm_all"])
    assert not [name for name in reference.model.weight_names if "moving" in name]
    before = [np.asarray(variable.value) for variable in reference.model.model.variables]
    first = reference.model.losses(reference.batch)
    assert reference.model.losses(reference.batch).tolist() == first.tolist()  # no Dropout
    after = [np.asarray(variable.value) for variable in reference.model.model.variables]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_a_hessian_of_more_rows_than_one_pass_takes():
    """P = 98: one full block of 64 rows and a part."""
    case = dataclasses.replace(CASES["mlp_all"], build=dense(4, 9, 4, outputs=3))
    reference = Reference(case, count=3)
    assert reference.model.size > 64
    assert reference.model.size % 64
    assert relative(reference.model.hessian_sum(reference.batch), reference.hessian) < EXACT


class Quartic(keras.regularizers.Regularizer):
    """Σ w⁴ + (Σ w)²: its Hessian is neither constant nor diagonal."""

    def __call__(self, x: Any) -> Any:
        return 0.01 * (tf.reduce_sum(x**4) + tf.reduce_sum(x) ** 2)

    def get_config(self) -> dict[str, Any]:
        return {}


class Linear(keras.regularizers.Regularizer):
    """Σ w: its gradient does not depend on w."""

    def __call__(self, x: Any) -> Any:
        return 0.3 * tf.reduce_sum(x)

    def get_config(self) -> dict[str, Any]:
        return {}


PENALTIES = {
    "none": None,
    "l1": keras.regularizers.L1(0.02),
    "l2": keras.regularizers.L2(0.03),
    "l1l2": keras.regularizers.L1L2(0.02, 0.05),
    "custom": Quartic(),
    "linear": Linear(),
}
BIAS_PENALTY = keras.regularizers.L2(0.07)


def regularised(name: str, weight_decay: float, regularizer: Any = "curvature") -> tuple[InfluenceModel, keras.Model, Any]:
    penalty = PENALTIES[name]
    network = keras.Sequential(
        [
            keras.Input((4,), dtype="float64"),
            layers.Dense(3, activation="tanh", kernel_regularizer=penalty, dtype="float64"),
            layers.Dense(2, bias_regularizer=BIAS_PENALTY, dtype="float64"),
        ]
    )
    perturbed(network)
    model = InfluenceModel(
        network, weights="all", loss_function="softmax_cross_entropy", weight_decay=weight_decay, regularizer=regularizer
    )
    values = [variable.value for variable in network.trainable_variables]
    return model, network, values


@pytest.mark.parametrize("weight_decay", [0.0, 0.25])
@pytest.mark.parametrize("name", PENALTIES)
def test_regulariser_equals_autodiff(name, weight_decay):
    model, network, values = regularised(name, weight_decay)
    with tf.GradientTape() as outer:
        outer.watch(values)
        with tf.GradientTape() as inner:
            inner.watch(values)
            penalty = BIAS_PENALTY(values[3])
            if PENALTIES[name] is not None:
                penalty += PENALTIES[name](values[0])
            penalty += 0.5 * weight_decay * tf.add_n([tf.reduce_sum(value**2) for value in values])
        parts = inner.gradient(penalty, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradient = tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0)
    rows = outer.jacobian(gradient, values, unconnected_gradients="zero")
    hessian = np.concatenate([np.asarray(row).reshape(model.size, -1) for row in rows], axis=1)
    assert model.regularizer_value() == pytest.approx(float(penalty), rel=EXACT)
    assert relative(model.regularizer_gradient(), gradient.numpy()) < EXACT
    start = np.random.default_rng(2).standard_normal((model.size, model.size))
    matrix = start.copy()
    model.add_regularizer_hessian(matrix)
    assert relative(matrix - start, hessian) < KERAS_FACTOR
    directions = np.random.default_rng(3).standard_normal((3, model.size))
    assert relative(model.regularizer_products(directions), directions @ hessian) < KERAS_FACTOR


def test_where_the_regulariser_stands():
    curvature, _, _ = regularised("l1l2", 0.25)
    loss, _, _ = regularised("l1l2", 0.25, "loss")
    random = np.random.default_rng(0)
    ids = np.array(list("abcde"), dtype=object)
    batch = ExampleBatch(ids, random.standard_normal((5, 4)), random.integers(0, 2, 5), random.uniform(0.5, 2, 5))
    plain_losses, plain_gradients = curvature.losses_and_gradients(batch)
    losses, gradients = loss.losses_and_gradients(batch)
    # Sample weights multiply the loss, not the regulariser.
    assert relative(losses, plain_losses + curvature.regularizer_value()) < EXACT
    assert relative(loss.losses(batch), losses) < EXACT
    assert relative(gradients, np.asarray(plain_gradients) + curvature.regularizer_gradient()) < EXACT
    # The sums are without it in both: it is added once, to the mean.
    assert relative(loss.hessian_sum(batch), curvature.hessian_sum(batch)) < EXACT


def test_a_float32_model_is_computed_in_float64_and_natively_in_float32():
    network = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="tanh"), layers.Dense(3)])
    perturbed(network)
    random = np.random.default_rng(0)
    x, y = random.standard_normal((6, 4)).astype(np.float32), random.integers(0, 3, 6)
    batch = ExampleBatch(np.array(list("abcdef"), dtype=object), x, y)
    twin = dense(4, 3, outputs=3)()
    twin.set_weights(network.get_weights())
    wide = InfluenceModel(network, weights="all", loss_function="softmax_cross_entropy").losses_and_gradients(batch)[1]
    wanted = InfluenceModel(twin, weights="all", loss_function="softmax_cross_entropy").losses_and_gradients(batch)[1]
    assert relative(wide, np.asarray(wanted)) < EXACT
    native = InfluenceModel(network, weights="all", loss_function="softmax_cross_entropy", precision="native")
    narrow = native.losses_and_gradients(batch)[1]
    assert narrow.dense().dtype == tf.float32
    assert 1e-10 < relative(narrow, np.asarray(wanted)) < 1e-5  # float32: some 1e-7 per operation


@pytest.mark.parametrize("loss", ["mse", "own"])
def test_a_last_layer_has_the_positive_part_of_a_loss_that_is_not_convex(loss: str) -> None:
    """Σ FᵀF is of the positive part alone; the closed forms of the sum, its terms and its products have it, too."""

    def own(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        return 1 - tf.exp(-tf.reduce_sum(tf.square(tf.cast(labels, outputs.dtype) - outputs), axis=-1) / 2)

    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "sigmoid" if loss == "mse" else None)])
    model = InfluenceModel(network, loss_function="mse" if loss == "mse" else own, precision="float64")
    random = np.random.default_rng(3)
    ids = np.array([str(row) for row in range(9)], dtype=object)
    batch = ExampleBatch(ids, 2 * random.standard_normal((9, 4)), random.integers(0, 2, (9, 2)).astype(float), random.uniform(0.5, 2, 9))
    factors = np.asarray(model.gauss_newton_factors(batch)).reshape(-1, model.size)
    wanted, vectors = factors.T @ factors, random.standard_normal((3, model.size))
    terms = model.curvature_terms(batch, "gauss_newton")
    assert relative(model.hessian_sum(batch), wanted) > 0.01  # the two are not the same here
    assert terms is not None and relative(terms.sum_rows(slice(0, model.size)), wanted) < EXACT
    assert relative(model.gauss_newton_sum(batch), wanted) < EXACT
    assert relative(model.gauss_newton_products(batch, vectors), vectors @ wanted) < EXACT
