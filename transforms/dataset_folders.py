"""Folders that libraries of data sets write, as the patterns of their files: Hugging Face's `save_to_disk`, TensorFlow Datasets."""

from __future__ import annotations

import json
import re
from typing import Any

from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.folders import quoted

_STATE, _DICTIONARY, _INFO = "state.json", "dataset_dict.json", "dataset_info.json"
_TRAINED, _TESTED = ("train",), ("test", "validation")


def files_of_folder(split: str, path: str) -> list[str]:
    """The patterns of a data set's files where `path` is the folder of one, or itself.

    A folder of `Dataset.save_to_disk` has `state.json` with the names of its Arrow files; one of a `DatasetDict` has a folder for each
    split; one of TensorFlow Datasets has `dataset_info.json` with its splits.

    Args:
      split: which of several splits is taken: for `test` that of this name, or else `validation`; else `train`.
      path: a pattern or a folder.

    Raises:
      ValueError: the data set has no such split, or its files are none that are read.
    """
    if re.search(r"[*?\[]", path):
        return [path]
    files, folder = BeamFiles(), path.rstrip("/")
    if files.exists(join(folder, _STATE)):
        state = _json(files, join(folder, _STATE))
        if state.get("_indices_data_files") or state.get("_indices_files"):
            mend = "write it with dataset.flatten_indices().save_to_disk(folder)"
            raise ValueError(f"{path!r} holds a selection of its rows by their places; {mend}")
        return [join(folder, file["filename"]) for file in state["_data_files"]]
    if files.exists(join(folder, _DICTIONARY)):
        name = _choose(split, _json(files, join(folder, _DICTIONARY))["splits"], path, f"{folder}/SPLIT")
        return files_of_folder(split, join(folder, name))
    if files.exists(join(folder, _INFO)):
        return [_files_of_tfds(split, path, _json(files, join(folder, _INFO)))]
    return [path]


def _json(files: BeamFiles, path: str) -> Any:
    try:
        return json.loads(files.read(path))
    except ValueError as error:
        raise ValueError(f"{path!r} is no JSON: {error}; write the data set again, or give a pattern of its files") from error


def _files_of_tfds(split: str, path: str, info: Any) -> str:
    """Source: `DatasetInfo` and `SplitInfo` in TensorFlow Datasets' dataset_info.proto."""
    kind = info.get("fileFormat", "tfrecord")
    splits = {one["name"]: one for one in info.get("splits", [])}
    if not splits:
        raise ValueError(f"{path!r} has a dataset_info.json without splits; give a pattern of its files")
    if kind not in ("tfrecord", "parquet", "array_record"):
        raise ValueError(f"the data set {path!r} is stored as {kind}; write it with tfds build --file_format tfrecord")
    name = _choose(split, list(splits), path, f"'{path.rstrip('/')}/{info.get('name', '*')}-SPLIT.{kind}*'")
    template = splits[name].get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    values = {"DATASET": info["name"], "SPLIT": name, "FILEFORMAT": kind, "SHARD_INDEX": "*", "NUM_SHARDS": "*", "SHARD_X_OF_Y": "*"}
    for key, value in values.items():
        template = template.replace(f"{{{key}}}", value)
    return join(quoted(path.rstrip("/")), template)


def _choose(split: str, names: list[str], path: str, pattern: str) -> str:
    for name in _TESTED if split == "test" else _TRAINED:
        if name in names:
            return name
    raise ValueError(f"the data set {path!r} has the splits {', '.join(names)}; say which is --{split}: {pattern}, with its name for SPLIT")
