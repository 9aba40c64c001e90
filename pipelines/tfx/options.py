"""Options to execution properties and back: JSON with sorted keys, so that a run is served from the cache when nothing changed."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from beam_influence.influence_ops.import_path import source_digest
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.options.option import option_type

GIVEN = {
    "model": "the input model",
    "model_weights": "the input model",
    "output": "the artifact scores",
    "overwrite": "each execution, which has a folder of its own",
    "resume": "each execution, which has a folder of its own",
    "train": "the inputs examples and train_splits",
    "candidates": "the input examples, which are scored themselves",
    "test": "the inputs test_examples and test_splits",
    "data_format": "the payload format of the Examples",
    "schema": "the input schema",
    "curvature_path": "the input saved_curvature",
    "influence_vectors_path": "the input examples, from which vectors are computed",
    "index": "the input examples, which are scored themselves",
    "update": "the input examples, which are scored themselves",
    "search": "the input examples, which are scored themselves",
}
"""Options of the command line that the pipeline gives instead."""

_PLACE = "artifact"  # stands for a path that is not known before the pipeline runs


def encode_options(options: Mapping[str, Any], has_test: bool, has_curvature: bool) -> str:
    """Checks options and gives all of them, with their defaults, as JSON.

    Args:
      options: options of `InfluenceConfig` by name; a list is joined by commas, and a number may stand for text
        (`damping=0.01`).
      has_test: whether there are test points; decides what `outputs` is by default.
      has_curvature: whether a saved curvature is used.

    Raises:
      ValueError: an option is unknown, given by the pipeline, of the wrong type, or does not go with the others.
    """
    fields = {field.name: field for field in dataclasses.fields(InfluenceConfig) if field.name not in GIVEN}
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name in GIVEN:
            raise ValueError(f"the option {name} is not given here: it is decided by {GIVEN[name]}")
        if name not in fields:
            close = difflib.get_close_matches(name, fields, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(fields)}"
            raise ValueError(f"there is no option {name}; {hint}")
        values[name] = _value(fields[name], value)
    scores = "self_influence,self_influence_top_k"
    values.setdefault("outputs", f"top_k,{scores}" if has_test else scores)
    paths = {
        "model": _PLACE,
        "output": _PLACE,
        "train": _PLACE,
        "test": _PLACE if has_test else None,
        "curvature_path": _PLACE if has_curvature else None,
    }
    try:
        config = InfluenceConfig(**paths, **values)
    except ValueError as error:
        raise ValueError(_in_our_words(str(error))) from error
    return to_json({name: getattr(config, name) for name in fields})


def _value(field: dataclasses.Field, value: Any) -> Any:
    kind = option_type(field, InfluenceConfig)
    if value is None and type(None) in typing.get_args(typing.get_type_hints(InfluenceConfig)[field.name]):
        return None
    if kind is str and isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    if kind in (str, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        return kind(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"the option {field.name} must be {kind.__name__}, not {value!r}")
    return value


def _in_our_words(message: str) -> str:
    """A message of the command line, whose options have other names here."""
    names = {"train": "train_splits", "test": "test_splits", "curvature_path": "saved_curvature"}
    return re.sub(r"--(\w+)", lambda match: names.get(match[1], match[1]), message)


def to_json(value: object) -> str:
    """JSON that is the same for the same value."""
    return json.dumps(value, sort_keys=True)


def encode_splits(splits: Sequence[str], name: str) -> str:
    """Names of splits, each once, as JSON.

    Raises:
      ValueError: they are no list of names.
    """
    if isinstance(splits, str) or not all(isinstance(split, str) and split for split in splits):
        raise ValueError(f"{name} must be a list of names of splits, not {splits!r}")
    return to_json(sorted(set(splits)))


def code_digests(options: str) -> str:
    """What a result depends on beside data and options, as JSON: the version of this package, and the source files of
    the user's functions, where they can be found."""
    found: dict[str, str] = {}
    for name, value in json.loads(options).items():
        if isinstance(value, str) and re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", value):
            if digest := source_digest(value.partition(":")[0]):
                found[name] = digest
    try:
        found["beam-influence"] = metadata.version("beam-influence")
    except metadata.PackageNotFoundError:  # a source tree on PYTHONPATH
        pass
    return to_json(found)
