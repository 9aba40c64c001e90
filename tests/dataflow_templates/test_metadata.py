"""The template's metadata and the options of a run say the same, in both directions, and Dataflow can read it."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from typing import Any

import pytest

from beam_influence.pipelines import runners
from beam_influence.pipelines.cli import parser
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.options.option import option_type
from beam_influence.pipelines.template import as_options
from beam_influence.pipelines.template_metadata import template_metadata

FOLDER = pathlib.Path(__file__).parents[2] / "dataflow_templates"
METADATA: dict[str, Any] = json.loads((FOLDER / "metadata.json").read_text(encoding="utf-8"))
PARAMETERS: dict[str, dict[str, Any]] = {parameter["name"]: parameter for parameter in METADATA["parameters"]}
OPTIONS = {field.name: field for field in dataclasses.fields(InfluenceConfig)}
OF_THE_ENGINE = {"gpu", "sdk_container_image"}
JOBS = sorted((FOLDER / "jobs").glob("*.json"))


def test_the_file_is_what_the_options_make() -> None:
    assert METADATA == template_metadata(), "python -m beam_influence.pipelines.template_metadata > dataflow_templates/metadata.json"


def test_every_option_is_a_parameter_and_the_other_way_round() -> None:
    assert len(PARAMETERS) == len(METADATA["parameters"])
    assert set(PARAMETERS) == set(OPTIONS) | OF_THE_ENGINE


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_a_parameter_tells_everything(name: str) -> None:
    parameter = PARAMETERS[name]
    assert parameter["label"] and len(parameter["label"]) < 60 and parameter["label"][0].isupper()
    assert len(parameter["helpText"]) > 15 and "--" not in parameter["helpText"]
    (regex,) = parameter["regexes"]
    assert regex.startswith("^") and regex.endswith("$")
    assert not re.search(regex, "") and not re.search(regex, " ")  # an empty field is no value
    if name in OPTIONS:
        field = OPTIONS[name]
        required = field.default is dataclasses.MISSING
        assert parameter.get("isOptional", False) is not required
        if not required and field.default is not None:
            assert re.search(regex, parameter["defaultValue"])
        if field.metadata["choices"]:
            assert [option["value"] for option in parameter["enumOptions"]] == list(field.metadata["choices"])
            assert all(re.search(regex, choice) for choice in field.metadata["choices"])
            assert not re.search(regex, "another")
        assert (parameter["paramType"] == "BOOLEAN") == (option_type(field, InfluenceConfig) is bool)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("train", ["gs://b/a-*.gz", "gs://b/a,gs://b/c", "gs://b/a , s3://b/c"], ["a.gz", "gs://b/a,c", "gs://b/a,"]),
        ("model", ["gs://b/m.keras", "my.models:make"], ["m.keras", "gs://b/a b"]),
        ("damping", ["auto", "0", "1e-3", "0.5", "1.5E+2"], ["none", "-1", "1,5"]),
        ("outputs", ["top_k", "top_k, scores", "curvature"], ["Top", "top_k,"]),
        ("curvature", ["ekfac", "mine.curvatures:Own"], ["a:b:c", "EK-FAC!"]),
        ("seed", ["0", "-3"], ["1.5", "x"]),
        ("max_rejected", ["7"], ["many"]),
        ("gpu", ["nvidia-l4", "nvidia-tesla-t4"], ["type:nvidia-l4", "a;b"]),
        (
            "sdk_container_image",
            ["us-docker.pkg.dev/p/r/beam-influence:1", "gcr.io/p/i", "gcr.io/p/i@sha256:0ab"],
            ["image with space", "gcr.io"],
        ),
    ],
)
def test_regexes(name: str, good: list[str], bad: list[str]) -> None:
    (regex,) = PARAMETERS[name]["regexes"]
    assert all(re.search(regex, value) for value in good)
    assert not any(re.search(regex, value) for value in bad)


def test_dataflow_accepts_it() -> None:
    """Google's own message refuses unknown fields and unknown parameter types."""
    dataflow = pytest.importorskip("google.cloud.dataflow_v1beta3")
    from google.protobuf import json_format

    message = dataflow.TemplateMetadata.pb(dataflow.TemplateMetadata())
    json_format.ParseDict(METADATA, message)
    assert {parameter.name for parameter in message.parameters} == set(PARAMETERS)
    broken = {**METADATA, "parameters": [{**METADATA["parameters"][0], "paramType": "PATH"}]}
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict(broken, dataflow.TemplateMetadata.pb(dataflow.TemplateMetadata()))


def test_parameters_become_options() -> None:
    given = ["--overwrite=true", "--second_order_groups=False", "--schema=", "--top_k=3", "--runner=DataflowRunner", "--region=r"]
    assert list(as_options(given)) == ["--overwrite", "--no-second_order_groups", "--top_k=3", "--runner=dataflow", "--region=r"]
    with pytest.raises(ValueError, match=r"--update 'maybe' must be true or false"):
        list(as_options(["--update=maybe"]))


@pytest.mark.parametrize("path", JOBS, ids=[path.stem for path in JOBS])
def test_the_jobs_in_the_repository_are_right(path: pathlib.Path) -> None:
    """Each names parameters that exist, with values that pass, and together they make a configuration and an engine's options."""
    job = json.loads(path.read_text(encoding="utf-8"))
    parameters: dict[str, str] = job["--parameters"]
    for name, value in parameters.items():
        sample = value.replace("PROJECT/REPOSITORY", "project/repository")
        assert re.search(PARAMETERS[name]["regexes"][0], sample), (name, value)
    required = {name for name, parameter in PARAMETERS.items() if not parameter.get("isOptional")}
    assert required <= set(parameters)
    options = as_options(f"--{name}={value}" for name, value in parameters.items())
    known, beam_arguments = parser().parse_known_args(["run", *options, "--runner=dataflow"])
    config = InfluenceConfig(**{name: getattr(known, name) for name in OPTIONS})
    engine = runners.choose_engine(
        [*runners.as_arguments(known), *beam_arguments, "--project=p", "--region=r", "--temp_location=gs://bucket-a/t"], config
    )
    assert (engine.accelerator is not None) == ("gpu" in parameters) == ("-gpu:" in parameters["sdk_container_image"])
