"""TensorFlow's process-wide settings, made once before its first op."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import glob
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

from beam_influence.influence_ops.garbage import without_collections

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


with without_collections(), _without_start_up_noise() if _IS_QUIET else contextlib.nullcontext():
    import tensorflow as tf
    import tfx_bsl.coders.example_coder  # noqa: F401  (carries a TensorFlow of its own)


_claim: IO[str] | None = None


@functools.cache
def configure_tensorflow(threads: int = 0) -> str:
    """Takes one free GPU, with memory growth, sets the number of CPU threads, and names the device in use.

    A process uses one GPU, and a GPU is used by one process of this package: the others on the machine take another one, or
    the CPU. TensorFloat-32 is switched off, since its products of float32 have only 10 bits; mixed precision is not switched on.

    Args:
      threads: threads of one op on the CPU; 0 leaves TensorFlow's choice (all cores).

    Returns:
      `GPU:n`, n its number among those that are visible, or `CPU`. A runtime that is already initialised is left as it is.
    """
    with _without_start_up_noise() if _IS_QUIET else contextlib.nullcontext():
        gpus = tf.config.list_physical_devices("GPU")
    tf.config.experimental.enable_tensor_float_32_execution(False)
    number = _claim_one(gpus)
    try:
        if gpus:
            tf.config.set_visible_devices([] if number is None else [gpus[number]], "GPU")
        if number is not None:
            tf.config.experimental.set_memory_growth(gpus[number], True)
        if threads:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError:  # initialised before: its settings can't be changed any more
        pass
    if gpus and number is None:
        logging.getLogger(__name__).warning("each GPU of this machine is used by another process: this one computes on the CPU")
    return "CPU" if number is None else f"GPU:{number}"


def count_gpus() -> int:
    """How many GPUs this process can see; it takes none."""
    with _without_start_up_noise() if _IS_QUIET else contextlib.nullcontext():
        return len(tf.config.list_physical_devices("GPU"))


def release_gpu() -> None:
    """Lets another process take this one's GPU; for a launcher whose workers are other processes of the same machine."""
    global _claim
    if _claim is not None:
        _claim.close()
    _claim = None


def _claim_one(gpus: Sequence[Any]) -> int | None:
    """The number of the first GPU that no other process has, which this one has from now on, until it ends."""
    global _claim
    for number in range(len(gpus)):
        # The same GPU has different numbers under different lists of visible ones.
        visible = re.sub(r"[^\w.-]", "_", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
        path = os.path.join(tempfile.gettempdir(), f"beam-influence-{os.getuid()}-{visible}-gpu-{number}.lock")
        file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        _claim = file
        return number
    return None
