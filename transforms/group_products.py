"""The second pass of second-order group influence: each group's Hessian times its own step, summed over its examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
from apache_beam import pvalue
from apache_beam.utils.windowed_value import WindowedValue

from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.results.text_arrays import bytes_to_texts, texts_to_bytes
from beam_influence.influence_ops.scoring.group_sums import GroupSums
from beam_influence.influence_ops.scoring.groups import add_hessian_products, first_steps, group_vectors
from beam_influence.influence_ops.scoring.outputs.groups import GRADIENTS, GROUPS, PRODUCTS
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.elements import Bucket, GroupBlock, Shard, at_end_of_bundle
from beam_influence.transforms.files import join
from beam_influence.transforms.finish_curvature import open_operator
from beam_influence.transforms.group_blocks import MergeGroups, open_groups, send_groups
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.read_shards import REPORT_TYPES, ShardDoFn, ShardReader
from beam_influence.transforms.sent_bytes import count_sent
from beam_influence.transforms.typed import collection, outputs


class _StepsDoFn(beam.DoFn):
    def __init__(self, model: ModelSpec, work: str):
        self._model = model
        self._work = work

    def process(self, element: tuple[Bucket, GroupBlock], preconditioner: Broadcast) -> Iterator[Broadcast]:
        model, operator = open_operator(self._model, preconditioner)
        groups = group_vectors(operator, open_groups([element[1]], {})[GRADIENTS])
        arrays = {"names": texts_to_bytes(groups.names), "steps": first_steps(model, operator, groups)}
        yield Broadcast.publish(arrays, {}, join(self._work, "group_steps", element[1].saved.digest), inline_limit=0)


class _ProductsDoFn(ShardDoFn):
    def __init__(self, wanted: MultiplyGroups):
        super().__init__(wanted.reader)
        self._spec = wanted.model
        self._work = wanted.work
        self._group_bytes = wanted.group_bytes
        self._sums: GroupSums | None = None
        self._sent: list[tuple[Bucket, GroupBlock]] = []
        self._steps: dict[str, np.ndarray] = {}

    def start_bundle(self) -> None:
        self._sums, self._sent = None, []

    def open(self, sides: tuple) -> None:
        self._model = self._spec.session()
        if self._sums is None:
            opened = [steps.open()[0] for steps in sides[0]]
            self._steps = {name: step for each in opened for name, step in zip(bytes_to_texts(each["names"]), each["steps"], strict=True)}
            self._sums = GroupSums(self._model.size)

    def use(self, batch: ExampleBatch) -> list[Rejected]:
        assert self._sums is not None
        add_hessian_products(self._model, self._sums, batch, self._steps.__getitem__)
        self._send(self._group_bytes)
        return []

    def _send(self, least: int) -> None:
        if self._sums is not None and self._sums.nbytes >= least:
            self._sent += send_groups(GROUPS, {PRODUCTS: self._sums}, self._work)
            self._sums = GroupSums(self._model.size)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        self._send(0)
        count_sent(self._reader.stage, [block for _, block in self._sent])
        yield from map(at_end_of_bundle, self._sent)
        self._sums, self._sent, self._steps = None, [], {}


@dataclasses.dataclass
class MultiplyGroups(beam.PTransform):
    """Σ_{i∈G} ∇²ℓ(z_i) s_G for each group G and its step s_G; see `beam_influence.influence_ops.scoring.groups`.

    Args:
      reader: reads the training shards.
      model: the model.
      preconditioner: the operator, one `Broadcast`.
      sums: (`Bucket`, `GroupBlock`), to be added up; the sums of groups' gradients are among them.
      work: a folder for temporary files that all workers reach.
      group_bytes: what sums over groups may take in a worker before they leave it.

    In: `Shard`. Out: (`Bucket`, `GroupBlock`), the parts `PRODUCTS`, to be added up.
    """

    reader: ShardReader
    model: ModelSpec
    preconditioner: pvalue.PCollection[Broadcast]
    sums: pvalue.PCollection[tuple[Bucket, GroupBlock]]
    work: str
    group_bytes: int

    def expand(self, shards: pvalue.PCollection[Shard]) -> pvalue.PCollection[tuple[Bucket, GroupBlock]]:
        first = beam.ParDo(_StepsDoFn(self.model, self.work), pvalue.AsSingleton(self.preconditioner)).with_output_types(Broadcast)
        steps = collection(self.sums | MergeGroups(self.work, self.group_bytes) | "Steps" >> first)
        multiply = beam.ParDo(_ProductsDoFn(self), pvalue.AsIter(steps))
        typed = multiply.with_output_types(tuple[Bucket, GroupBlock], **REPORT_TYPES)
        return outputs(shards | "Multiply" >> typed.with_outputs(*REPORT_TYPES, main=PRODUCTS))[PRODUCTS]
