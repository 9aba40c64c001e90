"""How many threads NumPy's linear algebra takes.

OpenBLAS's threads wait for each other in a loop, hundreds of times in one decomposition. Where other processes, or TensorFlow, have the
cores, that loop runs until the system takes the core from it: with two threads on two busy cores the eigenvectors of a 384 × 384 matrix
took 1.2 s, with one thread 0.015 s.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

import numpy as np
from threadpoolctl import ThreadpoolController

ONE_THREAD_UP_TO = 2048
"""Rows and columns of a matrix that one thread decomposes or multiplies about as fast as several."""

_lock = threading.Lock()
_inside = 0
_put_back: list[Callable[[], None]] = []


@contextlib.contextmanager
def threads_for(rows: int) -> Iterator[None]:
    """A context for matrices of so many rows: one thread up to `ONE_THREAD_UP_TO`, above it as many as NumPy takes.

    The number is the process's; it is put back when the last of the threads in such a context leaves it.
    """
    global _inside
    if rows > ONE_THREAD_UP_TO:
        yield
        return
    with _lock:
        if not _inside:
            _put_back.append(_libraries().limit(limits=1, user_api="blas").restore_original_limits)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _put_back.pop()()


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues [d], ascending, and eigenvectors [d, d], as columns, of a symmetric matrix [d, d]."""
    with threads_for(len(matrix)):
        values, vectors = np.linalg.eigh(matrix)
    return values, vectors


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # goes through all libraries that the process has loaded
