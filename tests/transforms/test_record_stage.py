"""What a stage records for a run that starts again is bounded."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from beam_influence.influence_ops.reading.example_batch import Rejected
from beam_influence.transforms import finish_curvature
from beam_influence.transforms.broadcast import INLINE_PART_LIMIT, Broadcast
from beam_influence.transforms.elements import RejectedExample, StatisticPart
from beam_influence.transforms.record_stage import REJECTED_LIMIT, _RecordDoFn, read_record


@pytest.mark.parametrize("count", [REJECTED_LIMIT, REJECTED_LIMIT + 1])
def test_a_stage_that_rejected_very_many_is_made_again(tmp_path: pathlib.Path, count: int) -> None:
    result = Broadcast.publish({"a": np.arange(3.0)}, {"kind": "x"}, str(tmp_path / "unused"))
    taken = 0

    def rejected() -> Iterator[RejectedExample]:
        nonlocal taken
        for index in (*range(count), *range(count)):  # two passes over the data
            taken += 1
            yield RejectedExample.of("train", Rejected("f", index, "read", "damaged_data", "bad"))

    record = _RecordDoFn("operator", "digest", str(tmp_path))
    assert list(record.process(None, [result], [], rejected())) == [result]
    found = read_record(str(tmp_path), "operator", "digest")
    if count > REJECTED_LIMIT:
        assert found is None and taken == REJECTED_LIMIT + 1
    else:
        assert found is not None and len(found.rejected) == count
        ((_, taken_over),) = found.results
        assert taken_over.digest == result.digest and np.array_equal(taken_over.open()[0]["a"], np.arange(3.0))


class _Packed:
    """As a curvature whose parts are arrays."""

    def finish_part(self, name: str, part: np.ndarray) -> np.ndarray:
        return part

    def pack_part(self, name: str, part: np.ndarray) -> dict[str, np.ndarray]:
        return {name: part}


def test_parts_of_a_statistic_go_by_path_unless_they_are_small(tmp_path: pathlib.Path) -> None:
    save = finish_curvature._SavePartDoFn(_Packed(), str(tmp_path))  # type: ignore[arg-type]
    for size, inline in ((INLINE_PART_LIMIT // 8, True), (INLINE_PART_LIMIT // 8 + 1, False)):
        ((_, broadcast),) = save.process(("layer", StatisticPart("layer", np.zeros(size))))
        assert (broadcast.inline is not None) == inline and broadcast.inline_bytes < 1.1 * INLINE_PART_LIMIT
