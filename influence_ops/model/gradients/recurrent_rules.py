"""Rules of recurrent layers: a cell is a layer that is used at every step.

While a network is recorded, the layer's loop runs the cell's equations with a term ε_t = 0 added to its products at step t. The loss's
derivative by ε is the errors g; with them go what multiplied the kernels, the step's inputs x_t and the state before it h_{t−1}.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras.src import backend  # not exported: the loop that keras.layers.RNN runs
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell  # nor is this cell

from beam_influence.influence_ops.model.gradients.blocks import Block, Factored
from beam_influence.influence_ops.model.gradients.convolution_rules import Window, flat_patches, window_of
from beam_influence.influence_ops.model.gradients.cover import WHOLE, Cover, Joined, Watched, materialised, sizes, summed, with_one

ops: Any = keras.ops  # its functions are typed for every backend of Keras
_UNBOUNDED = 2**31 - 1


class Steps(NamedTuple):
    """What a recurrent layer's kernels were multiplied with in one call.

    Attributes:
      inputs: x [B, T, ...].
      seen: what multiplied the recurrent kernel, of the same T.
    """

    inputs: tf.Tensor
    seen: tf.Tensor


Step = Callable[[Any, tf.Tensor, tf.Tensor, list[tf.Tensor]], tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]]
"""(cell, x, ε, states) -> its output, its states, what multiplied the recurrent kernel."""


@dataclasses.dataclass(frozen=True)
class _Cell:
    """A kind of cell: its step, how many times its units ε has, and its rule."""

    step: Step
    errors: Callable[[Any], int]
    rule: Callable[[Any, Watched, Joined], list[Cover]]


def known_cell(layer: Any) -> bool:
    """Whether a recurrent layer's steps can be recorded."""
    cell = getattr(layer, "cell", None)
    return isinstance(layer, keras.layers.RNN) and type(cell) in _CELLS and getattr(cell, "data_format", "channels_last") == "channels_last"


def recurrent(layer: Any, watched: Watched, joined: Joined) -> list[Cover]:
    """The rule of its cell."""
    return _CELLS[type(layer.cell)].rule(layer.cell, watched, joined) if known_cell(layer) else []


def recording_loop(layer: Any, keep: Callable[[Steps, tf.Tensor], None], watch: Callable[[tf.Tensor], None]) -> Callable[..., Any]:
    """In place of `layer.inner_loop`: the same, and `keep` gets the steps and ε, which is watched before it is used."""
    cell, kind = layer.cell, _CELLS[type(layer.cell)]

    @tf.autograph.experimental.do_not_convert
    def loop(sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        first = keras.tree.flatten(initial_state)
        mask = keras.tree.flatten(mask)[0] if mask is not None else None
        shape, width = tf.shape(first[0]), kind.errors(cell) * first[0].shape[-1]
        errors = tf.zeros(tf.concat([tf.shape(sequences)[:2], shape[1:-1], [width]], axis=0), sequences.dtype)
        errors.set_shape([None, sequences.shape[1], *first[0].shape[1:-1], width])
        watch(errors)

        def step(given: Any, states: Any) -> Any:
            x, error = given
            output, new, seen = kind.step(cell, x, error, list(keras.tree.flatten(states)))
            return ops.concatenate([output, seen], axis=-1), new

        found: Any = backend.rnn(
            step,
            (sequences, errors),
            list(first),
            go_backwards=layer.go_backwards,
            mask=mask,
            unroll=layer.unroll,
            input_length=sequences.shape[1] or _UNBOUNDED,
            zero_output_for_mask=layer.zero_output_for_mask,
            return_all_outputs=True,
        )
        last, outputs, states = found
        units = first[0].shape[-1]
        seen = outputs[..., units:]
        keep(Steps(sequences, tf.reverse(seen, [1]) if layer.go_backwards else seen), errors)
        return last[..., :units], outputs[..., :units], states

    return loop


def _lstm_step(cell: Any, x: tf.Tensor, error: tf.Tensor, states: list[tf.Tensor]) -> Any:
    h, c = states
    return _long_short(cell, ops.matmul(x, cell.kernel) + ops.matmul(h, cell.recurrent_kernel) + error, h, c)


def _conv_lstm_step(cell: Any, x: tf.Tensor, error: tf.Tensor, states: list[tf.Tensor]) -> Any:
    h, c = states
    convolved = cell.input_conv(x, cell.kernel, padding=cell.padding) + cell.recurrent_conv(h, cell.recurrent_kernel)
    return _long_short(cell, convolved + error, h, c)


def _long_short(cell: Any, products: Any, h: tf.Tensor, c: tf.Tensor) -> Any:
    if cell.use_bias:
        products = products + cell.bias
    i, f, g, o = ops.split(products, 4, axis=-1)
    c = cell.recurrent_activation(f) * c + cell.recurrent_activation(i) * cell.activation(g)
    output = cell.recurrent_activation(o) * cell.activation(c)
    return output, [output, c], h


def _simple_step(cell: Any, x: tf.Tensor, error: tf.Tensor, states: list[tf.Tensor]) -> Any:
    (h,) = states
    products = ops.matmul(x, cell.kernel) + ops.matmul(h, cell.recurrent_kernel) + error
    if cell.bias is not None:
        products = products + cell.bias
    output = cell.activation(products) if cell.activation is not None else products
    return output, [output], h


def _gru_step(cell: Any, x: tf.Tensor, error: tf.Tensor, states: list[tf.Tensor]) -> Any:
    (h,) = states
    units = 3 * cell.units
    of_inputs = ops.matmul(x, cell.kernel) + error[:, :units]
    if cell.use_bias:
        of_inputs = of_inputs + (cell.bias[0] if cell.reset_after else cell.bias)
    x_z, x_r, x_n = ops.split(of_inputs, 3, axis=-1)
    if cell.reset_after:
        of_state = ops.matmul(h, cell.recurrent_kernel) + error[:, units:]
        if cell.use_bias:
            of_state = of_state + cell.bias[1]
        h_z, h_r, h_n = ops.split(of_state, 3, axis=-1)
        z, r = cell.recurrent_activation(x_z + h_z), cell.recurrent_activation(x_r + h_r)
        new, seen = cell.activation(x_n + r * h_n), h
    else:
        h_z, h_r = ops.split(ops.matmul(h, cell.recurrent_kernel[:, : 2 * cell.units]), 2, axis=-1)
        z, r = cell.recurrent_activation(x_z + h_z), cell.recurrent_activation(x_r + h_r)
        new = cell.activation(x_n + ops.matmul(r * h, cell.recurrent_kernel[:, 2 * cell.units :]))
        seen = ops.concatenate([h, r * h], axis=-1)
    output = z * h + (1 - z) * new
    return output, [output], seen


def _additive(cell: Any, watched: Watched, joined: Joined) -> list[Cover]:
    """x_t W + h_{t−1} U + b, as one matrix of all three where it may be."""
    return _of_one_product(cell, operator.attrgetter("inputs"), operator.attrgetter("seen"), tf.identity, watched, joined)


def _conv_lstm_rule(cell: Any, watched: Watched, joined: Joined) -> list[Cover]:
    window = window_of(cell)
    recurrent_window = Window(window.size, (1,) * cell.rank, (1,) * cell.rank, "SAME")

    def seen_of(steps: tf.Tensor, window: Window) -> tf.Tensor:
        shape = tf.shape(steps)
        found = flat_patches(window, tf.reshape(steps, [-1, *tf.unstack(shape[2:-1]), steps.shape[-1]]))
        return tf.reshape(found, [shape[0], -1, found.shape[-1]])

    def flat(g: tf.Tensor) -> tf.Tensor:
        return tf.reshape(g, [tf.shape(g)[0], -1, g.shape[-1]])

    def inputs(steps: Steps) -> tf.Tensor:
        return seen_of(steps.inputs, window)

    def seen(steps: Steps) -> tf.Tensor:
        return seen_of(steps.seen, recurrent_window)

    return _of_one_product(cell, inputs, seen, flat, watched, joined)


def _of_one_product(
    cell: Any,
    inputs: Callable[[Steps], tf.Tensor],
    seen: Callable[[Steps], tf.Tensor],
    errors: Callable[[tf.Tensor], tf.Tensor],
    watched: Watched,
    joined: Joined,
) -> list[Cover]:
    kernel, again, bias = cell.kernel, cell.recurrent_kernel, cell.bias if cell.use_bias else None
    axes, columns = tuple(range(len(kernel.shape))), sizes(kernel)[-1]
    rows, more = (_size(variable) // columns for variable in (kernel, again))
    if watched(kernel) and watched(again) and joined(kernel, again) and (bias is None or (watched(bias) and joined(kernel, bias))):
        variables = ((kernel, axes, 0, rows), (again, axes, rows, more))

        def block(steps: Steps, g: tf.Tensor) -> Block:
            both = tf.concat([inputs(steps), seen(steps)], axis=2)
            return Factored(both if bias is None else with_one(both), errors(g))

        if bias is None:
            return [Cover(variables, "factored", rows + more, columns, block)]
        return [Cover((*variables, (bias, (0,), rows + more, 1)), "factored", rows + more + 1, columns, block)]
    covers = []
    if watched(kernel):
        covers.append(Cover(((kernel, axes, 0, rows),), "factored", rows, columns, lambda s, g: Factored(inputs(s), errors(g))))
    if watched(again):
        covers.append(Cover(((again, axes, 0, more),), "factored", more, columns, lambda s, g: Factored(seen(s), errors(g))))
    if watched(bias):
        covers.append(summed(bias, (0,), lambda s, g: errors(g)))
    return covers


def _size(variable: Any) -> int:
    size = 1
    for length in sizes(variable):
        size *= length
    return size


def _gru_rule(cell: Any, watched: Watched, joined: Joined) -> list[Cover]:
    """Two products, whose errors differ where the reset gate comes between them."""
    units, bias = cell.units, cell.bias if cell.use_bias else None

    def of_inputs(steps: Steps, g: tf.Tensor) -> Block:
        return Factored(steps.inputs, g[:, :, : 3 * units])

    def of_state(steps: Steps, g: tf.Tensor) -> Block:
        if cell.reset_after:
            return Factored(steps.seen, g[:, :, 3 * units :])
        # h multiplies the columns of the first two gates, r·h those of the third: two positions for each step.
        gates, new = g[:, :, : 2 * units], g[:, :, 2 * units :]
        spread = [tf.concat([gates, tf.zeros_like(new)], axis=2), tf.concat([tf.zeros_like(gates), new], axis=2)]
        return Factored(tf.concat([steps.seen[:, :, :units], steps.seen[:, :, units:]], axis=1), tf.concat(spread, axis=1))

    covers = []
    for kernel, block in ((cell.kernel, of_inputs), (cell.recurrent_kernel, of_state)):
        if watched(kernel):
            rows, columns = sizes(kernel)
            covers.append(Cover(((kernel, (0, 1), 0, rows),), "factored", rows, columns, block))
    if bias is not None and watched(bias) and _size(bias) <= WHOLE:
        return [*covers, summed(bias, tuple(range(len(bias.shape))), lambda s, g: g)]
    return [*covers, *(materialised(bias, lambda s, g: tf.reduce_sum(g, axis=1), watched))]


_CELLS: dict[type, _Cell] = {
    keras.layers.LSTMCell: _Cell(_lstm_step, lambda cell: 4, _additive),
    keras.layers.SimpleRNNCell: _Cell(_simple_step, lambda cell: 1, _additive),
    keras.layers.GRUCell: _Cell(_gru_step, lambda cell: 6 if cell.reset_after else 3, _gru_rule),
    ConvLSTMCell: _Cell(_conv_lstm_step, lambda cell: 4, _conv_lstm_rule),
}
