"""Names for types that many signatures share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
"""Numbers in float64, in any shape."""
Float64Vector = npt.NDArray[np.float64]
"""[N] numbers in float64: of a vector in the space of weights, N = P."""
Float64Matrix = npt.NDArray[np.float64]
"""[N, M] numbers in float64, such as vectors [R, P] or a Hessian [P, P]."""

Tensors = Any
"""A tensor [B, ...], or a list, tuple or dictionary of such, as models take and give them; no type checker can follow `tf.nest`."""
TensorSpecs = Any
"""A `tf.TensorSpec`, or a structure of such."""
Loss = Any
"""A `keras.losses.Loss`, Keras's name of one, a function (labels, outputs) -> losses [B, ...], or a structure of these, one an output."""

ProcessBatch = Callable[[Tensors], tuple[Tensors, Tensors, Tensors | None]]
"""An element of a dataset -> (inputs, labels, weights or None), as Influenciae's `process_batch_for_loss_fn`."""
