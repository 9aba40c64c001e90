"""The results of a run as an object, against its files."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import pyarrow as pa
import pytest
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.localfilesystem import LocalFileSystem

import beam_influence
from beam_influence.influence_ops.results.result_files import read_facts
from beam_influence.influence_ops.scoring.outputs.table import TABLES
from beam_influence.pipelines.load_influence import Influence, load_influence
from tests.pipelines.conftest import FinishedRun
from tests.pipelines.digits_job import SIZES, read


@pytest.fixture(scope="module")
def influence(finished: FinishedRun) -> Influence:
    return load_influence(str(finished.output))


def test_each_table_is_that_of_the_files(influence: Influence, finished: FinishedRun) -> None:
    assert set(influence.tables) == {*finished.config.output_tables, "rejected"}
    for name in influence.tables:
        table = getattr(influence, name)
        assert table.schema.equals(TABLES[name]) and table is influence.table(name)
        keys = [(column, "ascending") for column in table.column_names if column != "vector"]
        assert table.sort_by(keys).equals(read(finished.output, name).sort_by(keys))
        batches = list(influence.batches(name, 1000))
        assert all(len(batch) <= 1000 for batch in batches)
        assert pa.Table.from_batches(batches, schema=table.schema).equals(table)


def test_sign_and_unit_are_those_of_each_file(influence: Influence, finished: FinishedRun) -> None:
    for file in influence.files():
        if file.table != "rejected":
            assert influence.facts == read_facts(str(finished.output / file.path)), file.path
    assert influence.sign.startswith("positive = removing the training example raises the loss")
    assert influence.unit.startswith("loss × n: divide by n") and influence.n == SIZES["train"]
    row = influence.self_influence.to_pylist()[0]
    assert row["loss_change"] == pytest.approx(row["influence"] / influence.n, rel=1e-15)
    assert influence.curvature["damping"] == finished.summary.manifest["curvature"]["damping"]


def test_one_test_point(influence: Influence, finished: FinishedRun) -> None:
    for test_id in (finished.test_ids[0], finished.test_ids[-1]):
        explained = influence.explain(test_id)
        wanted = [row for row in influence.top_k.to_pylist() if row.pop("test_id") == test_id]
        assert explained.to_pylist() == sorted(wanted, key=lambda row: row["rank"]) and explained.num_rows == finished.config.top_k
    with pytest.raises(ValueError, match="has no test point 'nobody'; the first that it has is '"):
        influence.explain("nobody")
    with pytest.raises(ValueError, match=r"explain\(0\): a test point is named by its id, which is text, such as 'test.tfrecord:0'"):
        influence.explain(0)  # type: ignore[arg-type]


def test_a_file_that_is_gone_is_named(finished: FinishedRun, tmp_path: pathlib.Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(finished.output, copied)
    gone = next((copied / "top_k").glob("*.parquet"))
    gone.unlink()
    with pytest.raises(ValueError, match=f"'{gone}', which the run's manifest lists, can't be read .*; put it back, or run again"):
        load_influence(copied).table("top_k")
    with pytest.raises(ValueError, match=f"'{gone}', which the run's manifest lists"):
        list(load_influence(copied).batches("top_k"))


def test_what_is_not_there(influence: Influence) -> None:
    assert not hasattr(influence, "group_vectors") and not hasattr(influence, "nonsense")
    assert "top_k" in dir(influence) and "group_vectors" not in dir(influence)
    with pytest.raises(ValueError, match="wrote no group_vectors; run it with --outputs group_vectors"):
        influence.table("group_vectors")
    with pytest.raises(ValueError, match="there is no table 'nonsense'; the run in .* wrote group_influence, .*top_k"):
        influence.batches("nonsense")


class _Mounted(LocalFileSystem):
    """This machine's files under another scheme."""

    @classmethod
    def scheme(cls) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  (Beam has no type for it)
        return "mounted"

    def open(self, path: str, mime_type: str = "", compression_type: str = CompressionTypes.AUTO) -> Any:
        return super().open(path.removeprefix("mounted:/"), mime_type, compression_type)

    def exists(self, path: str) -> bool:
        return super().exists(path.removeprefix("mounted:/"))


def test_another_file_system(influence: Influence, finished: FinishedRun) -> None:
    found = beam_influence.load_influence(f"mounted:/{finished.output}")
    assert found.top_k.equals(influence.top_k) and found.explain(finished.test_ids[0]).num_rows
    assert next(found.batches("scores", 5)).num_rows == 5


def test_unfinished_and_foreign_folders_are_refused(finished: FinishedRun, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="there are no results to load: '/nowhere' holds no manifest.json: no run has finished there"):
        load_influence("/nowhere")
    shutil.copytree(finished.output / "top_k", tmp_path / "top_k")
    with pytest.raises(ValueError, match="no run has finished there"):
        load_influence(str(tmp_path))
    for content, message in (
        ("{}", "is not of this program: no run of it has finished in"),
        ('["a list"]', "is not of this program"),
        ('{"manifest_version": 1}', "is damaged: KeyError"),
        ("not JSON", "is damaged"),
        (json.dumps({"manifest_version": 1, "files": []}), "lacks 'config'; it is of another program"),
    ):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            load_influence(str(tmp_path))
