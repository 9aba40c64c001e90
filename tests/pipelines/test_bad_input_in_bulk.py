"""Well over a thousand bad records of more than a dozen kinds among good ones: each is told by its id and reason, no good score moves."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from tests.pipelines.digits_job import SIZES, DigitsJob, Split, assert_same_tables, floats, framed, ints, read, run_quietly, strings

# The kept examples are the same, only in batches of other shapes: what is left is rounding (seen: 1e-13).
ROUNDING = 1e-9
BAD = 1_200
SHARDS = 9


def pixels(split: Split, row: int, value: float, at: int = 30) -> list[float]:
    return [value if index == at else float(pixel) for index, pixel in enumerate(split.images[row])]


KINDS: dict[str, tuple[str, str, Callable[[Split, int], bytes]]] = {
    "garbage": ("decode", "not_an_example", lambda s, r: b"\xff\xfe not a tf.Example"),
    "cut_message": ("decode", "not_an_example", lambda s, r: s.example(r)[:-3]),
    "empty_record": ("decode", "missing_feature", lambda s, r: b""),
    "missing_input": ("decode", "missing_feature", lambda s, r: s.example(r, {"image": None})),
    "missing_label": ("decode", "missing_feature", lambda s, r: s.example(r, {"label": None})),
    "missing_group": ("decode", "missing_feature", lambda s, r: s.example(r, {"digit": None})),
    "too_short": ("decode", "wrong_shape", lambda s, r: s.example(r, {"image": floats(s.images[r][:63])})),
    "too_long": ("decode", "wrong_shape", lambda s, r: s.example(r, {"image": floats([*s.images[r], 0.0])})),
    "no_pixels": ("decode", "wrong_shape", lambda s, r: s.example(r, {"image": floats([])})),
    "two_labels": ("decode", "wrong_shape", lambda s, r: s.example(r, {"label": ints([1, 2])})),
    "text_for_pixels": ("decode", "not_an_example", lambda s, r: s.example(r, {"image": strings(["a"] * 64)})),
    "text_for_label": ("decode", "not_an_example", lambda s, r: s.example(r, {"label": strings(["seven"])})),
    "nan": ("evaluate", "not_finite", lambda s, r: s.example(r, {"image": floats(pixels(s, r, math.nan))})),
    "inf": ("evaluate", "not_finite", lambda s, r: s.example(r, {"image": floats(pixels(s, r, math.inf))})),
    "damaged_data": ("read", "damaged_data", lambda s, r: s.example(r)),  # one bit of it is flipped in the file
}


@dataclasses.dataclass(frozen=True)
class Bulk:
    pattern: str
    ids: list[str]
    rejected: Counter[tuple[str, int, str, str]]
    kinds: Counter[str]


def write(job: DigitsJob, folder: pathlib.Path) -> Bulk:
    """All good training examples in order, with bad records at random places before, between and after them."""
    split, random = job.splits["train"], np.random.default_rng(11)
    names = sorted(KINDS)
    total = SIZES["train"] + BAD
    is_bad = np.zeros(total, bool)
    is_bad[random.choice(np.arange(1, total), BAD, replace=False)] = True  # the very first is good
    good = iter(range(SIZES["train"]))
    ids, rejected, kinds = [""] * SIZES["train"], Counter(), Counter()
    for number, part in enumerate(np.array_split(np.arange(total), SHARDS)):
        file, data = f"part-{number:05d}.tfrecord", b""
        for index, position in enumerate(part):
            if not is_bad[position]:
                row = next(good)
                ids[row] = f"{file}:{index}"
                data += framed([split.example(row)])
                continue
            name = names[int(random.integers(len(names)))]
            stage, error, make = KINDS[name]
            frame = bytearray(framed([make(split, int(random.integers(SIZES["train"])))]))
            if name == "damaged_data":
                frame[12 + 40] ^= 1
            data += bytes(frame)
            rejected[file, index, stage, error] += 1
            kinds[name] += 1
        (folder / file).write_bytes(data)
    return Bulk(str(folder / "part-*.tfrecord"), ids, rejected, kinds)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("batch_size", "curvature"), [(1, "gauss_newton"), (17, "ekfac"), (256, "gauss_newton")])
def test_each_bad_record_is_told_and_no_good_score_moves(
    job: DigitsJob, tmp_path: pathlib.Path, batch_size: int, curvature: str
) -> None:
    (tmp_path / "data").mkdir()
    bulk = write(job, tmp_path / "data")
    assert bulk.rejected.total() == BAD >= 1_000 and len(bulk.kinds) == len(KINDS) >= 12
    assert min(bulk.kinds.values()) > 20 and len({file for file, *_ in bulk.rejected}) == SHARDS
    config = job.config(tmp_path / "out", train=bulk.pattern, max_rejected=BAD, batch_size=batch_size, curvature=curvature)
    summary = run_quietly(config)
    rows = read(tmp_path / "out", "rejected").to_pylist()
    assert {row["split"] for row in rows} == {"train"} and all(row["message"] for row in rows)
    assert Counter((row["file"], row["index"], row["stage"], row["error"]) for row in rows) == bulk.rejected
    counts = summary.manifest["counts"]["score"]
    assert (counts["examples"], counts["rejected"]) == (SIZES["train"], BAD)
    assert_same_tables(tmp_path / "out", job.oracle(config, bulk.ids, job.shards("test", 1).ids()), ROUNDING)
