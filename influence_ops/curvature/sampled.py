"""Curvatures whose statistic is a seeded sample of the training data, and one that fits any other on such a sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from beam_influence.influence_ops.curvature.base import Curvature, FinishOptions, Preconditioner, Statistic, fit
from beam_influence.influence_ops.curvature.sample import Sample, from_arrays, to_arrays
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.results.text_arrays import bytes_to_texts, texts_to_bytes
from beam_influence.influence_ops.settings import SampleSettings

SAMPLE = "sample"
_SEEN = "seen"
_IDS = "ids"
_BATCH = 256


class SampleCurvature(Curvature):
    """The shared part: a statistic of one `Sample`."""

    passes = 1
    Settings = SampleSettings

    def create(self, model: ExplainedModel) -> Statistic:
        return {SAMPLE: Sample(self.settings.n_samples, self.settings.seed)}

    def add(self, model: ExplainedModel, statistic: Statistic, batch: ExampleBatch) -> Statistic:
        statistic[SAMPLE].add(batch)
        return statistic

    def merge_part(self, name: str, a: Any, b: Any) -> Any:
        a.merge(b)
        return a

    def pack_part(self, name: str, part: Any) -> dict[str, np.ndarray]:
        arrays = {} if part.batch is None else to_arrays(part.batch)
        if part.batch is not None:  # a drawn label depends on the id
            arrays[_IDS] = texts_to_bytes(part.batch.ids)
        return {**arrays, _SEEN: np.array([part.seen])}

    def unpack_part(self, name: str, arrays: Mapping[str, np.ndarray]) -> Any:
        sample = Sample(self.settings.n_samples, self.settings.seed)
        sample.seen = int(arrays[_SEEN][0])
        if _IDS in arrays:
            batch = from_arrays({key: array for key, array in arrays.items() if key not in (_SEEN, _IDS)})
            sample.batch = dataclasses.replace(batch, ids=bytes_to_texts(arrays[_IDS]))
        return sample


class FittedOnSample(SampleCurvature):
    """Any curvature, made from a sample in place of all data (`n_samples_for_hessian`)."""

    name: ClassVar[str] = "fitted_on_sample"

    def __init__(self, inner: Curvature, n_samples: int, seed: int = 0):
        super().__init__(SampleSettings(n_samples=n_samples, seed=seed))
        self.inner = inner
        self.systems, self.needs_hessian = inner.systems, inner.needs_hessian

    def finish(self, model: ExplainedModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
        sample: Sample = statistic[SAMPLE]
        return with_examples(fit(model, self.inner, lambda: sample.batches(_BATCH), options), sample)


def with_examples(preconditioner: Preconditioner, sample: Sample) -> Preconditioner:
    """The operator, with n the size of the whole training set: the unit of loss_change depends on it."""
    used = 0 if sample.batch is None else len(sample.batch)
    meta = {**preconditioner.meta, "examples": sample.seen, "examples_used": used, "sample_seed": sample.seed}
    return type(preconditioner)(preconditioner.arrays, meta)


def mean_hessian_products(model: ExplainedModel, batches: Iterable[ExampleBatch], vectors: np.ndarray) -> np.ndarray:
    """(1/n Σ ∇²ℓ + ∇²R) v for each row v: [R, P]."""
    total = np.zeros_like(vectors)
    count = 0
    for batch in batches:
        total += model.hessian_vector_products(batch, vectors)
        count += len(batch)
    return total / count + model.regularizer_products(vectors)
