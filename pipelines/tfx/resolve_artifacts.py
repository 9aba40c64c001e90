"""From artifacts to files: the splits of Examples, the model, the schema. The light SDK has no such functions."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tfx.types import artifact_utils
from tfx.types.artifact import Artifact

from beam_influence.transforms.files import BeamFiles, join, match_files

PAYLOAD_FORMAT, FILE_FORMAT, CUSTOM_SPLIT_PATTERN = "payload_format", "file_format", "custom_split_pattern"

_DATA_FORMATS = {"FORMAT_TF_EXAMPLE": "tfrecord", "FORMAT_TF_SEQUENCE_EXAMPLE": "sequence_example", "FORMAT_PARQUET": "parquet"}
# ExampleGen stores the name; these are the numbers of the same enumeration.
_NAMES: dict[object, str] = {6: "FORMAT_TF_EXAMPLE", 7: "FORMAT_TF_SEQUENCE_EXAMPLE", 11: "FORMAT_PROTO", 15: "FORMAT_PARQUET"}
_FILE_FORMATS = {"tfrecord": "tfrecord", "sequence_example": "tfrecord", "parquet": "parquet"}


def single(artifacts: Sequence[Artifact], name: str) -> Artifact:
    """The one artifact of an input or output.

    Raises:
      ValueError: there is none, or more.
    """
    if len(artifacts) != 1:
        raise ValueError(f"{name} must be one artifact, not {len(artifacts)}")
    return artifacts[0]


def split_names(examples: Artifact) -> list[str]:
    """The splits that an Examples artifact has."""
    if custom := _custom_patterns(examples):
        return list(custom)
    return artifact_utils.decode_split_names(examples.split_names)


def split_patterns(artifacts: Sequence[Artifact], splits: Sequence[str]) -> tuple[str, ...]:
    """The patterns of the files of some splits: `{uri}/Split-{name}/*`, or what `custom_split_pattern` says.

    Raises:
      ValueError: an artifact lacks a split.
    """
    patterns = []
    for examples in artifacts:
        names, custom = split_names(examples), _custom_patterns(examples)
        for split in splits:
            if split not in names:
                raise ValueError(f"the Examples at {examples.uri!r} have no split {split!r}; they have {', '.join(names) or 'none'}")
            if custom:
                patterns.append(join(examples.uri, custom[split]))
            else:
                patterns.append(join(artifact_utils.get_split_uri([examples], split), "*"))
    return tuple(patterns)


def _custom_patterns(examples: Artifact) -> dict[str, str]:
    text = examples.get_string_custom_property(CUSTOM_SPLIT_PATTERN)
    return json.loads(text) if text else {}


def data_format(artifacts: Sequence[Artifact]) -> str:
    """How the examples are stored, as the option `--data_format` names it; without a payload format tf.Example, as in TFX.

    Raises:
      ValueError: it can't be read, or the artifacts differ.
    """
    found = {_data_format(examples): examples.uri for examples in artifacts}
    if len(found) != 1:
        raise ValueError(f"all Examples must have one payload format, not {', '.join(f'{name} ({uri})' for name, uri in found.items())}")
    return next(iter(found))


def _data_format(examples: Artifact) -> str:
    stored = examples.get_custom_property(PAYLOAD_FORMAT) or "FORMAT_TF_EXAMPLE"
    name = _NAMES.get(stored, str(stored))
    if name not in _DATA_FORMATS:
        raise ValueError(f"the Examples at {examples.uri!r} have the payload format {name}; it must be one of {', '.join(_DATA_FORMATS)}")
    wanted = _FILE_FORMATS[_DATA_FORMATS[name]]
    # tfrecords_gzip, tfrecord or parquet; whether records are compressed is seen from their first bytes.
    stored_file = examples.get_string_custom_property(FILE_FORMAT)
    if stored_file and wanted not in stored_file.lower():
        raise ValueError(f"the Examples at {examples.uri!r} have the file format {stored_file}; with {name} it must be {wanted}")
    return _DATA_FORMATS[name]


def model_path(model: Artifact) -> str:
    """The SavedModel folder or `.keras` file of a Model artifact: in `{uri}/Format-Serving`, else in `{uri}`.

    Raises:
      ValueError: there is none, or more than one `.keras` file.
    """
    for folder in (join(model.uri, "Format-Serving"), model.uri):
        if BeamFiles().exists(join(folder, "saved_model.pb")):
            return folder
        try:
            found = [file.path for file in match_files([join(folder, "*.keras")])]
        except ValueError:
            continue
        if len(found) > 1:
            raise ValueError(f"the Model in {folder!r} has several .keras files: {', '.join(found)}")
        return found[0]
    raise ValueError(f"the Model at {model.uri!r} has neither saved_model.pb nor a .keras file in Format-Serving")


def schema_path(schema: Artifact) -> str:
    """The file of a Schema artifact."""
    return join(schema.uri, "schema.pbtxt")
