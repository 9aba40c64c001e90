"""What docs/tfx.md shows works as it stands there."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest

from tests.pipelines.tfx import needs_tfx as needs_tfx  # first: skips without the extra

# isort: split
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.components.common.importer import Importer
from tfx.orchestration.pipeline import Pipeline

from beam_influence.pipelines.tfx import ExampleCleaner, InfluenceCalculator
from beam_influence.pipelines.tfx.artifacts import standard_artifacts
from beam_influence.pipelines.tfx.example_cleaner import ExampleCleanerSpec
from beam_influence.pipelines.tfx.influence_calculator import InfluenceCalculatorSpec
from beam_influence.pipelines.tfx.options import GIVEN

ROOT = pathlib.Path(__file__).parent.parent.parent.parent
TEXT = (ROOT / "docs" / "tfx.md").read_text(encoding="utf-8")


class _Node:
    """Stands for a component of full TFX, with one output."""

    def __init__(self, name: str, kind: Any):
        self.importer = Importer("/nowhere", kind).with_id(name)
        self.outputs = {name: self.importer.outputs["result"]}


@pytest.mark.timeout(60)
def test_the_pipeline_in_the_text_can_be_defined() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    nodes = {
        "example_gen": _Node("examples", standard_artifacts.Examples),
        "trainer": _Node("model", standard_artifacts.Model),
        "schema_gen": _Node("schema", standard_artifacts.Schema),
    }
    names: dict[str, Any] = dict(nodes)
    exec(code, names)
    influence, cleaner = names["influence"], names["cleaner"]
    assert isinstance(influence, InfluenceCalculator) and isinstance(cleaner, ExampleCleaner)
    assert influence.executor_spec.beam_pipeline_args == ["--runner=FnApiRunner"]
    components: list[BaseNode] = [node.importer for node in nodes.values()]
    Pipeline(pipeline_name="docs", pipeline_root="/nowhere", components=[*components, influence, cleaner])
    assert cleaner.upstream_nodes == {nodes["example_gen"].importer, influence}


def test_every_input_output_and_property_is_described() -> None:
    specs = InfluenceCalculatorSpec, ExampleCleanerSpec
    names = set(GIVEN)
    for spec in specs:
        names |= {*spec.INPUTS, *spec.OUTPUTS, *spec.PARAMETERS}
    assert not [name for name in names if f"`{name}`" not in TEXT]


def test_what_is_installed_exists() -> None:
    for name in ("requirements-tfx.txt", "overrides-tfx.txt"):
        assert name in TEXT and (ROOT / name).exists()
    pinned = (ROOT / "requirements-tfx.txt").read_text(encoding="utf-8")
    assert "\nml-metadata==1.17.1\n" in (ROOT / "overrides-tfx.txt").read_text(encoding="utf-8")
    assert "\nml-metadata==1.17.1\n" in pinned and "\nml-pipelines-sdk==1.21" in pinned
