"""Examples are found by their ids, be these places in files or a feature's values, in any format."""

from __future__ import annotations

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from beam_influence.report.examples import Source, stored_examples
from beam_influence.transforms.file_list import list_shards
from tests.pipelines.digits_job import floats, framed, strings

ROWS = 90


def write(folder: pathlib.Path, kind: str) -> list[str]:
    """Three files of uneven sizes, whose names need a folder; returns their names."""
    names = []
    for number, rows in enumerate(np.split(np.arange(ROWS), [20, 21])):
        path = folder / f"part:{number}" / f"rows.{kind}"
        path.parent.mkdir()
        names.append(f"{path.parent.name}/{path.name}")
        if kind == "parquet":
            pq.write_table(pa.table({"name": [f"n {row}" for row in rows], "x": [[row, 0.5] for row in rows]}), path, row_group_size=7)
        elif kind == "csv":
            path.write_text("name,x\n" + "".join(f"n {row},{row}.5\n" for row in rows))
        else:
            features = [{"name": strings([f"n {row}"]), "x": floats([row, 0.5])} for row in rows]
            path.write_bytes(framed(tf.train.Example(features=tf.train.Features(feature=one)).SerializeToString() for one in features))
    return names


@pytest.mark.parametrize("kind", ["tfrecord", "parquet", "csv"])
def test_they_are_found(tmp_path: pathlib.Path, kind: str) -> None:
    names = write(tmp_path, kind)
    shards = list_shards("train", [str(tmp_path / "*" / "rows.*")])
    for id_feature, ids in ((None, [f"{names[2]}:68", f"{names[0]}:3", f"{names[1]}:0"]), ("name", ["n 89", "n 3", "n 20"])):
        source = Source(shards, "auto", id_feature)
        asked = [*ids, "nobody", f"{names[0]}:500", f"{names[0]}:-1"]
        found = {one.id: one for name, rows, of in source.find(asked) for one in stored_examples(name, rows, of)}
        assert set(found) == set(ids)
        for name, row in zip(ids, (89, 3, 20), strict=True):
            values = found[name].values
            assert values["name"] in (f"n {row}", f"n {row}".encode())
            assert np.ravel(np.asarray(values["x"]))[0] == (row + 0.5 if kind == "csv" else row)
        places = [(found[name].file, found[name].index) for name in ids]
        assert places == [(names[2], 68), (names[0], 3), (names[1], 0)]


def test_an_id_of_two_examples_is_refused(tmp_path: pathlib.Path) -> None:
    """Which of them has the influence can't be told; the first one would be as often wrong as right."""
    for number, ids in enumerate((["a", "b"], ["c", "a"])):
        pq.write_table(pa.table({"name": ids, "x": [[1.0], [2.0]]}), tmp_path / f"{number}.parquet")
    source = Source(list_shards("train", [str(tmp_path / "*.parquet")]), "auto", "name")
    assert [of for _, _, of in source.find(["b", "c"])] == [["b"], ["c"]]
    with pytest.raises(ValueError, match=r"the id 'a' is of two examples, 0.parquet:0 and 1.parquet:1"):
        list(source.find(["a"]))
