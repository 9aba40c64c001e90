"""Query blocks are a side input: what they hold inline is bounded in all, however many test points there are."""

from __future__ import annotations

import pathlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from beam_influence.influence_ops.curvature import FinishOptions, fit
from beam_influence.influence_ops.curvature.identity import Identity
from beam_influence.influence_ops.scoring.query_block import QueryBlock
from beam_influence.influence_ops.scoring.stored_form import StoredForm
from beam_influence.transforms.broadcast import INLINE_LIMIT
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.embed_queries import _EmbedDoFn, open_queries
from tests.influence_ops.curvature.test_kronecker import data, make


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
        shard = Shard("test", 0, "f", "f", 0, part=part, parts=2)
        embed.begin_shard(shard)
        embed._blocks = [block(2000, 1000)]
        found: list[Any] = [*embed.end_shard(shard)]
        total += sum(reference.broadcast.inline_bytes for reference in found)
        references += found
    assert total <= 1.01 * INLINE_LIMIT
    keys, blocks = open_queries(references)
    assert len(set(keys)) == 40 and keys[0] == "00000-00000-00000" and sum(len(one.ids) for one in blocks) == 4000


def test_nothing_is_kept_of_what_is_not_needed() -> None:
    """Neither as an array nor behind a view of it: what is held are the factors' own bytes, and ids."""
    model = make("dense")
    batch = data(model, "dense")
    operator = fit(model, Identity(), lambda: [batch], FinishOptions("auto")).bind(model)
    kept: list[QueryBlock] = []
    for form in (StoredForm("float32", 1), StoredForm("float32")):
        unused: Any = None
        embed: Any = _EmbedDoFn(unused, unused, 100, "", False, 0, ("solved",), form)
        embed._embedder = SimpleNamespace(model=model, preconditioner=operator)
        embed.use(batch)
        kept += embed._blocks
    for one in kept:
        arrays = [one.gradients, one.solved, *(array for part in (one.factored.parts if one.factored else ()) for array in part)]
        for array in arrays:
            assert array.base is None or array.base.nbytes == array.nbytes
            assert not array.size or array.dtype == np.float32
    assert not kept[0].solved.size and not kept[1].gradients.size and kept[1].solved.shape == (len(batch), model.size)


def test_a_block_is_written_as_soon_as_it_is_full(tmp_path: pathlib.Path) -> None:
    """A file of 1,000 test points in batches of 30: never more than a block and a batch of them are held."""
    unused: Any = None
    embed: Any = _EmbedDoFn(unused, unused, 100, str(tmp_path), False, 0, ("gradients",))
    whole, shard = block(1000, 3), Shard("test", 4, "f", "f", 0)
    batches = [slice(first, first + 30) for first in range(0, 1000, 30)]
    parts = iter([QueryBlock(whole.ids[rows], whole.gradients[rows], whole.solved[rows, :0]) for rows in batches])
    embed._embed = lambda *_: (next(parts), [])
    embed._embedder = SimpleNamespace(model=None, preconditioner=None)
    embed.begin_shard(shard)
    for number in range(len(batches)):
        embed.use(unused)
        assert sum(map(len, embed._blocks)) < 100
        assert len(list((tmp_path / "queries").glob("*/meta.json"))) == min(30 * (number + 1), 1000) // 100
    keys, blocks = open_queries([*embed.end_shard(shard)])
    assert keys == [f"00004-{number:05d}" for number in range(10)] and [len(one) for one in blocks] == [100] * 10
    assert np.array_equal(np.concatenate([one.gradients for one in blocks]), whole.gradients)
    assert all(one.solved.shape == (100, 0) for one in blocks)
