"""TensorFlow's process-wide settings, made once before its first op."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# Workers log thousands of lines otherwise; a user's own setting wins.
_IS_QUIET = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") not in ("0", "1")

# Written by libraries while they are loaded, before they look at the level.
_NOISE = rb"WARNING: All log messages before absl::InitializeLog\(\)|[IW]\d{4} \d"
if not glob.glob("/dev/nvidia*") and not os.path.exists("/dev/dxg"):
    _NOISE += rb"|E\d{4} .*cuInit"  # without a GPU this is no error


@contextlib.contextmanager
def _without_start_up_noise() -> Iterator[None]:
    """Holds back what native code writes to standard error in the block; then gives all but information and warnings."""
    try:
        original = os.dup(2)
    except OSError:  # the process has no standard error
        yield
        return
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            held.seek(0)
            os.write(2, b"".join(line for line in held if not re.match(_NOISE, line)))


with _without_start_up_noise() if _IS_QUIET else contextlib.nullcontext():
    import tensorflow as tf
    import tfx_bsl.coders.example_coder  # noqa: F401  (carries a TensorFlow of its own)


@functools.cache
def configure_tensorflow(threads: int = 0) -> str:
    """Sets memory growth on every GPU and the number of CPU threads, and names the device in use.

    Args:
      threads: threads of one op on the CPU; 0 leaves TensorFlow's choice (all cores).

    Returns:
      `GPU:n` or `CPU`. A runtime that is already initialised is left as it is.
    """
    with _without_start_up_noise() if _IS_QUIET else contextlib.nullcontext():
        gpus = tf.config.list_physical_devices("GPU")
    try:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if threads:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError:  # initialised before: its settings can't be changed any more
        pass
    return f"GPU:{len(gpus)}" if gpus else "CPU"
