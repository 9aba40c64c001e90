"""One thread for small matrices, and afterwards as many as before."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from beam_influence.influence_ops.blas_threads import ONE_THREAD_UP_TO, eigh, threads_for


def blas_threads() -> list[int]:
    """Of each library of linear algebra in this process."""
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_small_matrices_have_one_thread_and_afterwards_there_are_as_many_as_before():
    before = blas_threads()
    with threads_for(ONE_THREAD_UP_TO):
        assert set(blas_threads()) == {1}
        with pytest.raises(np.linalg.LinAlgError), threads_for(2):
            raise np.linalg.LinAlgError
        assert set(blas_threads()) == {1}  # the outer one goes on
    assert blas_threads() == before
    with threads_for(ONE_THREAD_UP_TO + 1):
        assert blas_threads() == before


def test_the_last_of_several_threads_puts_the_number_back():
    before, all_inside = blas_threads(), Barrier(8)

    def one(number: int) -> np.ndarray:
        with threads_for(number + 1):
            all_inside.wait(timeout=60)
            return eigh(np.diag(np.arange(number + 1.0)))[0]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(8)))
    assert blas_threads() == before
    assert [values.tolist() for values in found] == [list(range(number + 1)) for number in range(8)]
