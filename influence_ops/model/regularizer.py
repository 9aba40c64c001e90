"""The regulariser R(θ) of watched weights, with its derivatives: Keras's penalties of each variable, and 0.5·w·‖θ‖²."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.model.gradients.blocks import Layout
from beam_influence.influence_ops.model.network import to_numpy
from beam_influence.influence_ops.types import Float64Matrix, Float64Vector


class WeightRegularizer:
    """R(θ) = Σ the variables' own regularisers + 0.5·w·‖θ‖².

    Args:
      variables: the watched weights, in the order of θ [P].
      weight_decay: w.
    """

    def __init__(self, variables: Sequence[keras.Variable], weight_decay: float):
        self._variables = variables
        self._weight_decay = weight_decay
        self._gradient: np.ndarray | None = None

    def value(self) -> float:
        """R(θ)."""
        penalties = sum(float(variable.regularizer(variable.value)) for variable in self._variables if variable.regularizer)
        return penalties + 0.5 * self._weight_decay * float(np.sum(flat_values(self._variables) ** 2))

    def gradient(self) -> Float64Vector:
        """∇R(θ): [P] float64; computed once."""
        if self._gradient is None:
            parts = [to_numpy(_penalty_gradient(variable)).ravel() for variable in self._variables]
            self._gradient = np.concatenate(parts) + self._weight_decay * flat_values(self._variables)
        return self._gradient

    def products(self, vectors: Float64Matrix) -> Float64Matrix:
        """∇²R(θ) v for each row v of `vectors` [R, P]: [R, P]."""
        products = self._weight_decay * vectors
        for variable, rows in self._rows():
            known = constant_second_derivative(variable)
            products[:, rows] += known * vectors[:, rows] if known is not None else vectors[:, rows] @ _penalty_hessian(variable)
        return products

    def mean_second_derivatives(self, layout: Layout) -> list[float]:
        """The mean of ∇²R(θ)'s diagonal over each block of `layout`."""
        at = {rows.start: variable for variable, rows in self._rows()}
        found = []
        for block in layout.blocks:
            total = 0.0
            for piece in block.pieces:
                known = constant_second_derivative(at[piece.start])
                total += known * piece.size if known is not None else float(np.trace(_penalty_hessian(at[piece.start])))
            found.append(self._weight_decay + total / block.size)
        return found

    def add_hessian(self, matrix: Float64Matrix) -> None:
        """Adds ∇²R(θ) to `matrix` [P, P] in place."""
        for variable, rows in self._rows():
            known = constant_second_derivative(variable)
            if known is None:
                matrix[rows, rows] += _penalty_hessian(variable)
            else:
                matrix[rows, rows][np.diag_indices(rows.stop - rows.start)] += known  # through a view
        matrix[np.diag_indices_from(matrix)] += self._weight_decay

    def _rows(self) -> Iterator[tuple[keras.Variable, slice]]:
        """Each variable, and which numbers of θ are its own."""
        start = 0
        for variable in self._variables:
            stop = start + int(np.prod(variable.shape))
            yield variable, slice(start, stop)
            start = stop


def check_weight_decay(weight_decay: float) -> float:
    """w as a float.

    Raises:
      ValueError: it is no number of at least 0.
    """
    if not np.isfinite(weight_decay) or weight_decay < 0:
        raise ValueError(f"weight_decay={weight_decay!r} must be a number of at least 0")
    return float(weight_decay)


def flat_values(variables: Sequence[keras.Variable]) -> Float64Vector:
    """The variables' values, one after the other: [P] float64."""
    return np.concatenate([to_numpy(variable.value).ravel() for variable in variables])


def constant_second_derivative(variable: keras.Variable) -> float | None:
    """The second derivative of a variable's penalty where it is one of Keras's own, elementwise; 0 without one, None for any other."""
    regularizer = getattr(variable, "regularizer", None)
    if regularizer is None or type(regularizer) is keras.regularizers.L1:
        return 0.0
    if type(regularizer) in (keras.regularizers.L2, keras.regularizers.L1L2):
        return 2.0 * float(regularizer.l2)
    return None


def _penalty_gradient(variable: keras.Variable) -> tf.Tensor:
    value = tf.convert_to_tensor(variable.value)
    if not variable.regularizer:
        return tf.zeros_like(value)
    with tf.GradientTape() as tape:
        tape.watch(value)
        penalty = variable.regularizer(value)
    return tf.convert_to_tensor(tape.gradient(penalty, value))


def _penalty_hessian(variable: keras.Variable) -> Float64Matrix:
    regularizer: Any = variable.regularizer
    value = tf.convert_to_tensor(variable.value)
    with tf.GradientTape() as outer:
        outer.watch(value)
        with tf.GradientTape() as inner:
            inner.watch(value)
            penalty = regularizer(value)
        gradient = tf.convert_to_tensor(inner.gradient(penalty, value, unconnected_gradients=tf.UnconnectedGradients.ZERO))
    count = int(tf.size(value))
    # A penalty may be linear: its gradient is a constant.
    return to_numpy(tf.reshape(outer.jacobian(gradient, value, unconnected_gradients=tf.UnconnectedGradients.ZERO), [count, count]))
