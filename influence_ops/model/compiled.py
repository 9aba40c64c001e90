"""The derivatives of a network as compiled functions, which all threads of a process share."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.any_batch import any_batch
from beam_influence.influence_ops.model.autodiff import AutodiffDerivatives
from beam_influence.influence_ops.model.exact_moments import exact_moments
from beam_influence.influence_ops.model.example_loss import ExampleLoss, Targets
from beam_influence.influence_ops.model.gradients.blocks import Layout, bounds_of
from beam_influence.influence_ops.model.gradients.discover import declared_examples
from beam_influence.influence_ops.model.heads import Heads
from beam_influence.influence_ops.model.linear_head import LinearHeadDerivatives, is_linear_head
from beam_influence.influence_ops.model.losses import TrainingLoss
from beam_influence.influence_ops.model.network import Network, declared_specs, feed, to_numpy
from beam_influence.influence_ops.model.tensor_float_32 import allow_tensor_float_32
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Inputs
from beam_influence.influence_ops.types import Float64Matrix, TensorSpecs

TRACING = threading.RLock()
"""Held while a network is traced, which puts recorders into layers that all threads share, and while one is called outside of this."""

_VECTORS_AT_ONCE = 32  # products in one vectorised pass: bounds memory to as many copies of the activations
_SECOND_DERIVATIVES = ("hessian_sum", "hessian_vector_products")
_WITH_LOSSES = ("losses_and_blocks", "losses_and_hessian_terms", "losses_and_signed_fisher", "losses_and_drawn_fisher")
_NO_EXAMPLE_YET = "the model declares no inputs and has seen no example yet; evaluate a batch first"


class CompiledDerivatives:
    """The methods of `LinearHeadDerivatives` or `AutodiffDerivatives`, each traced at its first use, for any batch size.

    Args:
      network: what is computed on.
      variables: its watched weights.
      training_loss: the loss.
    """

    def __init__(self, network: Network, variables: Sequence[keras.Variable], training_loss: TrainingLoss):
        self._model = network.model
        self._dtype = network.dtype
        self._tensor_float_32 = network.tensor_float_32
        self._variables = list(variables)
        self._training_loss = training_loss
        self._functions: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._output_shapes: dict[tuple[Any, ...], tuple[int, ...] | None] = {}
        self._layout: Layout | None = None
        self._derivatives: LinearHeadDerivatives | AutodiffDerivatives | None = None
        if network.inputs:
            self._derive(declared_specs(self._model, self._dtype))

    @property
    def derivatives(self) -> LinearHeadDerivatives | AutodiffDerivatives:
        """What is compiled; known once the model declares its inputs or has seen an example.

        Raises:
          ValueError: neither is so.
        """
        if self._derivatives is None:
            raise ValueError(_NO_EXAMPLE_YET)
        return self._derivatives

    @property
    def has_terms(self) -> bool:
        """Whether they are known to be those of a final Dense layer in float64: in float32 sums over few examples keep more digits."""
        return isinstance(self._derivatives, LinearHeadDerivatives) and self._dtype == "float64"

    @property
    def rounds(self) -> str | None:
        """An operation of the network that rounds; see `Heads`. None where there is none, or none is known yet."""
        return None if self._derivatives is None else self._derivatives.loss.heads.rounds

    def layout(self, inputs: Inputs | None) -> Layout:
        """How gradients fall into blocks; found once, on `inputs` where the model declares none.

        Raises:
          ValueError: there are neither.
        """
        if self._layout is None:
            with TRACING:
                if self._layout is None:
                    self._layout = self._discover(inputs)
        return self._layout

    def call(self, name: str, batch: ExampleBatch, *extra: tf.Tensor) -> Any:
        """The method `name` of the batch's inputs and targets, and `extra`. Losses come with their gradients' bounds: [2, B] float64, so
        that the host waits for the device once."""
        targets: Targets = {"labels": tf.nest.map_structure(tf.convert_to_tensor, batch.labels)}
        key = name
        if batch.weights is not None and (batch.weights.ndim > 1 or self._training_loss.takes_weights):
            targets["weights"] = tf.constant(batch.weights, dtype=self._dtype)
            key = f"{name} with weights"
        return self._call(key, name, batch, targets, *extra)

    def products(self, name: str, batch: ExampleBatch, weights: tf.Tensor, vectors: Float64Matrix) -> Float64Matrix:
        """The method `name` for `vectors` [R, P], some at a time: [R, P]."""
        products = np.empty(vectors.shape)
        for start in range(0, len(vectors), _VECTORS_AT_ONCE):
            rows = slice(start, start + _VECTORS_AT_ONCE)
            products[rows] = to_numpy(self.call(name, batch, weights, tf.constant(vectors[rows], dtype=self._dtype)))
        return products

    def call_on_inputs(self, name: str, batch: ExampleBatch, *extra: tf.Tensor) -> Any:
        """The method `name` of the batch's inputs and `extra`."""
        return self._call(name, name, batch, *extra)

    def output_shape(self, batch: ExampleBatch) -> tuple[int, ...] | None:
        """The shape of one example's packed outputs; None where it depends on the batch. Nothing is computed."""
        like = tuple((array.dtype.name, array.shape[1:]) for array in tf.nest.flatten(batch.inputs))
        if like not in self._output_shapes:
            found = self._function("packed_outputs", "packed_outputs", (feed(self._model, batch.inputs, self._dtype),)).output_shapes[1:]
            self._output_shapes[like] = tuple(found) if found.is_fully_defined() else None
        return self._output_shapes[like]

    def _call(self, key: str, name: str, batch: ExampleBatch, *extra: Any) -> Any:
        allow_tensor_float_32(self._tensor_float_32)
        arguments = (feed(self._model, batch.inputs, self._dtype), *extra)
        return self._function(key, name, arguments)(*arguments)

    def _function(self, key: str, name: str, arguments: tuple[Any, ...]) -> Any:
        # Test points may be padded to another length than training examples, and their labels be of another type.
        known = (key, *((leaf.dtype, tuple(leaf.shape[1:])) for leaf in tf.nest.flatten(arguments)))
        if known not in self._functions:
            with TRACING:
                if known not in self._functions:
                    self._functions[known] = self._compile(name, tf.nest.map_structure(any_batch, arguments))
        return self._functions[known]

    def _compile(self, name: str, signature: TensorSpecs) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(self._derive(signature[0]), name)
        if name in _WITH_LOSSES:
            method = functools.partial(_with_bounds, method)
        with exact_moments() if name in _SECOND_DERIVATIVES else contextlib.nullcontext():
            # The concrete function: a tf.function that is called with a wrong shape never releases its lock.
            try:
                # As Keras traces a model in fit. To rewrite the source of all that is called takes most of the time of tracing.
                return tf.function(method, input_signature=signature, autograph=False).get_concrete_function()
            except (TypeError, ValueError):  # a loss of the user's own may have a Python `if` on a tensor, which AutoGraph rewrites
                return tf.function(method, input_signature=signature).get_concrete_function()

    def _derive(self, specs: TensorSpecs) -> LinearHeadDerivatives | AutodiffDerivatives:
        """The derivatives, made once: the network is traced on inputs of `specs` to see how it ends."""
        if self._derivatives is None:
            heads = Heads.find(self._model, specs)
            loss = ExampleLoss(self._training_loss, heads, tuple(getattr(self._model, "output_names", None) or ()))
            if is_linear_head(self._model, self._variables, heads):
                self._derivatives = LinearHeadDerivatives(self._model, loss)
            else:
                self._derivatives = AutodiffDerivatives(self._model, loss, self._variables)
        return self._derivatives

    def _discover(self, inputs: Inputs | None) -> Layout:
        declared = declared_examples(self._model)
        examples = declared if declared is not None else inputs
        if examples is None:
            raise ValueError(_NO_EXAMPLE_YET)
        examples = feed(self._model, examples, self._dtype)
        return self._derive(tf.nest.map_structure(any_batch, examples)).discover(examples)


def _with_bounds(method: Callable[..., Any], *arguments: Any) -> Any:
    losses, blocks, *others = method(*arguments)
    return tf.stack([tf.cast(losses, tf.float64), bounds_of(*blocks)]), blocks, *others
