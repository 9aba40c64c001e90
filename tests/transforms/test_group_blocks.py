"""Sums over groups in blocks are those of plain sums, however bundles, blocks and files cut them, by value and by path."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from beam_influence.influence_ops.scoring.group_sums import GroupSums
from beam_influence.transforms import group_blocks
from beam_influence.transforms.group_blocks import merge_groups, open_groups, send_groups

WIDTHS = {"00000-00000": 3, "gradients": 5}
NAMES = [*(f"group {number}" for number in range(40)), "", "a", "a!", "a\0", "ä", "日本", "x" * 300]


@pytest.mark.parametrize("most", [1, 8 * 8 * 4, 1 << 20])
@pytest.mark.parametrize("by_path", [False, True])
def test_blocks_add_up_to_the_plain_sums(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, most: int, by_path: bool) -> None:
    if by_path:
        monkeypatch.setattr(group_blocks, "INLINE_LIMIT", 0)
        monkeypatch.setattr(group_blocks, "FILE_BYTES", 3 * 8 * 8)  # three groups
    random = np.random.default_rng(0)
    wanted: dict[str, tuple[np.ndarray, int]] = {}
    sent = []
    for bundle in range(5):
        parts = {key: GroupSums(width) for key, width in WIDTHS.items()}
        for _ in range(bundle):  # the first has none
            rows = random.integers(-99, 99, (20, 8)).astype(np.float64)  # whole numbers: any order of the sums gives the same bits
            names = random.choice(np.array(NAMES, dtype=object), 20)
            parts["00000-00000"].add(rows[:, :3].T, names)
            parts["gradients"].add(rows[:, 3:].T, names)
            for name, row in zip(names.tolist(), rows, strict=True):
                total, count = wanted.get(name, (np.zeros(8), 0))
                wanted[name] = total + row, count + 1
        sent += send_groups("group_influence", parts, str(tmp_path))
    assert all(block.saved.folder is None or by_path for _, block in sent)
    assert max(block.size for _, block in sent) <= (3 * 8 * 8 if by_path else 1 << 20)
    merged = []
    for bucket in sorted({bucket for bucket, _ in sent}):
        merged += merge_groups([block for each, block in sent if each == bucket], str(tmp_path), most)
    assert max(block.size for block in merged) <= max(most, 8 * 8)
    names = [name for block in merged for name in open_groups([block], {})["gradients"].names]
    assert len(names) == len(set(names))  # each group is in one block
    opened = open_groups(merged, {"00000-00000": GroupSums(3), "00000-00001": GroupSums(7)})
    assert opened.pop("00000-00001").names == []
    (sums, counts), (gradients, _) = (opened[key].of(list(wanted)) for key in WIDTHS)
    assert np.array_equal(np.concatenate([sums, gradients], axis=1), [total for total, _ in wanted.values()])
    assert counts.tolist() == [count for _, count in wanted.values()] and sorted(names) == sorted(wanted)
