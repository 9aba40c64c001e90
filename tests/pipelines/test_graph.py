"""No example and no gradient crosses a shuffle: shown by the types of what enters each one in the built graph."""

from __future__ import annotations

import dataclasses
import pathlib
import typing
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.pvalue import AsIter
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.typehints import typehints
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PaneInfo

from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.pipelines.build import build
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.elements import (
    FileBlock,
    GroupBlock,
    ListedFiles,
    Part,
    QueryReference,
    RejectedBlock,
    RejectedExample,
    Shard,
    ShardCount,
    SolverReport,
    StatisticPart,
    WrittenFile,
)
from tests.pipelines.digits_job import DigitsJob

# Names of files and ranges, sums and tables: none grows with the number of training examples, but for the reasons of rejections.
SHUFFLED = {Shard, FileBlock, StatisticPart, Part, GroupBlock, RejectedExample, WrittenFile, ShardCount}
# Side inputs are materialised too: references, facts about files, what was rejected, sums over groups (large by path); no top-k tables.
BROADCAST = {
    Broadcast, QueryReference, WrittenFile, ListedFiles, ShardCount, RejectedBlock, RejectedExample, GroupBlock, StatisticPart,
    SolverReport,
}  # fmt: skip
# Keys, and what Beam's own transforms wrap elements in.
_PLAIN = {str, int, bool, type(None), Timestamp, PaneInfo}


def leaves(hint: object) -> Iterator[object]:
    """The plain types that a type hint is made of."""
    if isinstance(hint, typehints.TupleHint.TupleConstraint):
        for part in hint.tuple_types:
            yield from leaves(part)
    elif isinstance(hint, (typehints.IterableTypeConstraint, typehints.SequenceTypeConstraint)):
        yield from leaves(hint.inner_type)
    elif isinstance(hint, typehints.UnionConstraint):
        for part in hint.union_types:
            yield from leaves(part)
    elif getattr(hint, "__origin__", None) is not None or typing.get_args(hint):
        for part in typing.get_args(hint):
            yield from leaves(part)
    else:
        yield hint


@dataclasses.dataclass(frozen=True)
class Crossing:
    """A place where elements leave their worker: a GroupByKey, or a side input."""

    label: str
    kind: str
    types: frozenset[object]


class _Crossings(PipelineVisitor):
    def __init__(self) -> None:
        self.found: list[Crossing] = []

    def enter_composite_transform(self, transform_node: AppliedPTransform) -> None:
        self._look(transform_node)

    def visit_transform(self, transform_node: AppliedPTransform) -> None:
        self._look(transform_node)
        for side in transform_node.side_inputs:
            types = frozenset(leaves(side.pvalue.element_type))
            self.found.append(Crossing(transform_node.full_label, "side input", types))

    def _look(self, node: AppliedPTransform) -> None:
        if isinstance(node.transform, (beam.GroupByKey, beam.CombinePerKey, beam.CombineGlobally, beam.Reshuffle)):
            for value in node.inputs:
                self.found.append(Crossing(node.full_label, type(node.transform).__name__, frozenset(leaves(value.element_type))))


def crossings(pipeline: beam.Pipeline) -> list[Crossing]:
    visitor = _Crossings()
    pipeline.visit(visitor)
    return visitor.found


def check(found: list[Crossing]) -> None:
    """Fails for every crossing of a type that is not listed, such as Any."""
    bad = []
    for crossing in found:
        allowed = (BROADCAST if crossing.kind == "side input" else SHUFFLED) | _PLAIN
        if unknown := [kind for kind in crossing.types if kind not in allowed]:
            bad.append(f"{crossing.kind} {crossing.label}: {unknown}")
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"curvature": "identity"},
        {"removal": "newton"},
        {"outputs": "top_k"},
        {"outputs": "scores,influence_vectors,self_influence", "normalize": "theta", "group_feature": None},
        {"outputs": "top_k,group_influence", "second_order_groups": True},
        {"outputs": "top_k", "group_feature": None, "curvature": "cgd", "passes": 3},
        {"outputs": "top_k", "group_feature": None, "curvature": "arnoldi", "passes": 3},
        {"outputs": "top_k", "group_feature": None, "curvature": "gauss_newton_cg"},
    ],
    ids=["all-outputs", "identity", "newton", "top_k", "by-shard", "second-order", "passes", "arnoldi", "ekfac-and-passes"],
)
def test_only_small_types_cross(job: DigitsJob, tmp_path: pathlib.Path, options: dict[str, typing.Any]) -> None:
    pipeline = beam.Pipeline(FnApiRunner())
    config = job.config(tmp_path / "out", **options)
    build(pipeline, config)
    found = crossings(pipeline)
    check(found)
    labels = {crossing.label for crossing in found if crossing.kind == "GroupByKey"}
    # The walk has seen them all: two reads are spread, what is rejected is put in order (what scoring alone rejects too, after a pass),
    # the parts of all outputs are combined in one more, sums over groups in another and spread, counts of three stages are added up, and
    # files are listed.
    combined = ("top_k" in config.output_tables) + 2 * ("group_influence" in config.output_tables)
    combined += bool(config.make_curvature().passes) and config.removal == "first_order"
    passes = config.make_curvature().passes
    assert len(labels) == 6 + bool(passes) + passes + combined + config.second_order_groups + config.solver_passes, labels


def test_saved_curvature_needs_no_combine(job: DigitsJob, tmp_path: pathlib.Path, finished: typing.Any) -> None:
    pipeline = beam.Pipeline(FnApiRunner())
    build(pipeline, job.config(tmp_path / "out", curvature_path=str(finished.output / "curvature")))
    found = crossings(pipeline)
    check(found)
    assert not [crossing for crossing in found if StatisticPart in crossing.types]


def _batches(_: object) -> Iterator[ExampleBatch]:
    yield ExampleBatch(np.array(["a"], dtype=object), np.zeros((1, 2)), np.zeros(1))


@pytest.mark.parametrize("hint", [ExampleBatch, np.ndarray, bytes, None], ids=["batch", "array", "bytes", "any"])
@pytest.mark.parametrize("how", ["reshuffle", "group", "combine", "side"])
def test_a_bad_graph_is_caught(hint: type | None, how: str) -> None:
    pipeline = beam.Pipeline(FnApiRunner())
    start = pipeline | beam.Create([None], reshuffle=False)
    batches: typing.Any = start | "Read" >> beam.FlatMap(_batches)
    if hint is not None:
        batches = start | "Typed" >> beam.FlatMap(_batches).with_output_types(hint)
    keyed = batches | "Key" >> beam.WithKeys(0)
    if how == "reshuffle":
        _ = batches | beam.Reshuffle()
    elif how == "group":
        _ = keyed | beam.GroupByKey()
    elif how == "combine":
        _ = keyed | beam.CombinePerKey(max)
    else:
        _ = start | "Use" >> beam.Map(lambda element, side: element, AsIter(batches))
    with pytest.raises(AssertionError):
        check(crossings(pipeline))
