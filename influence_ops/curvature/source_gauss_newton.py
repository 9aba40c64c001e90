"""`source_gauss_newton`: the training run unrolled segment by segment, with each segment's whole Gauss–Newton matrix; see `segments`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from beam_influence.influence_ops.blas_threads import eigh
from beam_influence.influence_ops.curvature.base import COUNT, Curvature, FinishOptions, Preconditioner, Statistic
from beam_influence.influence_ops.curvature.dense import MAX_SIZE
from beam_influence.influence_ops.curvature.gauss_newton import GaussNewton
from beam_influence.influence_ops.curvature.segments import (
    check_segments,
    damping_of,
    facts_of,
    forgotten,
    from_facts,
    learned,
    scales_of,
    segments_of,
)
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.halving import Halving
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.settings import SegmentSettings


class SourceDensePreconditioner(Preconditioner):
    """From the last checkpoint's gradient of a test point to what each checkpoint's gradient of a training example is multiplied by.

    Arrays: for segment l, `vectors-l` [P, P] and `eigenvalues-l` [P] of M, P the weights of one checkpoint, and `roots-l` √P of its steps,
    [P] or [1]; see `segments`.
    """

    kind: ClassVar[str] = "source_dense"
    is_symmetric: ClassVar[bool] = False

    def apply(self, gradients: np.ndarray) -> np.ndarray:
        segments, roots = from_facts(self.meta)
        gradients = np.asarray(gradients, dtype=np.float64)
        count, size = len(gradients), gradients.shape[1] // len(roots)
        solved = np.empty_like(gradients)
        by_checkpoint = solved.reshape(count, len(roots), size)
        left = gradients[:, -size:] / roots[-1]
        for segment in reversed(range(len(segments.counts))):
            vectors, values, roots_of_steps = (self.arrays[f"{name}-{segment}"] for name in ("vectors", "eigenvalues", "roots"))
            rotated = (left * roots_of_steps) @ vectors
            own = (rotated * learned(values, segments.horizons[segment])) @ vectors.T * roots_of_steps / segments.counts[segment]
            for checkpoint in segments.checkpoints(segment):
                by_checkpoint[:, checkpoint] = own / roots[checkpoint]
            left = (rotated * forgotten(values, segments.horizons[segment])) @ vectors.T / roots_of_steps
        return solved


class SourceGaussNewton(Curvature):
    """The mean Gauss–Newton matrix over the checkpoints of each segment, decomposed."""

    name: ClassVar[str] = "source_gauss_newton"
    passes = 1
    Settings = SegmentSettings
    operators = (SourceDensePreconditioner,)
    weighs_checkpoints = True
    settings: SegmentSettings

    def create(self, model: ExplainedModel) -> Statistic:
        segments = segments_of(self.settings)
        check_segments(model, self.settings)
        size = model.parts[0].size
        if len(segments.counts) * size**2 > MAX_SIZE**2:
            raise ValueError(
                f"curvature {self.name!r} builds {len(segments.counts)} matrices of {size:,} × {size:,}, together more than one of "
                f"{MAX_SIZE:,} weights, which is what it can hold; watch fewer weights (--weights last), or use --curvature source"
            )
        blocks = GaussNewton().create(model.parts[0])
        return {f"{segment}-{name}": part.copy() for segment in range(len(segments.counts)) for name, part in blocks.items()}

    def add(self, model: ExplainedModel, statistic: Statistic, batch: ExampleBatch) -> Statistic:
        halving = Halving()
        for checkpoint, part in enumerate(model.parts):
            own = self._of_segment(statistic, segments_of(self.settings).of_checkpoint(checkpoint))

            def add_to_segment(some: ExampleBatch, part: InfluenceModel = part, own: Statistic = own) -> list[Rejected]:
                curvature = GaussNewton()
                curvature.complete(curvature.add(part, own, some))  # its arrays are changed in place
                return []

            if checkpoint == 0:
                add_to_segment(batch)  # one that is too large for the device is so before the first change
            else:
                halving.use(batch, add_to_segment)
        return statistic

    def _of_segment(self, statistic: Statistic, segment: int) -> Statistic:
        return {name.removeprefix(f"{segment}-"): part for name, part in statistic.items() if name.startswith(f"{segment}-")}

    def finish(self, model: ExplainedModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
        segments = segments_of(self.settings)
        examples = int(statistic[f"0-{COUNT}"][0]) // segments.counts[0]
        if examples == 0:
            raise ValueError("no training example is left to make a curvature from")
        if options.leave_one_out:
            raise ValueError(f"removal='newton' needs one whole matrix; use curvature gauss_newton or exact, not {self.name}")
        if options.rcond is not None:
            raise ValueError(f"rcond is of a pseudo-inverse, and {self.name} needs none; leave it out")
        arrays: dict[str, np.ndarray] = {}
        damping = damping_of(options)
        for segment, (count, (scales, decays)) in enumerate(zip(segments.counts, scales_of(model, segments), strict=True)):
            matrix = GaussNewton().assemble(model.parts[0], self._of_segment(statistic, segment), examples * count)
            roots = np.sqrt(scales)
            matrix[np.diag_indices_from(matrix)] += damping
            matrix *= roots[:, None]
            matrix *= roots
            matrix[np.diag_indices_from(matrix)] += decays
            arrays[f"roots-{segment}"] = roots
            arrays[f"eigenvalues-{segment}"], arrays[f"vectors-{segment}"] = eigh(matrix)
        values = np.concatenate([array for name, array in arrays.items() if name.startswith("eigenvalues-")])
        meta = {
            "curvature": self.name,
            **facts_of(segments, model, examples, options),
            "smallest_eigenvalue": float(values.min()),
            "largest_eigenvalue": float(values.max()),
            "rank": model.size,
        }
        return SourceDensePreconditioner(arrays, meta)
