"""`metadata.json` of the Flex Template, made from the options:

    python -m beam_influence.pipelines.template_metadata > dataflow_templates/metadata.json
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from beam_influence.pipelines.command_help import GROUP_HELP
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.options.option import option_type
from beam_influence.pipelines.runners.dataflow import DEFAULT_GPU

_URL = r"[a-z][a-z0-9]*://[^\s,]+"
_FUNCTION = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"
_NUMBER = r"[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?"
_NAMES = r"[^\s,]+(\s*,\s*[^\s,]+)*"

# A console checks these before anything is started; what they can't tell, `InfluenceConfig` refuses at launch.
_REGEXES = {
    "model": rf"({_URL}|{_FUNCTION})",
    "train": rf"{_URL}(\s*,\s*{_URL})*",
    "test": rf"{_URL}(\s*,\s*{_URL})*",
    "preprocess": _FUNCTION,
    "loss": rf"({_FUNCTION}|[A-Za-z_]\w*)",
    "curvature": r"([a-z_]+|[A-Za-z_][\w.]*:[A-Za-z_]\w*)",
    "damping": rf"(auto|{_NUMBER})",
    "label_feature": _NAMES,
    "outputs": r"[a-z_]+(\s*,\s*[a-z_]+)*",
    **dict.fromkeys(
        ("output", "influence_vectors_path", "index", "schema", "model_weights", "curvature_path", "work_dir"), _URL
    ),
}
_TYPES = {
    "output": "GCS_WRITE_FOLDER",
    "work_dir": "GCS_WRITE_FOLDER",
    "influence_vectors_path": "GCS_READ_FOLDER",
    "index": "GCS_READ_FOLDER",
    "curvature_path": "GCS_READ_FOLDER",
    "schema": "GCS_READ_FILE",
    "model_weights": "GCS_READ_FILE",
}
_PLAIN = {
    bool: ("BOOLEAN", "(true|false)"),
    int: ("NUMBER", "-?[0-9]+"),
    float: ("NUMBER", _NUMBER),
    str: ("TEXT", r"\S(.*\S)?"),
}
_LABELS = {
    "train": "Training set",
    "test": "Test points",
    "model": "Trained model",
    "output": "Folder for the results",
    "outputs": "Tables to write",
    "index": "Index to answer from",
    "influence_vectors_path": "Saved influence vectors",
    "curvature_path": "Saved curvature",
    "top_k": "Training examples for each test point",
    "n_samples": "Training examples that the curvature is made from",
    "id_feature": "Feature that names an example",
    "rcond": "Cut-off of eigenvalues",
    "order": "Which end of the ranking",
    "loss": "Loss of the training",
    "weights": "Watched weights",
    "work_dir": "Folder for temporary files",
    "max_rejected": "Unusable examples that are allowed",
}


def template_metadata() -> dict[str, Any]:
    """The content of `metadata.json`."""
    own = [
        _parameter(
            "sdk_container_image",
            "Image of the workers",
            "The image that the template was built with (docs/dataflow.md): launcher and workers run the same one.",
            r"[\w.-]+(:[0-9]+)?(/[\w.-]+)+([:@][\w.:-]+)?",
            "TEXT",
        ),
        _parameter(
            "gpu",
            "GPU of the steps that differentiate",
            f"A GPU for each worker that differentiates examples, by its type, such as {DEFAULT_GPU}; the image must be the one for GPUs.",
            "[a-z0-9-]+",
            "TEXT",
            isOptional=True,
            groupName="runner",
        ),
    ]
    return {
        "name": "beam-influence",
        "description": "Which training examples made the model say this? Influence of every training example on the model's loss at "
        "every test point, as Parquet.",
        "parameters": [*(_of_option(field) for field in dataclasses.fields(InfluenceConfig)), *own],
    }


def _of_option(field: dataclasses.Field) -> dict[str, Any]:
    kind, regex = _PLAIN[option_type(field, InfluenceConfig)]
    more: dict[str, Any] = {"groupName": GROUP_HELP[field.metadata["group"]]}
    choices = field.metadata["choices"]
    if choices:
        kind, regex = "ENUM", f"({'|'.join(choices)})"
        more["enumOptions"] = [{"value": choice, "label": choice} for choice in choices]
    if field.default is not dataclasses.MISSING:
        more["isOptional"] = True
        if field.default is not None:
            more["defaultValue"] = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    label = _LABELS.get(field.name, field.name.replace("_", " ").capitalize())
    help_text = re.sub(r"--(?=[a-z])", "", field.metadata["help"])  # a form has no dashes
    return _parameter(field.name, label, help_text, _REGEXES.get(field.name, regex), _TYPES.get(field.name, kind), **more)


def _parameter(name: str, label: str, help_text: str, regex: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "label": label, "helpText": help_text, "paramType": kind, "regexes": [f"^{regex}$"], **more}


if __name__ == "__main__":
    print(json.dumps(template_metadata(), indent=2, ensure_ascii=False))
