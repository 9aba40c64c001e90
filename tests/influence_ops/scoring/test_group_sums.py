"""Group sums against a loop, in every order of arrival, split and merge."""

from __future__ import annotations

import numpy as np
import pytest

from beam_influence.influence_ops.scoring.group_sums import GroupSums


def brute_force(scores: np.ndarray, groups: np.ndarray) -> dict[str, tuple[list[float], int]]:
    found = {}
    for name in set(groups.tolist()):
        mask = groups == name
        found[name] = (scores[:, mask].sum(axis=1).tolist(), int(mask.sum()))
    return found


def content(sums: GroupSums) -> dict[str, tuple[list[float], int]]:
    return {name: (total.tolist(), int(count)) for name, total, count in zip(sums.names, sums.sums, sums.counts, strict=True)}


@pytest.mark.parametrize("seed", range(30))
def test_equals_a_loop_however_it_is_split(seed):
    random = np.random.default_rng(seed)
    queries, count = int(random.integers(1, 5)), int(random.integers(1, 60))
    # Whole numbers: their sums are exact, so any order must give the same bits.
    scores = random.integers(-1000, 1000, (queries, count)).astype(np.float64)
    groups = np.array([f"group {number}" for number in random.integers(0, 9, count)], dtype=object)
    arrival = random.permutation(count)
    parts = [GroupSums(queries)]
    for piece in np.split(arrival, np.sort(random.integers(0, count + 1, random.integers(0, 8)))):
        if random.random() < 0.5:
            parts.append(GroupSums(queries))
        parts[-1].add(scores[:, piece], groups[piece])
    while len(parts) > 1:
        other = parts.pop(random.integers(len(parts)))
        parts[random.integers(len(parts))].merge(other)
    assert content(parts[0]) == brute_force(scores, groups)


def test_merging_leaves_the_other_as_it_was():
    a, b = GroupSums(2), GroupSums(2)
    b.add(np.ones((2, 3)), np.array(["x", "x", "y"], dtype=object))
    a.merge(b)
    a.add(np.ones((2, 1)), np.array(["x"], dtype=object))
    assert content(b) == {"x": ([2.0, 2.0], 2), "y": ([1.0, 1.0], 1)}
    assert content(a) == {"x": ([3.0, 3.0], 3), "y": ([1.0, 1.0], 1)}


def test_no_examples():
    sums = GroupSums(2)
    sums.add(np.empty((2, 0)), np.empty(0, dtype=object))
    sums.merge(GroupSums(2))
    assert content(sums) == {}
