"""Products of matrices that TensorFlow computes wrong: of float32 [N, 1, R, K] with one [K, C] for all N, on a CPU with oneDNN.

Seen in TensorFlow 2.21 on x86: numbers far off, or the end of the process (`malloc(): invalid size`). A layer that multiplies [R, K] with
its weights, such as an attention's projections, gives just this product when it is vectorised over examples that are batches of one.
"""

from __future__ import annotations

import logging
import os

import tensorflow as tf

_LOG = logging.getLogger(__name__)
_TEXT = (
    "vectorised over examples, matrices of this model would be multiplied wrong by oneDNN; using a loop, which is much slower. With the "
    "environment variable TF_ENABLE_ONEDNN_OPTS=0, of the workers too, it is vectorised"
)
_PRODUCTS = ("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")


class WrongProductError(Exception):
    """A graph has a product that may be wrong on this machine."""


def refuse_wrong_products(graph: tf.Graph) -> None:
    """Looks for such a product, and tells what to do about it.

    Raises:
      WrongProductError: there is one.
    """
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0" or tf.config.get_visible_devices("GPU"):
        return
    for operation in graph.get_operations():
        if operation.type in _PRODUCTS and _may_be_wrong(*operation.inputs):
            _LOG.warning(_TEXT)
            raise WrongProductError(operation.name)


def _may_be_wrong(left: tf.Tensor, right: tf.Tensor) -> bool:
    if left.dtype == tf.float64 or left.shape.rank is None or left.shape.rank < 4:
        return False
    batch, other = left.shape[:-2].as_list(), [] if right.shape.rank is None else right.shape[:-2].as_list()
    return batch[-1] in (1, None) and batch != other
