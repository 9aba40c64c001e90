"""TensorFloat-32: products and convolutions of float32 from inputs with 10 bits after the point, in sums of float32, where a GPU has it."""

from __future__ import annotations

import tensorflow as tf

_LEAST_CAPABILITY = (8, 0)  # of the first GPUs with it (Ampere)
_allowed = False


def allow_tensor_float_32(allowed: bool) -> None:
    """Whether this process may use it from now on. It is one setting of the process, so each model sets it whenever it is called; one that
    may not use it changes nothing but what another model has set here."""
    global _allowed
    if allowed or _allowed:
        tf.config.experimental.enable_tensor_float_32_execution(allowed)
        _allowed = allowed


def has_tensor_float_32() -> bool:
    """Whether a GPU that this process uses has it."""
    details = map(tf.config.experimental.get_device_details, tf.config.get_visible_devices("GPU"))
    return any(tuple(found.get("compute_capability") or ()) >= _LEAST_CAPABILITY for found in details)
