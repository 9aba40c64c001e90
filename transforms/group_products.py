"""The second pass of second-order group influence: each group's Hessian times its own step, summed over its examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.utils.windowed_value import WindowedValue

from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.results.text_arrays import bytes_to_texts, texts_to_bytes
from beam_influence.influence_ops.scoring.group_sums import GroupSums
from beam_influence.influence_ops.scoring.groups import add_hessian_products, first_steps, group_vectors
from beam_influence.influence_ops.scoring.outputs.groups import GRADIENTS, GROUPS, PRODUCTS
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.elements import Part, PartKey, Shard, at_end_of_bundle
from beam_influence.transforms.files import join
from beam_influence.transforms.finish_curvature import open_operator
from beam_influence.transforms.merging import PartsCombineFn
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.read_shards import REPORT_TYPES, ShardDoFn, ShardReader
from beam_influence.transforms.sent_bytes import count_sent
from beam_influence.transforms.typed import collection, outputs, run_once


class _StepsDoFn(beam.DoFn):
    def __init__(self, model: ModelSpec, work: str):
        self._model = model
        self._work = work

    def process(self, _: None, preconditioner: Broadcast, gradients: tuple[PartKey, GroupSums]) -> Iterator[Broadcast]:
        model, operator = open_operator(self._model, preconditioner)
        groups = group_vectors(operator, gradients[1])
        arrays = {"names": texts_to_bytes(groups.names), "steps": first_steps(model, operator, groups)}
        yield Broadcast.publish(arrays, {}, join(self._work, "group_steps"))


class _ProductsDoFn(ShardDoFn):
    def __init__(self, reader: ShardReader, model: ModelSpec):
        super().__init__(reader)
        self._spec = model
        self._sums: GroupSums | None = None

    def start_bundle(self) -> None:
        self._sums = None

    def open(self, sides: tuple) -> None:
        (steps,) = sides
        self._model = self._spec.session()
        if self._sums is None:
            arrays, _ = steps.open()
            self._names = list(bytes_to_texts(arrays["names"]))
            self._steps = arrays["steps"]
            self._sums = GroupSums(self._model.size)

    def use(self, batch: ExampleBatch) -> list[Rejected]:
        assert self._sums is not None
        add_hessian_products(self._model, self._sums, batch, self._names, self._steps)
        return []

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._sums is not None:
            count_sent(self._reader.stage, [self._sums])
            yield at_end_of_bundle(((GROUPS, PRODUCTS), self._sums))
        self._sums = None


@dataclasses.dataclass
class MultiplyGroups(beam.PTransform):
    """Σ_{i∈G} ∇²ℓ(z_i) s_G for each group G and its step s_G; see `beam_influence.influence_ops.scoring.groups`.

    Args:
      reader: reads the training shards.
      model: the model.
      preconditioner: the operator, one `Broadcast`.
      parts: (`PartKey`, `Part`), over all training data; the groups' gradient sums are among them.
      work: a folder for temporary files that all workers reach.

    In: `Shard`. Out: `parts`, and the groups' part `PRODUCTS`, over all training data too.
    """

    reader: ShardReader
    model: ModelSpec
    preconditioner: pvalue.PCollection[Broadcast]
    parts: pvalue.PCollection[tuple[PartKey, Part]]
    work: str

    def expand(self, shards: pvalue.PCollection[Shard]) -> pvalue.PCollection[tuple[PartKey, Part]]:
        only = beam.Filter(lambda element: element[0] == (GROUPS, GRADIENTS)).with_output_types(tuple[PartKey, Part])
        gradients = collection(self.parts | "Gradients" >> only)
        sides = (pvalue.AsSingleton(self.preconditioner), pvalue.AsSingleton(gradients))
        steps = run_once(shards.pipeline, "Steps", _StepsDoFn(self.model, self.work), Broadcast, *sides)
        multiply = beam.ParDo(_ProductsDoFn(self.reader, self.model), pvalue.AsSingleton(steps))
        typed = multiply.with_output_types(tuple[PartKey, Part], **REPORT_TYPES)
        multiplied = outputs(shards | "Multiply" >> typed.with_outputs(*REPORT_TYPES, main=PRODUCTS))
        products = collection(multiplied[PRODUCTS] | "Add" >> beam.CombinePerKey(PartsCombineFn()))
        return collection((self.parts, products) | "Both" >> beam.Flatten())
