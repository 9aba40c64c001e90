"""Folders of data sets as their files: laid out as Hugging Face's `save_to_disk` and TensorFlow Datasets write them."""

from __future__ import annotations

import json
import pathlib

import pytest

from beam_influence.transforms.file_list import list_shards


def write(folder: pathlib.Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content if isinstance(content, str) else json.dumps(content))


def names(split: str, folder: pathlib.Path) -> list[str]:
    return list_shards(split, [str(folder)]).table["path"].to_pylist()


def arrow(folder: pathlib.Path, **state: object) -> None:
    parts = [{"filename": f"data-0000{part}-of-00002.arrow"} for part in range(2)]
    write(folder, state__json={"_data_files": parts, **state}, dataset_info__json={"features": {}})
    write(folder, **{part["filename"].replace(".", "__"): "x" for part in parts})


def test_a_data_set_that_hugging_face_saved(tmp_path: pathlib.Path) -> None:
    arrow(tmp_path / "one")
    assert names("train", tmp_path / "one") == [str(tmp_path / "one" / f"data-0000{part}-of-00002.arrow") for part in range(2)]
    write(tmp_path / "all", dataset_dict__json={"splits": ["train", "validation"]})
    for split in ("train", "validation"):
        arrow(tmp_path / "all" / split)
    assert names("train", tmp_path / "all")[0] == str(tmp_path / "all" / "train" / "data-00000-of-00002.arrow")
    assert names("test", tmp_path / "all")[0] == str(tmp_path / "all" / "validation" / "data-00000-of-00002.arrow")
    write(tmp_path / "odd", dataset_dict__json={"splits": ["dev", "all"]})
    with pytest.raises(ValueError, match="has the splits dev, all; say which is --test: .*/odd/SPLIT, with its name"):
        names("test", tmp_path / "odd")
    arrow(tmp_path / "shuffled", _indices_files=[{"filename": "indices.arrow"}])
    with pytest.raises(ValueError, match="a selection of its rows by their places; write it with dataset.flatten_indices"):
        names("train", tmp_path / "shuffled")
    write(tmp_path / "broken", state__json="{")
    with pytest.raises(ValueError, match="state.json' is no JSON"):
        names("train", tmp_path / "broken")


def test_a_data_set_of_tensorflow_datasets(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "mnist" / "3.0.1"
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    splits = [{"name": "train", "shardLengths": ["2", "2"], "filepathTemplate": template}, {"name": "test", "shardLengths": ["1"]}]
    write(folder, dataset_info__json={"name": "mnist", "fileFormat": "tfrecord", "splits": splits}, features__json={})
    files = {"train": [f"mnist-train.tfrecord-0000{part}-of-00002" for part in range(2)], "test": ["mnist-test.tfrecord-00000-of-00001"]}
    write(folder, **{name.replace(".", "__"): "x" for name in (*files["train"], *files["test"])})
    for split, found in files.items():
        assert names(split, folder) == [str(folder / name) for name in found]
    assert names("candidates", folder) == names("train", folder)
    write(folder, dataset_info__json={"name": "mnist", "fileFormat": "bagz", "splits": splits})
    with pytest.raises(ValueError, match="is stored as bagz; write it with tfds build --file_format tfrecord"):
        names("train", folder)
    write(folder, dataset_info__json={"name": "mnist", "splits": [{"name": "all"}]})
    with pytest.raises(ValueError, match="has the splits all; say which is --train: '.*/mnist-SPLIT.tfrecord.', with its name"):
        names("train", folder)
