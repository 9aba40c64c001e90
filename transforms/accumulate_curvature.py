"""The curvature's statistic over the training data: summed in each bundle, then part by part over all workers."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.utils.shared import Shared
from apache_beam.utils.windowed_value import WindowedValue

from beam_influence.influence_ops.curvature import Curvature, Statistic
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.elements import Shard, StatisticPart, at_end_of_bundle
from beam_influence.transforms.finish_curvature import with_state
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.read_shards import COUNTS, REJECTED, REPORT_TYPES, ShardDoFn, ShardReader
from beam_influence.transforms.sent_bytes import count_sent
from beam_influence.transforms.statistic_parts import MergePartsCombineFn, send_statistic
from beam_influence.transforms.typed import collection, outputs


class _Pass:
    """What one process accumulates with: the model, and the curvature at its pass."""

    def __init__(self, model: ExplainedModel, curvature: Curvature, states: list[Broadcast]):
        self.model = model
        self.curvature = with_state(curvature, states)
        self.layout = hashlib.sha256(repr((model.fingerprint(), curvature.name, [state.digest for state in states])).encode()).hexdigest()


class _AccumulateDoFn(ShardDoFn):
    def __init__(self, reader: ShardReader, model: ModelSpec, curvature: Curvature, work: str):
        super().__init__(reader)
        self._spec = model
        self._curvature = curvature
        self._work = work
        self._shared = Shared()
        self._statistic: Statistic | None = None

    def start_bundle(self) -> None:
        self._statistic = None

    def open(self, sides: tuple) -> None:
        states = list(sides)
        tag = f"{self._spec}|{[state.digest for state in states]}"
        self._pass = self._shared.acquire(lambda: _Pass(self._spec.session(), self._curvature, states), tag=tag)
        if self._statistic is None:
            self._statistic = self._pass.curvature.create(self._pass.model)

    def use(self, batch: ExampleBatch) -> list[Rejected]:
        assert self._statistic is not None
        self._statistic, rejected = self._pass.curvature.evaluate_and_add(self._pass.model, self._statistic, batch)
        return rejected

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._statistic is not None:
            statistic = self._pass.curvature.complete(self._statistic)
            count_sent(self._reader.stage, list(statistic.values()))
            for part in send_statistic(self._pass.curvature, statistic, self._pass.layout, self._work):
                yield at_end_of_bundle((part.name, part))
        self._statistic = None


@dataclasses.dataclass
class AccumulateCurvature(beam.PTransform):
    """Adds every training example to the curvature's statistic.

    Args:
      reader: reads the shards, under the stage's name.
      model: the model.
      curvature: what is accumulated.
      work: a folder for temporary files that all workers reach.
      state: what `AdvanceCurvature` made of the pass before, one `Broadcast`; None: this is the first pass.
      accelerator: Beam's resource hint for this step alone, or None.

    In: `Shard`. Out: `(name, StatisticPart)` pairs, one for each name; with them the `rejected` examples and
    `counts` of the pass, as a dictionary of PCollections.
    """

    reader: ShardReader
    model: ModelSpec
    curvature: Curvature
    work: str
    state: pvalue.PCollection[Broadcast] | None = None
    accelerator: str | None = None

    def expand(self, shards: pvalue.PCollection[Shard]) -> dict[str, pvalue.PCollection]:
        states = [] if self.state is None else [pvalue.AsSingleton(self.state)]
        accumulate = beam.ParDo(_AccumulateDoFn(self.reader, self.model, self.curvature, self.work), *states)
        if self.accelerator:
            accumulate.with_resource_hints(accelerator=self.accelerator)  # it changes `accumulate` and returns it
        typed = accumulate.with_output_types(tuple[str, StatisticPart], **REPORT_TYPES)
        accumulated = outputs(shards | "Accumulate" >> typed.with_outputs(REJECTED, COUNTS, main="parts"))
        parts = collection(accumulated["parts"] | "Merge" >> beam.CombinePerKey(MergePartsCombineFn(self.curvature)))
        return {"parts": parts, REJECTED: accumulated[REJECTED], COUNTS: accumulated[COUNTS]}
