"""Small arrays travel inside the reference, large ones as a path; either way a process gets the same arrays, once."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsIter
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.utils.shared import Shared

from beam_influence.influence_ops.results.array_folder import LocalFiles, load_arrays, mapped_arrays, save_arrays
from beam_influence.transforms.broadcast import INLINE_LIMIT, Broadcast
from beam_influence.transforms.files import BeamFiles

ARRAYS = {
    "matrix": np.arange(12.0).reshape(3, 4).T,  # not contiguous
    "ids": np.array([b"a", b"bcd"]),
    "count": np.array([7], dtype=np.int64),
    "none": np.zeros((0, 4)),
}
SIZE = sum(array.nbytes for array in ARRAYS.values())
META = {"kind": "dense", "damping": 0.1}


@pytest.mark.parametrize(("limit", "inline"), [(INLINE_LIMIT, True), (SIZE, True), (SIZE - 1, False), (0, False)])
def test_by_value_up_to_the_limit_by_path_above(tmp_path: pathlib.Path, limit: int, inline: bool) -> None:
    folder = tmp_path / "arrays"
    broadcast = Broadcast.publish(ARRAYS, META, str(folder), inline_limit=limit)
    assert (broadcast.folder is None) == (broadcast.inline is not None) == inline
    assert folder.exists() == (not inline)
    if not inline:
        assert len(pickle.dumps(broadcast)) < 1000  # only the reference travels
    arrays, meta = pickle.loads(pickle.dumps(broadcast)).open()
    assert meta == META
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and np.array_equal(arrays[name], array)


def test_large_arrays_are_mapped_not_read(tmp_path: pathlib.Path) -> None:
    broadcast = Broadcast.publish({"matrix": np.ones((10, 10))}, {}, str(tmp_path / "arrays"), inline_limit=0)
    assert isinstance(broadcast.open()[0]["matrix"], np.memmap)


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_late_retry_changes_nothing_that_others_have(tmp_path: pathlib.Path, is_remote: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry's sums may differ in the last bits: who has the first result goes on with it, whenever it is opened."""
    folder = str(tmp_path / "curvature")
    first = Broadcast.publish({"a": np.ones((50, 50)), "b": np.zeros(3)}, META, folder, 0)
    opened = first.open()[0]
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("curvature/*.npy")}
    again = Broadcast.publish({"a": np.full((50, 50), 1 + 1e-15), "b": np.zeros(3)}, META, folder, 0)
    assert before.items() < {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("curvature/*.npy")}.items()
    if is_remote:
        first, again = (dataclasses.replace(one, folder=f"file://{folder}") for one in (first, again))
        monkeypatch.setattr(BeamFiles, "open_read", lambda self, path: open(path.removeprefix("file://"), "rb"))
        monkeypatch.setattr(BeamFiles, "exists", lambda self, path: os.path.exists(path.removeprefix("file://")))
    assert (opened["a"] == 1).all() and (first.open()[0]["a"] == 1).all() and (again.open()[0]["a"] == 1 + 1e-15).all()
    assert (load_arrays(folder)[0]["a"] == 1 + 1e-15).all()  # what later runs find is one of them, whole


def test_the_digest_is_of_the_content(tmp_path: pathlib.Path) -> None:
    def digest(arrays: dict[str, np.ndarray], meta: dict[str, Any], limit: int = INLINE_LIMIT) -> str:
        return Broadcast.publish(arrays, meta, str(tmp_path / "arrays"), inline_limit=limit).digest

    one = {"a": np.array([1.0, 2.0]), "b": np.array([3.0])}
    assert digest(one, META) == digest(dict(reversed(one.items())), META) == digest(one, META, limit=0)
    others = [
        digest({**one, "b": np.array([4.0])}, META),
        digest({"a": one["b"], "b": one["a"]}, META),
        digest({**one, "a": one["a"][None]}, META),
        digest({**one, "a": one["a"].astype(np.float32)}, META),
        digest(one, {**META, "damping": 0.2}),
    ]
    assert len({digest(one, META), *others}) == 6


class _Opened:
    """What a process keeps (`Shared` holds no tuple); counts how often it was made."""

    made = 0

    def __init__(self, broadcast: Broadcast):
        type(self).made += 1
        self.arrays, _ = broadcast.open()


class _UseDoFn(beam.DoFn):
    def __init__(self) -> None:
        self._shared = Shared()

    def process(self, element: int, broadcasts: Iterable[Broadcast]) -> Iterator[float]:
        (broadcast,) = broadcasts
        self._opened = self._shared.acquire(lambda: _Opened(broadcast), tag=broadcast.digest)
        yield element + float(self._opened.arrays["matrix"].sum())


@pytest.mark.parametrize("limit", [INLINE_LIMIT, 0])
def test_a_process_opens_it_once(tmp_path: pathlib.Path, limit: int) -> None:
    """Over many bundles, each of which Beam runs once more."""
    _Opened.made = 0
    broadcast = Broadcast.publish({"matrix": np.ones((5, 5))}, {}, str(tmp_path / "arrays"), inline_limit=limit)
    options = PipelineOptions(["--direct_runner_bundle_repeat=1"])
    with beam.Pipeline(FnApiRunner(), options=options) as pipeline:
        side = pipeline | "Broadcast" >> beam.Create([broadcast], reshuffle=False)
        found = (
            pipeline
            | beam.Create(list(range(20)))
            | beam.Reshuffle()
            | beam.ParDo(_UseDoFn(), AsIter(side)).with_output_types(float)
        )
        assert_that(found, equal_to([25.0 + number for number in range(20)]))
    assert _Opened.made == 1


def test_what_is_fetched_from_a_store_is_mapped_too(tmp_path: pathlib.Path) -> None:
    """A large array of a remote store is a file of this machine, without a name; damage is refused as ever."""
    folder = str(tmp_path / "arrays")
    described = save_arrays(folder, ARRAYS, {}, LocalFiles(), by_content=True)
    found = mapped_arrays(folder, described, LocalFiles(), ARRAYS["matrix"].nbytes - 1)
    assert {name for name, array in found.items() if isinstance(array, np.memmap)} == {"matrix"}
    assert all(found[name].dtype == array.dtype and np.array_equal(found[name], array) for name, array in ARRAYS.items())
    (path,) = (tmp_path / "arrays").glob("matrix-*.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="does not match its SHA-256"):
        mapped_arrays(folder, described, LocalFiles(), 0)
