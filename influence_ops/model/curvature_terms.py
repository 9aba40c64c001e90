"""The second derivatives of a final Dense layer as terms that are summed for many examples at a time.

Its outputs are linear in its weights, so an example's Hessian, and its Gauss–Newton matrix, is H_out,i ⊗ a_i a_iᵀ: D + C² numbers in place
of (D·C)². A sum over few examples is mostly the writing of its (D·C)² numbers; over some thousand, products of large matrices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.any_batch import CompiledForAnyBatch
from beam_influence.influence_ops.types import Float64Matrix

_AT_ONCE = 4096  # numbers of an example that are multiplied at once


@dataclasses.dataclass(frozen=True, eq=False)
class CurvatureTerms:
    """B examples' terms, on the device.

    Attributes:
      ids: (B,) of the examples.
      features: a_i, the layer's inputs, and 1 where it has a bias: [B, D].
      hessians: w_i H_out,i, the loss's second derivatives by the outputs: [B, C, C].
    """

    ids: np.ndarray
    features: tf.Tensor
    hessians: tf.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> int:
        """P, the weights."""
        return self._features * self._outputs

    @property
    def numbers(self) -> int:
        """How many numbers are held."""
        return len(self) * (self._features + self._outputs**2)

    @property
    def _features(self) -> int:
        return int(self.features.shape[1] or 0)

    @property
    def _outputs(self) -> int:
        return int(self.hessians.shape[1] or 0)

    def select(self, keep: np.ndarray) -> CurvatureTerms:
        """Those at `keep`, an index array."""
        return CurvatureTerms(self.ids[keep], tf.gather(self.features, keep), tf.gather(self.hessians, keep))

    @staticmethod
    def joined(parts: Sequence[CurvatureTerms]) -> CurvatureTerms:
        """Those of all parts."""
        tensors = ([part.features for part in parts], [part.hessians for part in parts])
        return CurvatureTerms(np.concatenate([part.ids for part in parts]), *(tf.concat(each, axis=0) for each in tensors))

    def sum_rows(self, rows: slice) -> Float64Matrix:
        """Rows of Σ_i w_i H_out,i ⊗ a_i a_iᵀ, from the diagonal on: [R, P − rows.start]."""
        span = tf.constant([rows.start, rows.stop], tf.int32)
        return _compiled_sum(self.features, self.hessians, constants=span).numpy()


def sum_of_terms(features: tf.Tensor, hessians: tf.Tensor, span: tf.Tensor) -> tf.Tensor:
    """Σ_i H_i ⊗ a_i a_iᵀ of a [B, D] and H [B, C, C], the rows from span[0] to span[1], from column span[0] on: [R, P − span[0]].

    By products of [D', B] with [B, D''], of the features that these rows and columns are of, one for each pair of outputs c ≤ c', some
    pairs at a time: that of (c', c) is the same.
    """
    width, outputs = features.shape[1], hessians.shape[1]
    assert width is not None and outputs is not None  # only B is unknown
    first, last = span[0] // outputs, (span[1] + outputs - 1) // outputs
    above, beside = features[:, first:last], features[:, first:]
    lower, upper = np.triu_indices(outputs)
    pairs = tf.gather(tf.reshape(hessians, [-1, outputs**2]), lower * outputs + upper, axis=1)
    at_once = max(1, _AT_ONCE // width)
    if len(lower) <= at_once:
        products = _weighted_products(above, pairs, beside)
    else:
        padded = tf.pad(pairs, [[0, 0], [0, -len(lower) % at_once]])

        def of_some(start: tf.Tensor) -> tf.Tensor:
            return _weighted_products(above, padded[:, start : start + at_once], beside)

        parts = tf.map_fn(of_some, tf.range(0, len(lower), at_once), fn_output_signature=features.dtype, parallel_iterations=1)
        products = tf.reshape(parts, [-1, tf.shape(above)[1], tf.shape(beside)[1]])
    places = np.zeros((outputs, outputs), np.int32)
    places[lower, upper] = places[upper, lower] = np.arange(len(lower))
    whole = tf.reshape(tf.transpose(tf.gather(products, places), [2, 0, 3, 1]), [(last - first) * outputs, -1])
    skipped = span[0] - first * outputs
    return whole[skipped : skipped + span[1] - span[0], skipped:]


def _weighted_products(above: tf.Tensor, weights: tf.Tensor, beside: tf.Tensor) -> tf.Tensor:
    """Σ_i w_i ⊗ a_i ⊗ b_i of w [B, K], a [B, D'] and b [B, D'']: [K, D', D'']."""
    shape = tf.shape(weights)[1], tf.shape(above)[1], tf.shape(beside)[1]
    weighted = tf.reshape(weights[:, :, None] * above[:, None, :], [-1, shape[0] * shape[1]])
    return tf.reshape(tf.matmul(weighted, beside, transpose_a=True), shape)


_compiled_sum = CompiledForAnyBatch(lambda span, features, hessians: sum_of_terms(features, hessians, span))
