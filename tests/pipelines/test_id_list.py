"""Ids are read as they are: another one would be another example."""

from __future__ import annotations

import csv
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_influence.pipelines.id_list import read_ids

IDS = {" lead", "trail ", "a\u2028b", "plain", "tab\t", "train-0.tfrecord:1"}


def test_a_line_is_an_id_with_its_spaces(tmp_path: pathlib.Path) -> None:
    for ending in ("\n", "\r\n"):
        (tmp_path / "ids.txt").write_bytes(ending.join([*sorted(IDS), "", ""]).encode())
        assert read_ids(str(tmp_path / "ids.txt")) == IDS


def test_a_table_has_ids_of_any_kind(tmp_path: pathlib.Path) -> None:
    ids = {*IDS, "new\nline", 'quo"te', "com,ma"}
    with open(tmp_path / "ids.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["n", "train_id"], *([number, name] for number, name in enumerate(sorted(ids)))])
    assert read_ids(str(tmp_path / "ids.csv")) == ids
    pq.write_table(pa.table({"train_id": sorted(ids)}), tmp_path / "ids.parquet")
    assert read_ids(str(tmp_path / "ids.parquet")) == ids


def test_no_ids(tmp_path: pathlib.Path) -> None:
    (tmp_path / "ids.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="has no ids"):
        read_ids(str(tmp_path / "ids.txt"))
