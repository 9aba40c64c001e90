"""Which of a network's watched weights have factored gradients: by the rules, and checked against the tape."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.model.gradients.blocks import Block, BlockLayout, Layout, Materialised, Piece, count_of, materialise
from beam_influence.influence_ops.model.gradients.cover import WHOLE, Cover
from beam_influence.influence_ops.model.gradients.layer_rules import cover
from beam_influence.influence_ops.model.gradients.layers import all_layers
from beam_influence.influence_ops.model.gradients.recorded import Call, recorded
from beam_influence.influence_ops.model.regularizer import constant_second_derivative
from beam_influence.influence_ops.types import Tensors

_EXAMPLES = 3
_ROUNDING = 1e4
_NARROW = 0.2  # the most that a rule may be off in 16 bits; a wrong one is off by more
_BFLOAT16 = 2.0**-7  # its rounding, which NumPy does not know
_SMALL = 1e-3
_UNKNOWN_LENGTH = 8  # stands for a dimension that the model leaves open


class GradientPlan:
    """How each block of a network's gradient is computed.

    Attributes:
      layout: the blocks.
      layers: the layers whose calls must be recorded.
      covers: for each block, its layer and rule; None: the block's variable is materialised by automatic differentiation.
      rest: the variables of those, in order.
    """

    def __init__(self, layout: Layout, covers: list[tuple[keras.layers.Layer, Cover] | None], rest: list[keras.Variable]):
        self.layout = layout
        self.covers = covers
        self.rest = rest
        self.layers = list({id(found[0]): found[0] for found in covers if found is not None}.values())

    def blocks(self, calls: list[Call], errors: list[tf.Tensor], rest: list[tf.Tensor]) -> tuple[Block, ...]:
        """The blocks, from the recorded calls, the loss's derivative by each one's output, and [B, n] of each of `rest`."""
        others = iter(rest)
        found: list[Block] = []
        for layout, known in zip(self.layout.blocks, self.covers, strict=True):
            if known is None:
                values = next(others)
                found.append(Materialised(tf.reshape(values, [tf.shape(values)[0], layout.rows, layout.columns])))
            else:
                layer, rule = known
                uses = [rule.block(call.inputs, error) for call, error in zip(calls, errors, strict=True) if call.layer is layer]
                found.append(as_one_block(uses))
        return tuple(found)


def as_one_block(uses: list[Block]) -> Block:
    """A layer that is called several times has the positions of all calls."""
    if len(uses) == 1:
        return uses[0]
    if isinstance(uses[0], Materialised):
        return Materialised(tf.add_n([use[0] for use in uses]))
    return uses[0]._make(tf.concat(parts, axis=1) for parts in zip(*uses, strict=True))


def discover(model: Any, variables: list[keras.Variable], outputs: Callable[[Tensors], tf.Tensor], inputs: Tensors) -> GradientPlan:
    """The plan for `variables`, tried on made-up examples: a block whose sum is not the tape's gradient falls back.

    A weight may be used outside its layer (a tied embedding), and a layer in a way that no rule foresees. Kernel and bias are one block
    only where their regularisers have the same second derivative.

    Args:
      model: the network.
      variables: the watched ones, in the order of θ.
      outputs: inputs -> what is differentiated, [B, C].
      inputs: examples in the model's structure; only shapes and types of floating tensors are used.
    """
    starts = dict(zip(map(id, variables), np.cumsum([0, *(int(tf.size(v.value)) for v in variables)]).tolist(), strict=False))
    candidates: list[tuple[keras.layers.Layer, Cover]] = []
    for layer in all_layers(model):
        candidates += [(layer, found) for found in cover(layer, lambda variable: id(variable) in starts, _equal_penalties)]
    trusted = _trusted(candidates, variables, outputs, made_up_examples(inputs)) if candidates else []
    blocks: list[tuple[int, BlockLayout, tuple[keras.layers.Layer, Cover] | None]] = []
    covered: set[int] = set()
    for layer, rule in trusted:
        pieces = []
        for variable, axes, first_row, rows in rule.variables:
            pieces.append(Piece(starts[id(variable)], tuple(int(size) for size in variable.shape), axes, first_row, rows))
            covered.add(id(variable))
        name = " + ".join(variable.path for variable, *_ in rule.variables)
        layout = BlockLayout(name, rule.kind, rule.rows, rule.columns, tuple(pieces))
        blocks.append((min(piece.start for piece in pieces), layout, (layer, rule)))
    rest = [variable for variable in variables if id(variable) not in covered]
    for variable in rest:
        shape = tuple(int(size) for size in variable.shape)
        size = int(np.prod(shape))
        rows = size // shape[-1] if size > WHOLE else 1
        piece = Piece(starts[id(variable)], shape, tuple(range(len(shape))), 0, rows)
        blocks.append((piece.start, BlockLayout(variable.path, "materialised", rows, size // rows, (piece,)), None))
    blocks.sort(key=lambda block: block[0])
    size = sum(layout.size for _, layout, _ in blocks)
    return GradientPlan(Layout(tuple(layout for _, layout, _ in blocks), size), [known for _, _, known in blocks], rest)


def _equal_penalties(one: keras.Variable, other: keras.Variable) -> bool:
    """Whether both have the same, constant second derivative of their regulariser."""
    found = constant_second_derivative(one)
    return found is not None and found == constant_second_derivative(other)


def _trusted(
    candidates: list[tuple[keras.layers.Layer, Cover]],
    variables: list[keras.Variable],
    outputs: Callable[[Tensors], tf.Tensor],
    inputs: Tensors,
) -> list[tuple[keras.layers.Layer, Cover]]:
    """The candidates whose blocks are the tape's gradients of a random function of the outputs: the first example's, and the sum's.

    The first alone as well: a layer that is called on what is no batch (a table of positions) has one gradient for all examples.
    """
    layers = list({id(layer): layer for layer, _ in candidates}.values())
    try:
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            for variable in variables:
                tape.watch(variable.value)
            with recorded(layers, tape) as calls:
                found = outputs(inputs)
            directions = tf.constant(np.random.default_rng(0).standard_normal(found.numpy().shape), dtype=found.dtype)
            total, of_first = tf.reduce_sum(directions * found), tf.reduce_sum(directions[0] * found[0])
        sources = [call.outputs for call in calls]
        errors = cast(list[tf.Tensor], tape.gradient(total, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO))
        values = [variable.value for variable in variables]
        found_gradients = [
            cast(Any, tape.gradient(of, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)) for of in (total, of_first)
        ]
    except Exception as error:
        logging.getLogger(__name__).warning(
            "the layers can't be tried on made-up examples (%s); gradients are materialised", str(error).splitlines()[0]
        )
        return []
    dense = [[_flat(gradient) for gradient in of_each] for of_each in found_gradients]
    scale = max(float(np.abs(gradient).max()) for gradient in dense[0])
    by_variable = {id(variable): gradients for variable, *gradients in zip(variables, *dense, strict=True)}
    trusted = []
    for layer, rule in candidates:
        try:
            uses = [rule.block(call.inputs, g) for call, g in zip(calls, errors, strict=True) if call.layer is layer]
            if uses and all(count_of(use) == _EXAMPLES for use in uses) and _agrees(rule, as_one_block(uses), by_variable, scale):
                trusted.append((layer, rule))
        except Exception as error:
            logging.getLogger(__name__).info("layer %s is used in a way that no rule knows: %s", layer.name, str(error).splitlines()[0])
    return trusted


def _flat(gradient: Any) -> np.ndarray:
    return np.asarray(tf.convert_to_tensor(gradient), dtype=np.float64).ravel()  # a lookup's is sparse


def _agrees(rule: Cover, block: Block, expected: dict[int, list[np.ndarray]], scale: float) -> bool:
    pieces = []
    for variable, axes, first_row, rows in rule.variables:
        pieces.append(Piece(0, tuple(int(size) for size in variable.shape), axes, first_row, rows))
    layout = BlockLayout("", rule.kind, rule.rows, rule.columns, tuple(pieces))
    found = [piece for _, piece in layout.flat_pieces(materialise(layout, block))]
    wanted = [expected[id(variable)] for variable, *_ in rule.variables]
    # Rounding is relative to the terms of a sum. Some gradients are zero but for it (a bias of attention's keys).
    own = max(float(np.abs(gradient).max()) for gradient, _ in wanted)
    rounding = _BFLOAT16 if found[0].dtype == tf.bfloat16 else float(np.finfo(found[0].numpy().dtype).eps)
    tolerance = min(_ROUNDING * rounding, _NARROW) * max(own, _SMALL * scale)
    pairs = [(pair, (tf.reduce_sum(piece, axis=0).numpy(), piece[0].numpy())) for piece, pair in zip(found, wanted, strict=True)]
    return all(np.allclose(a, b, rtol=0, atol=tolerance) for pair, made in pairs for a, b in zip(made, pair, strict=True))


def made_up_examples(inputs: Tensors) -> Tensors:
    """Examples of the same shapes: seeded normal numbers; integers and strings as they are."""
    rng = np.random.default_rng(1)

    def one(tensor: Any) -> tf.Tensor:
        tensor = tf.convert_to_tensor(tensor)
        if not tensor.dtype.is_floating:
            return tf.repeat(tensor[:1], _EXAMPLES, axis=0)
        return tf.constant(rng.standard_normal((_EXAMPLES, *tensor.shape[1:])), dtype=tensor.dtype)

    return tf.nest.map_structure(one, inputs)


def declared_examples(model: Any) -> Tensors | None:
    """An example for a model that declares its inputs: ones in the shapes and types it takes; None where it declares none."""
    if not getattr(model, "inputs", None):
        return None

    def ones(tensor: Any) -> Any:
        shape = [1, *(_UNKNOWN_LENGTH if size is None else size for size in tensor.shape[1:])]
        # Ones: id 0 is often a mask.
        return tf.constant("", shape=shape) if tensor.dtype == "string" else tf.ones(shape, tensor.dtype)

    structure = model.inputs[0] if len(model.inputs) == 1 else {tensor.name: tensor for tensor in model.inputs}
    return tf.nest.map_structure(ones, structure)
