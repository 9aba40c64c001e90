"""The merged statistic to the operator (H + λI)⁻¹, saved, and broadcast to every worker."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.typehints.decorators import IOTypeHints

from beam_influence.influence_ops.curvature import Curvature, FinishOptions, Preconditioner, Statistic, load_preconditioner
from beam_influence.influence_ops.curvature.saved import preconditioner_from
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.transforms.broadcast import INLINE_PART_LIMIT, Broadcast
from beam_influence.transforms.elements import StatisticPart
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.statistic_parts import merged_array
from beam_influence.transforms.typed import collection, run_once


def publish_preconditioner(preconditioner: Preconditioner, folder: str) -> Broadcast:
    """Saves the operator to `folder`, where later runs find it too, and makes it a broadcast."""
    return Broadcast.publish(preconditioner.arrays, {**preconditioner.meta, "kind": preconditioner.kind}, folder, is_kept=True)


def open_preconditioner(broadcast: Broadcast) -> Preconditioner:
    """The operator of a broadcast."""
    return preconditioner_from(*broadcast.open())


def open_operator(model: ModelSpec, preconditioner: Broadcast) -> tuple[ExplainedModel, Preconditioner]:
    """This process's model, and the operator for it."""
    session = model.session()
    return session, open_preconditioner(preconditioner).bind(session)


class _SavePartDoFn(beam.DoFn):
    """Adds up what is in files. Large parts go to files again, so that the finishing worker never holds them twice."""

    def __init__(self, curvature: Curvature, work: str):
        self._curvature = curvature
        self._work = work

    def process(self, element: tuple[str, StatisticPart]) -> Iterator[tuple[str, Broadcast]]:
        name, part = element
        finished = self._curvature.finish_part(name, merged_array(part))
        yield name, Broadcast.publish(self._curvature.pack_part(name, finished), {}, join(self._work, name), INLINE_PART_LIMIT)


def with_state(curvature: Curvature, states: Iterable[Broadcast]) -> Curvature:
    """The curvature at the pass that the state belongs to; with none, at its first."""
    for state in states:
        curvature = curvature.resume(state.open()[0])
    return curvature


def _statistic(curvature: Curvature, parts: Iterable[tuple[str, Broadcast]]) -> Statistic:
    return {name: curvature.unpack_part(name, broadcast.open()[0]) for name, broadcast in parts}


class _AdvanceDoFn(beam.DoFn):
    def __init__(self, model: ModelSpec, curvature: Curvature, folder: str):
        self._model = model
        self._curvature = curvature
        self._folder = folder

    def process(self, _: None, parts: Iterable[tuple[str, Broadcast]], *states: Broadcast) -> Iterator[Broadcast]:
        model = self._model.session()
        curvature = with_state(self._curvature, states)
        statistic = _statistic(curvature, parts) or curvature.create(model)
        yield Broadcast.publish(curvature.advance(model, statistic), {}, self._folder)

    def default_type_hints(self) -> IOTypeHints:
        """Beam takes the hint of `*states` for each side input's own."""
        return IOTypeHints.empty()


@dataclasses.dataclass
class AdvanceCurvature(beam.PTransform):
    """Makes of one pass's statistic what the next pass must know.

    Args:
      model, curvature: as for `Curvature.advance`.
      state: the state of the pass that ends, one `Broadcast`; None: it was the first.
      work: a folder for temporary files that all workers reach, this pass's own.

    In: `(name, StatisticPart)`. Out: one `Broadcast`.
    """

    model: ModelSpec
    curvature: Curvature
    state: pvalue.PCollection[Broadcast] | None
    work: str

    def expand(self, parts: pvalue.PCollection[tuple[str, StatisticPart]]) -> pvalue.PCollection[Broadcast]:
        save = beam.ParDo(_SavePartDoFn(self.curvature, join(self.work, "statistic"))).with_output_types(tuple[str, Broadcast])
        saved = collection(parts | "SaveParts" >> save)
        states = [] if self.state is None else [pvalue.AsSingleton(self.state)]
        advance = _AdvanceDoFn(self.model, self.curvature, join(self.work, "state"))
        return run_once(parts.pipeline, "Advance", advance, Broadcast, pvalue.AsIter(saved), *states)


class _FinishDoFn(beam.DoFn):
    def __init__(self, model: ModelSpec, curvature: Curvature, options: FinishOptions, folder: str):
        self._model = model
        self._curvature = curvature
        self._options = options
        self._folder = folder

    def process(self, _: None, parts: Iterable[tuple[str, Broadcast]], *states: Broadcast) -> Iterator[Broadcast]:
        model = self._model.session()
        curvature = with_state(self._curvature, states)
        preconditioner = curvature.finish(model, _statistic(curvature, parts) or curvature.create(model), self._options)
        yield publish_preconditioner(preconditioner, self._folder)

    def default_type_hints(self) -> IOTypeHints:
        """Beam takes the hint of `*states` for each side input's own."""
        return IOTypeHints.empty()


@dataclasses.dataclass
class FinishCurvature(beam.PTransform):
    """Makes and saves the operator.

    Args:
      model, curvature, options: as for `Curvature.finish`.
      folder: where the operator is saved.
      work: a folder for temporary files that all workers reach.
      state: the state of the last pass, one `Broadcast`; None: it was the first.

    In: `(name, StatisticPart)`, or an empty collection for a curvature without a pass. Out: one `Broadcast`.
    """

    model: ModelSpec
    curvature: Curvature
    options: FinishOptions
    folder: str
    work: str
    state: pvalue.PCollection[Broadcast] | None = None

    def expand(self, parts: pvalue.PCollection[tuple[str, StatisticPart]]) -> pvalue.PCollection[Broadcast]:
        save = beam.ParDo(_SavePartDoFn(self.curvature, join(self.work, "statistic"))).with_output_types(tuple[str, Broadcast])
        saved = collection(parts | "SaveParts" >> save)
        states = [] if self.state is None else [pvalue.AsSingleton(self.state)]
        finish = _FinishDoFn(self.model, self.curvature, self.options, self.folder)
        return run_once(parts.pipeline, "Finish", finish, Broadcast, pvalue.AsIter(saved), *states)


class _LoadDoFn(beam.DoFn):
    def __init__(self, model: ModelSpec, saved: str, folder: str):
        self._model = model
        self._saved = saved
        self._folder = folder

    def process(self, _: None) -> Iterator[Broadcast]:
        model = self._model.session()
        preconditioner = load_preconditioner(self._saved, BeamFiles())
        preconditioner.check(model)
        yield publish_preconditioner(preconditioner, self._folder)


@dataclasses.dataclass
class LoadCurvature(beam.PTransform):
    """Takes a saved operator in place of fitting one, and copies it beside the results.

    Args:
      model: the model, which must be the one that the operator was made for.
      saved: the folder of the operator.
      folder: where the copy goes.

    In: the pipeline. Out: one `Broadcast`.
    """

    model: ModelSpec
    saved: str
    folder: str

    def expand(self, pbegin: pvalue.PBegin) -> pvalue.PCollection[Broadcast]:
        return run_once(pbegin.pipeline, "Load", _LoadDoFn(self.model, self.saved, self.folder), Broadcast)
