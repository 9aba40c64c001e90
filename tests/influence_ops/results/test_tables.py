"""Columns of vectors: in chunks, since a list's place in its column is a number of 32 bits."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.results.tables import vector_column, vectors_table


@pytest.mark.parametrize(("most", "chunks"), [(2**31 - 1, 1), (14, 4), (7, 7), (13, 7)])
def test_a_long_column_is_in_chunks(most: int, chunks: int) -> None:
    vectors = np.arange(49.0).reshape(7, 7)
    column = vector_column(vectors, most)
    assert column.num_chunks == chunks and column.to_pylist() == vectors.tolist()
    assert pa.table({"vector": column}).to_pydict()["vector"] == vectors.tolist()


def test_no_rows_and_rows_that_are_too_long() -> None:
    assert vectors_table(np.array([], dtype=object), np.zeros((0, 3))).schema == schemas.INFLUENCE_VECTORS
    with pytest.raises(ValueError, match="a vector of 8 numbers is longer than the 7"):
        vector_column(np.zeros((2, 8)), 7)
    # A broadcast of zeros takes no memory: 2^31 numbers in two rows of 2^30 would have overflowed silently.
    places = np.arange(3, dtype=np.int32) * 2**30
    assert places[-1] < 0
