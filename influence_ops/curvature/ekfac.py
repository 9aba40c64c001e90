"""`ekfac`: K-FAC's basis with the eigenvalues that are right in it.

George et al. 2018 (1806.03884); for influence, Grosse et al. 2023 (2308.03296), equation 18. Two passes: the moments of
inputs and errors, then the second moment of the rotated gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.curvature.base import Curvature, FinishOptions, Preconditioner, Statistic
from beam_influence.influence_ops.curvature.kfac import CompiledSums, Draw, Kfac, Sums, accumulate
from beam_influence.influence_ops.curvature.kronecker import DeviceCopies, in_basis, kronecker, squared_sum
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.gradients import Block, BlockLayout


class Ekfac(Kfac):
    """(U_A ⊗ U_S) Λ (U_A ⊗ U_S)ᵀ for each layer, Λ = 1/n Σ_i (U_Aᵀ G_i U_S)².
    """

    name: ClassVar[str] = "ekfac"
    passes = 2
    _bases: Mapping[str, np.ndarray] | None = None
    _device: DeviceCopies

    def _bases_on_device(self, dtype: tf.DType) -> Sums:
        return {} if self._bases is None else self._device.all(self._bases, dtype)

    def _add_block(self, sums: Sums, number: int | str, layout: BlockLayout, block: Block, draw: Draw) -> None:
        if self._bases is None:
            super()._add_block(sums, number, layout, block, draw)
            return
        squares = squared_sum(layout, in_basis(draw.bases, number, block), draw.weights, draw.most)
        accumulate(sums, f"eigenvalues-{number}", squares)

    def advance(self, model: ExplainedModel, statistic: Statistic) -> dict[str, np.ndarray]:
        self._examples(statistic)
        return {name: side.vectors for name, side in statistic.items() if name.startswith(("inputs-", "errors-"))}

    def resume(self, arrays: Mapping[str, np.ndarray]) -> Curvature:
        later = copy.copy(self)
        later._bases = {name: np.asarray(array) for name, array in arrays.items()}
        later._device, later._compiled = DeviceCopies(), CompiledSums()
        later.passes = 1
        return later

    def finish(self, model: ExplainedModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
        bases = self._bases
        assert bases is not None
        examples = self._examples(statistic)
        self._check(options)
        blocks = range(len(model.layout().blocks))
        sides = [(bases[f"inputs-{number}"], bases[f"errors-{number}"]) for number in blocks]
        eigenvalues = [statistic[f"eigenvalues-{number}"] / examples for number in blocks]
        facts = {"fisher": self.settings.fisher}
        return kronecker(model, self.name, examples, sides, eigenvalues, options, self.systems is not None, facts)
