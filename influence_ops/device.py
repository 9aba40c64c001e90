"""TensorFlow's process-wide settings, made once before its first op."""

from __future__ import annotations

import functools
import os

# Workers log thousands of lines otherwise; a user's own setting wins.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf


@functools.cache
def configure_tensorflow(threads: int = 0) -> str:
    """Sets memory growth on every GPU and the number of CPU threads, and names the device in use.

    Args:
      threads: threads of one op on the CPU; 0 leaves TensorFlow's choice (all cores).

    Returns:
      `GPU:n` or `CPU`. A runtime that is already initialised is left as it is.
    """
    gpus = tf.config.list_physical_devices("GPU")
    try:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if threads:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError:  # initialised before: its settings can't be changed any more
        pass
    return f"GPU:{len(gpus)}" if gpus else "CPU"
