"""`source`: the training run unrolled segment by segment, with EK-FAC as each segment's curvature; see `segments`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.curvature.base import FinishOptions, Preconditioner, Statistic
from beam_influence.influence_ops.curvature.ekfac import Ekfac
from beam_influence.influence_ops.curvature.kfac import Draw, Sums
from beam_influence.influence_ops.curvature.kronecker import DeviceCopies
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
from beam_influence.influence_ops.model.gradients import Block, BlockLayout, Factored, Layout, Materialised, OneHot
from beam_influence.influence_ops.model.gradients.blocks import materialise
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.settings import SegmentSettings, SourceSettings

_AT_ONCE = 1 << 24  # numbers of rotated gradients in memory at once
VARIANT = os.environ.get("VARIANT", "outside")


class SourcePreconditioner(Preconditioner):
    """From the last checkpoint's gradient of a test point to what each checkpoint's gradient of a training example is multiplied by.

    Attributes:
      arrays: for layer b of segment l, `inputs-l-b`, `errors-l-b` and `eigenvalues-l-b` of M, as of a Kronecker operator; for segment l,
        `roots-l` √P of its steps, [P] or [1].
      meta: besides the usual, `segments`, `horizons`, `root_weights`.
      layout: of the bound model.
    """

    kind: ClassVar[str] = "source"
    is_symmetric: ClassVar[bool] = False
    layout: Layout | None = None

    def bind(self, model: ExplainedModel) -> Preconditioner:
        self.check(model)
        bound = SourcePreconditioner(self.arrays, self.meta)
        object.__setattr__(bound, "layout", model.layout())  # a frozen dataclass
        return bound

    def apply(self, gradients: np.ndarray) -> np.ndarray:
        if self.layout is None:
            raise ValueError("a curvature by layers needs the model's layout; call bind(model) first")
        gradients = np.asarray(gradients, dtype=np.float64)
        solved = np.empty_like(gradients)
        largest = max(block.size for block in self.layout.blocks)
        step = max(1, _AT_ONCE // largest)
        for start in range(0, len(gradients), step):
            self._apply(gradients[start : start + step], solved[start : start + step], self.layout)
        return solved

    def _apply(self, gradients: np.ndarray, solved: np.ndarray, layout: Layout) -> None:
        segments, roots = from_facts(self.meta)
        layers = len(layout.blocks) // len(roots)
        for layer in range(layers):
            left = layout.blocks[-layers + layer].matrices(gradients) / roots[-1]
            for segment in reversed(range(len(segments.counts))):
                inputs, errors, values = (self.arrays[f"{name}-{segment}-{layer}"] for name in ("inputs", "errors", "eigenvalues"))
                of_steps = _of_block(layout.blocks[layer], self.arrays[f"roots-{segment}"])
                if VARIANT == "kron":
                    a, b = _sides(of_steps, layout.blocks[layer])
                    of_steps = np.outer(a, b)
                rotated = turned(left * of_steps, inputs, errors)
                own = turned(rotated * learned(values, segments.horizons[segment]), inputs.T, errors.T) * of_steps / segments.counts[segment]
                for checkpoint in segments.checkpoints(segment):
                    layout.blocks[checkpoint * layers + layer].write(own / roots[checkpoint], solved)
                left = turned(rotated * forgotten(values, segments.horizons[segment]), inputs.T, errors.T) / of_steps


class Source(Ekfac):
    """EK-FAC over the checkpoints of each segment: one basis and one mean of squares for all of a segment.

    It is of the gradients √P ∘ G, where √P of a layer [I, O] is taken as a bᵀ, so that they keep their factors: (a ∘ inputs) ⊗ (b ∘ errors).
    """

    name: ClassVar[str] = "source"
    Settings = SourceSettings
    operators = (SourcePreconditioner,)
    has_embedding = False
    takes_rank = "never"
    weighs_checkpoints = True
    _layers: int = 1  # of each checkpoint's blocks
    _scales: Mapping[str, np.ndarray] | None = None  # a and b of each segment's layers
    _scales_on_device: DeviceCopies

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
        layouts = model.layout(batch.inputs).blocks
        self._layers = len(layouts) // len(model.parts)
        if self._scales is None:
            self._scales, self._scales_on_device = _scales(scales_of(model, self._segments), layouts[: self._layers]), DeviceCopies()
        return super()._add_draws(model, statistic, batch, draws)

    def _bases_on_device(self, dtype: tf.DType) -> Sums:
        assert self._scales is not None
        return {**super()._bases_on_device(dtype), **self._scales_on_device.all(self._scales, dtype)}

    def _add_block(self, sums: Sums, number: int | str, layout: BlockLayout, block: Block, draw: Draw) -> None:
        name = f"{self._segments.of_checkpoint(int(number) // self._layers)}-{int(number) % self._layers}"
        if VARIANT == "true" and f"eigenvalues-{name}" is not None and self._bases is not None:
            block = Materialised(materialise(layout, block) * draw.bases[f"matrix-{name}"])
        else:
            block = _scaled(block, draw.bases[f"a-{name}"], draw.bases[f"b-{name}"])
        super()._add_block(sums, name, layout, block, draw)

    def finish(self, model: ExplainedModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
        bases, examples = self._bases, self._examples(statistic)
        assert bases is not None
        self._check(options)
        segments, blocks = self._segments, model.parts[0].layout().blocks
        penalties = model.parts[0].block_penalties()
        arrays = {name: array for name, array in bases.items()}
        for segment, (count, scales) in enumerate(zip(segments.counts, scales_of(model, segments), strict=True)):
            arrays[f"roots-{segment}"] = scales.roots
            for layer, (block, penalty) in enumerate(zip(blocks, penalties, strict=True)):
                name = f"{segment}-{layer}"
                a, b = _sides(_of_block(block, scales.roots), block)
                # Of λI and the regulariser, √P (λ + r) √P, the diagonal in the basis.
                added = np.outer(_in_basis(a**2, bases[f"inputs-{name}"]), _in_basis(b**2, bases[f"errors-{name}"]))
                decay = float(np.mean(_of_block(block, scales.decays)))
                mean = statistic[f"eigenvalues-{name}"] / (examples * count)
                arrays[f"eigenvalues-{name}"] = mean + (penalty + damping_of(options)) * added + decay
        values = np.concatenate([array.ravel() for name, array in arrays.items() if name.startswith("eigenvalues-")])
        meta = {
            "curvature": self.name,
            **facts_of(segments, model, examples, options),
            "smallest_eigenvalue": float(values.min()),
            "largest_eigenvalue": float(values.max()),
            "rank": model.size,
            "fisher": self.settings.fisher,
        }
        return SourcePreconditioner(arrays, meta).bind(model)


def _of_block(block: BlockLayout, flat: np.ndarray) -> np.ndarray:
    """What is [P] of one checkpoint's weights as a layer's [I, O]; [1, 1] where it is [1]."""
    return block.matrices(flat[None])[0] if flat.size > 1 else flat[None]


def _sides(roots: np.ndarray, block: BlockLayout) -> tuple[np.ndarray, np.ndarray]:
    """a [I] and b [O] with a bᵀ near √P [I, O]: 1/P has the rank 1 of its rows' and columns' sums (Shazeer & Stern 2018, 1804.04235)."""
    inverse = np.broadcast_to(roots, (block.rows, block.columns)) ** -2.0
    scale = inverse.mean() ** 0.5
    return (inverse.mean(axis=1) / scale) ** -0.5, (inverse.mean(axis=0) / scale) ** -0.5


def _scales(of_segments: list[StepScales], blocks: tuple[BlockLayout, ...]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for segment, scales in enumerate(of_segments):
        for layer, block in enumerate(blocks):
            found[f"a-{segment}-{layer}"], found[f"b-{segment}-{layer}"] = _sides(_of_block(block, scales.roots), block)
            if VARIANT == "true":
                found[f"matrix-{segment}-{layer}"] = np.broadcast_to(_of_block(block, scales.roots), (block.rows, block.columns)).copy()
    return found


def _scaled(block: Block, a: tf.Tensor, b: tf.Tensor) -> Block:
    """a bᵀ ∘ each gradient."""
    if isinstance(block, Materialised):
        return Materialised(block.values * a[:, None] * b)
    if isinstance(block, OneHot):
        return OneHot(block.ids, block.errors * tf.gather(a, block.ids)[:, :, None] * b)
    return Factored(block.inputs * a, block.errors * b)


def _in_basis(diagonal: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The diagonal of Uᵀ diag(d) U; vectors [0, 0] stand for the identity."""
    return diagonal @ vectors**2 if vectors.size else diagonal
