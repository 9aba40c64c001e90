"""Query blocks are a side input: what they hold inline is bounded in all, however many test points there are."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from beam_influence.influence_ops.scoring.scores import QueryBlock
from beam_influence.transforms.broadcast import INLINE_LIMIT
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.embed_queries import _EmbedDoFn, open_queries


def block(rows: int, width: int) -> QueryBlock:
    numbers = np.arange(rows * width, dtype=np.float64).reshape(rows, width)
    return QueryBlock(np.array([f"t{row}" for row in range(rows)], dtype=object), numbers, -numbers, None)


@pytest.mark.parametrize("shards", [1, 3, 1000])
def test_the_sum_over_all_files_is_bounded(tmp_path: pathlib.Path, shards: int) -> None:
    """Each file has blocks of 1.6 MB, 32 MB together; with 1,000 files the share of each is less than one of them."""
    unused: Any = None
    limit = INLINE_LIMIT // shards
    embed = _EmbedDoFn(unused, unused, 100, str(tmp_path), False, limit)
    total = 0
    references: list[Any] = []
    for ordinal in range(min(shards, 3)):
        embed._blocks = [block(2000, 1000)]
        references = [*embed.end_shard(Shard("test", ordinal, "f", "f", 0))]
        inline = sum(reference.broadcast.inline_bytes for reference in references)
        assert inline <= 1.01 * limit and len(references) == 20
        total += inline
    assert total <= 1.01 * INLINE_LIMIT
    keys, blocks = open_queries(references)
    assert keys == sorted(keys) and np.array_equal(np.concatenate([one.gradients for one in blocks]), block(2000, 1000).gradients)


def test_the_parts_of_a_file_have_its_share_together(tmp_path: pathlib.Path) -> None:
    unused: Any = None
    embed = _EmbedDoFn(unused, unused, 100, str(tmp_path), False, INLINE_LIMIT)
    total, references = 0, []
    for part in (1, 0):
        embed._blocks = [block(2000, 1000)]
        found: list[Any] = [*embed.end_shard(Shard("test", 0, "f", "f", 0, part=part, parts=2))]
        total += sum(reference.broadcast.inline_bytes for reference in found)
        references += found
    assert total <= 1.01 * INLINE_LIMIT
    keys, blocks = open_queries(references)
    assert len(set(keys)) == 40 and keys[0] == "00000-00000-00000" and sum(len(one.ids) for one in blocks) == 4000
