"""`arnoldi`: the largest eigenpairs of the curvature, by products with blocks of vectors; from a sample, or from all data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from beam_influence.influence_ops.curvature.base import COUNT, Curvature, FinishOptions, Preconditioner, Statistic, fit
from beam_influence.influence_ops.curvature.block_krylov import KrylovState, advance, eigenpairs, start
from beam_influence.influence_ops.curvature.low_rank import LowRankPreconditioner
from beam_influence.influence_ops.curvature.sample import Sample
from beam_influence.influence_ops.curvature.sampled import SAMPLE, SampleCurvature, with_examples
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.settings import ArnoldiSettings

_BLOCK_SIZE = 32  # of the iteration over a sample: as many products are computed in one vectorised pass
_DIMENSIONS = 2  # of the Krylov space, for each eigenpair that is kept: then those have converged
_PROBES = 16
_AUTO_FRACTION = 0.1
_BATCH = 256
_PART_BYTES = 32 << 20


class StreamedArnoldi(Curvature):
    """The largest eigenpairs over all training examples: each pass multiplies a block of vectors (Schioppa et al. 2022, 2112.03052).

    The statistic is [b, P] sums of products; the state between passes is the basis so far and the matrix projected on it.

    Args:
      settings: with their `passes`.
      done, state: how many of these are done, and what the last of them left.
    """

    name: ClassVar[str] = "arnoldi"
    settings: ArnoldiSettings

    def __init__(self, settings: ArnoldiSettings, done: int = 0, state: Mapping[str, np.ndarray] | None = None):
        assert settings.passes, "without passes it is over a sample: Arnoldi"
        super().__init__(settings)
        self.passes = settings.passes - done
        self.needs_hessian = settings.matrix == "hessian"
        self._done, self._state = done, state
        self._block_size = settings.block_size or -(-_DIMENSIONS * settings.rank // (settings.passes - 1))
        self._multiplied: np.ndarray | None = None

    def _vectors(self, model: ExplainedModel) -> np.ndarray:
        """What this pass multiplies: the block; in the first pass also the probes for the trace."""
        if self._state is not None:
            return np.asarray(self._state["block"])
        if self._multiplied is None:
            block = start(model.size, self._block_size, self.settings.seed).block
            self._multiplied = np.concatenate([block, _probes(model.size, self.settings.seed)])
        return self._multiplied

    def create(self, model: ExplainedModel) -> Statistic:
        vectors = self._vectors(model)
        parts = {name: np.zeros((rows.stop - rows.start, model.size)) for name, rows in _row_blocks(vectors)}
        return {COUNT: np.zeros(1, dtype=np.int64), **parts}

    def add(self, model: ExplainedModel, statistic: Statistic, batch: ExampleBatch) -> Statistic:
        vectors = self._vectors(model)
        if len(vectors):
            multiply = model.gauss_newton_products if self.settings.matrix == "gauss_newton" else model.hessian_vector_products
            products = multiply(batch, vectors)
            for name, rows in _row_blocks(vectors):
                statistic[name] += products[rows]
        statistic[COUNT] += len(batch)
        return statistic

    def advance(self, model: ExplainedModel, statistic: Statistic) -> dict[str, np.ndarray]:
        vectors = self._vectors(model)
        count = int(statistic[COUNT][0])
        if count == 0:
            raise ValueError("no training example is left to make a curvature from")
        of_data = np.concatenate([np.zeros((0, model.size)), *(statistic[name] for name, _ in _row_blocks(vectors))]) / count
        if self._state is None:
            krylov = start(model.size, self._block_size, self.settings.seed)
            kept = {COUNT: np.array([count]), "probe_images": of_data[len(krylov.block) :]}
        else:
            krylov = KrylovState(*(np.asarray(self._state[name]) for name in KrylovState._fields))
            kept = {name: np.asarray(self._state[name]) for name in (COUNT, "probe_images")}
            if int(kept[COUNT][0]) != count:
                before = int(kept[COUNT][0])
                raise ValueError(f"one pass read {before:,} training examples, another {count:,}: the files changed; start again")
        block = krylov.block
        return {**advance(krylov, of_data[: len(block)] + model.regularizer_products(block))._asdict(), **kept}

    def resume(self, arrays: Mapping[str, np.ndarray]) -> Curvature:
        return StreamedArnoldi(self.settings, self._done + 1, arrays)

    def finish(self, model: ExplainedModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
        if options.leave_one_out:
            raise ValueError(f"removal='newton' needs the whole matrix; use curvature gauss_newton or exact, not {self.name}")
        state = self.advance(model, statistic)
        krylov = KrylovState(*(state[name] for name in KrylovState._fields))
        values, vectors = eigenpairs(krylov)
        mean = _mean_eigenvalue(model, krylov, state["probe_images"], self.settings.seed)
        damping = _AUTO_FRACTION * max(mean, 0.0) if isinstance(options.damping, str) else float(options.damping)
        rank = min(options.rank or self.settings.rank, len(values))
        rcond = options.rcond if options.rcond is not None else model.size * np.finfo(model.dtype).eps
        kept = max(1, int((values[:rank] > rcond * max(values[0], 0.0)).sum()))
        values, vectors = np.maximum(values[:kept], 0.0), vectors[:kept]
        if values[0] + damping <= 0:
            raise ValueError(f"the {self.name} curvature has no positive eigenvalue; use a --damping above 0")
        rest = float(values[-1]) if kept == rank else 0.0  # the largest that the rest can be; after a 0, it is 0
        return LowRankPreconditioner(
            {"vectors": np.ascontiguousarray(vectors), "eigenvalues": values},
            {
                "curvature": self.name,
                "matrix": self.settings.matrix,
                "damping": damping,
                "damping_rule": options.damping if isinstance(options.damping, str) else "fixed",
                "leave_one_out": False,
                "examples": int(state[COUNT][0]),
                "size": model.size,
                "fingerprint": model.fingerprint(),
                "rank": kept,
                "rest": rest,
                "mean_eigenvalue": mean,
                "smallest_eigenvalue": float(values[-1]),
                "largest_eigenvalue": float(values[0]),
                "dimensions": len(krylov.basis),
            },
        )


class Arnoldi(SampleCurvature):
    """The largest eigenpairs over a sample of the training data; the rest of the spectrum is taken as equal to the smallest of them."""

    name: ClassVar[str] = "arnoldi"
    Settings = ArnoldiSettings
    operators = (LowRankPreconditioner,)
    has_embedding = True
    takes_rank = "always"
    index_rank = 256  # an index has no residual term, so it needs more eigenpairs: docs/index_and_query.md
    settings: ArnoldiSettings

    def __init__(self, settings: ArnoldiSettings | None = None):
        super().__init__(settings)
        self.needs_hessian = self.settings.matrix == "hessian"

    @classmethod
    def make(cls, settings: ArnoldiSettings) -> Curvature:
        return StreamedArnoldi(settings) if settings.passes else cls(settings)

    def finish(self, model: ExplainedModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
        sample: Sample = statistic[SAMPLE]
        rank = options.rank or self.settings.rank
        block_size = self.settings.block_size or _BLOCK_SIZE
        passes = max(2, 1 + -(-_DIMENSIONS * rank // block_size))
        streamed = StreamedArnoldi(dataclasses.replace(self.settings, rank=rank, block_size=block_size, passes=passes))
        return with_examples(fit(model, streamed, lambda: sample.batches(_BATCH), options), sample)


def _row_blocks(vectors: np.ndarray) -> list[tuple[str, slice]]:
    """Parts of the statistic: rows of at most `_PART_BYTES` together."""
    rows = max(1, _PART_BYTES // max(1, 8 * vectors.shape[1]))
    return [(f"rows-{first:09d}", slice(first, min(first + rows, len(vectors)))) for first in range(0, len(vectors), rows)]


def _probes(size: int, seed: int) -> np.ndarray:
    """±1 [probes, P], independent of the first block."""
    return np.random.default_rng([seed, 1]).choice([-1.0, 1.0], size=(_PROBES, size))


def _mean_eigenvalue(model: ExplainedModel, krylov: KrylovState, images: np.ndarray, seed: int) -> float:
    """trace(H)/P: the basis's part as it is, the rest by Hutchinson's estimator (Hutch++, Meyer et al. 2021, 2010.09649).

    Args:
      images: [probes, P], the data's part of H times the probes.
    """
    probes, basis = _probes(model.size, seed), krylov.basis
    penalty = float(np.einsum("rp,rp->", probes, model.regularizer_products(probes))) / len(probes)  # exact where it is diagonal
    of_data = krylov.projected - basis @ model.regularizer_products(basis).T
    along, across = probes @ basis.T, images @ basis.T
    outside = np.einsum("rp,rp->", probes, images) - 2 * np.einsum("rm,rm->", along, across)
    outside += np.einsum("rm,mk,rk->", along, of_data, along)
    return (float(np.trace(of_data)) + float(outside) / len(probes) + penalty) / model.size
