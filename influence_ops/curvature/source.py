"""`source`: the training run unrolled segment by segment, with EK-FAC as each segment's curvature; see `segments`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import ClassVar

import numpy as np

from beam_influence.influence_ops.curvature.base import FinishOptions, Preconditioner, Statistic
from beam_influence.influence_ops.curvature.ekfac import Ekfac
from beam_influence.influence_ops.curvature.kfac import Draw, Sums
from beam_influence.influence_ops.curvature.optimizer_steps import StepScales
from beam_influence.influence_ops.curvature.segments import (
    Segments,
    check_segments,
    damping_of,
    facts_of,
    forgotten,
    from_facts,
    learned,
    scales_of,
    segments_of,
)
from beam_influence.influence_ops.curvature.solved_block import turned
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.gradients import Block, BlockLayout, Layout
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.settings import SegmentSettings, SourceSettings

AT_ONCE = 1 << 24  # numbers of rotated gradients in memory at once


class SourcePreconditioner(Preconditioner):
    """From the last checkpoint's gradient of a test point to what each checkpoint's gradient of a training example is multiplied by.

    Attributes:
      arrays: for layer b of segment l, `inputs-l-b` and `errors-l-b`, U as of a Kronecker operator, and of these directions `scales-l-b` P,
        [I, O] or [1, 1], and `eigenvalues-l-b` of M, [I, O].
      meta: besides the usual, `segments`, `horizons`, `root_weights`, `optimizers`.
      layout: of the bound model.
    """

    kind: ClassVar[str] = "source"
    is_symmetric: ClassVar[bool] = False
    layout: Layout | None = None

    def bind(self, model: ExplainedModel) -> Preconditioner:
        self.check(model)
        bound = type(self)(self.arrays, self.meta)
        object.__setattr__(bound, "layout", model.layout())  # a frozen dataclass
        return bound

    def apply(self, gradients: np.ndarray) -> np.ndarray:
        if self.layout is None:
            raise ValueError("a curvature by layers needs the model's layout; call bind(model) first")
        gradients = np.asarray(gradients, dtype=np.float64)
        solved = np.empty_like(gradients)
        largest = max(block.size for block in self.layout.blocks)
        step = max(1, AT_ONCE // largest)
        for start in range(0, len(gradients), step):
            self._apply(gradients[start : start + step], solved[start : start + step], self.layout)
        return solved

    def _apply(self, gradients: np.ndarray, solved: np.ndarray, layout: Layout) -> None:
        segments, roots = from_facts(self.meta)
        layers = len(layout.blocks) // len(roots)
        for layer in range(layers):
            left = layout.blocks[-layers + layer].matrices(gradients) / roots[-1]
            for segment in reversed(range(len(segments.counts))):
                names = (f"{name}-{segment}-{layer}" for name in ("inputs", "errors", "eigenvalues", "scales"))
                inputs, errors, values, scales = (self.arrays[name] for name in names)
                rotated = turned(left, inputs, errors)
                changes = rotated * (scales * learned(values, segments.horizons[segment]))
                own = turned(changes, inputs.T, errors.T) / segments.counts[segment]
                for checkpoint in segments.checkpoints(segment):
                    layout.blocks[checkpoint * layers + layer].write(own / roots[checkpoint], solved)
                left = turned(rotated * forgotten(values, segments.horizons[segment]), inputs.T, errors.T)


class Source(Ekfac):
    """EK-FAC over the checkpoints of each segment: one basis and one mean of squares for all of a segment.

    P and the decay κ of a step, diagonal in the weights, are taken as diagonal in the basis U of H, with uᵀ P u and uᵀ κ u of each
    direction u. So M is P's number times H's, plus κ's, and where a segment has learned a direction F is EK-FAC's H⁻¹, whatever P is.
    """

    name: ClassVar[str] = "source"
    Settings = SourceSettings
    operators = (SourcePreconditioner,)
    has_embedding = False
    takes_rank = "never"
    weighs_checkpoints = True
    _layers: int = 1  # of each checkpoint's blocks

    @property
    def _segments(self) -> Segments:
        assert isinstance(self.settings, SegmentSettings)
        return segments_of(self.settings)

    def create(self, model: ExplainedModel) -> Statistic:
        assert isinstance(self.settings, SegmentSettings)
        check_segments(model, self.settings)
        return super().create(model)

    def _add_draws(
        self, model: ExplainedModel, statistic: Statistic, batch: ExampleBatch, draws: Iterable[tuple[Block, ...]]
    ) -> Statistic:
        self._layers = len(model.layout(batch.inputs).blocks) // len(model.parts)
        return super()._add_draws(model, statistic, batch, draws)

    def _add_block(self, sums: Sums, number: int | str, layout: BlockLayout, block: Block, draw: Draw) -> None:
        segment = self._segments.of_checkpoint(int(number) // self._layers)
        super()._add_block(sums, f"{segment}-{int(number) % self._layers}", layout, block, draw)

    def finish(self, model: ExplainedModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
        bases, examples = self._bases, self._examples(statistic)
        assert bases is not None
        self._check(options)
        segments, blocks = self._segments, model.parts[0].layout().blocks
        penalties = model.parts[0].block_penalties()
        arrays = {name: array for name, array in bases.items()}
        for segment, (count, of_steps) in enumerate(zip(segments.counts, scales_of(model, segments), strict=True)):
            for layer, (block, penalty) in enumerate(zip(blocks, penalties, strict=True)):
                name = f"{segment}-{layer}"
                basis = functools.partial(_in_basis, block, bases[f"inputs-{name}"], bases[f"errors-{name}"])
                mean = statistic[f"eigenvalues-{name}"] / (examples * count)
                of_layer = self._of_layer(mean + penalty + damping_of(options), of_steps, segments.horizons[segment], basis)
                arrays |= {f"{kind}-{name}": array for kind, array in of_layer.items()}
        values = np.concatenate([array.ravel() for name, array in arrays.items() if name.startswith("eigenvalues-")])
        meta = {
            "curvature": self.name,
            **facts_of(segments, model, examples, options),
            "smallest_eigenvalue": float(values.min()),
            "largest_eigenvalue": float(values.max()),
            "rank": model.size,
            "fisher": self.settings.fisher,
        }
        return self.operators[0](arrays, meta).bind(model)

    def _of_layer(
        self, curvature: np.ndarray, steps: StepScales, horizon: float, in_basis: Callable[[np.ndarray], np.ndarray]
    ) -> dict[str, np.ndarray]:
        """A layer's arrays beside its basis.

        Args:
          curvature: of its directions, [I, O].
          horizon: η K.
          in_basis: uᵀ diag(d) u of these directions.
        """
        scales = in_basis(steps.scales)
        return {"scales": scales, "eigenvalues": scales * curvature + in_basis(steps.decays)}


def _in_basis(block: BlockLayout, inputs: np.ndarray, errors: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """uᵀ diag(d) u of a layer's directions u = (column of `inputs`) ⊗ (column of `errors`), d of all weights [P]: [I, O]; of [1], d itself.

    Vectors [0, 0] stand for the identity.
    """
    if flat.size == 1:
        return flat[None]
    return turned(block.matrices(flat[None]), inputs**2, errors**2)[0]
