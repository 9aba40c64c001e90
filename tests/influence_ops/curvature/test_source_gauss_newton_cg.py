"""SOURCE by solves over the data, against its formula from `source_gauss_newton`'s own matrices in NumPy; and what is refused."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from beam_influence import CheckpointSum, FinishOptions
from beam_influence.influence_ops.curvature import curvature_by_name, fit
from beam_influence.influence_ops.curvature.segments import from_facts
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.scoring.in_memory import compute_in_memory

TRAIN, TEST = 40, 6
NAME = "source_gauss_newton_cg"


def rows(first: int, last: int) -> ExampleBatch:
    random = np.random.default_rng(5)
    x, y = random.normal(size=(TRAIN + TEST, 5)), random.integers(0, 3, TRAIN + TEST)
    return ExampleBatch(np.arange(TRAIN + TEST)[first:last].astype(str).astype(object), x[first:last], y[first:last])


def batches() -> list[ExampleBatch]:
    return [rows(0, 23), rows(23, TRAIN)]


def checkpoints(optimizer: Any, count: int) -> CheckpointSum:
    """A network of two layers at several points, with the slots of the optimizer; it need not have been trained."""
    parts = []
    for number in range(count):
        random = np.random.default_rng(number)
        network: Any = keras.Sequential(
            [keras.Input((5,), dtype="float64"), keras.layers.Dense(4, "tanh", dtype="float64"), keras.layers.Dense(3, dtype="float64")]
        )
        network.set_weights([random.normal(size=weight.shape) for weight in network.get_weights()])
        network.compile(optimizer())
        network.optimizer.build(network.trainable_variables)
        network.optimizer.iterations.assign(100 * (number + 1))
        for variable in getattr(network.optimizer, "_velocities", []):
            variable.assign(10 ** random.uniform(-5, -1, variable.shape))
        parts.append(InfluenceModel(network, loss_function="softmax_cross_entropy", weights="all", weight_decay=0.02))
    return CheckpointSum(parts, np.arange(1.0, count + 1).tolist())


def rational(model: ExplainedModel, settings: dict[str, Any], damping: float, gradients: np.ndarray) -> np.ndarray:
    """F and exp(−η K M) as one damped inverse, M from `source_gauss_newton`'s eigenvectors: [T, C·P]."""
    dense = fit(model, curvature_by_name("source_gauss_newton", settings=settings), batches, FinishOptions(damping))
    segments, weights = from_facts(dense.meta)
    size = model.parts[0].size
    left, found = gradients[:, -size:] / weights[-1], np.empty_like(gradients)
    for segment in reversed(range(len(segments.counts))):
        vectors, values, roots = (dense.arrays[f"{name}-{segment}"] for name in ("vectors", "eigenvalues", "roots"))
        horizon = segments.horizons[segment]
        inverse = (vectors / (values + 1 / horizon)) @ vectors.T
        for checkpoint in segments.checkpoints(segment):
            own = (left * roots) @ inverse * roots / segments.counts[segment]
            found[:, checkpoint * size : (checkpoint + 1) * size] = own / weights[checkpoint]
        left = (left * roots) @ inverse / horizon / roots
    return found


def solved(model: ExplainedModel, settings: dict[str, Any], damping: float, passes: int, **options: Any) -> np.ndarray:
    """Scores: [TEST, TRAIN]."""
    found = compute_in_memory(
        model, curvature_by_name(NAME, settings=settings), batches(), [rows(TRAIN, TRAIN + TEST)],
        damping=damping, passes=passes, outputs=("scores",), **options,
    )  # fmt: skip
    table = found.tables["scores"].to_pandas().pivot(index="test_id", columns="train_id", values="influence")
    return table.loc[[str(t) for t in range(TRAIN, TRAIN + TEST)], [str(i) for i in range(TRAIN)]].to_numpy()


def adam() -> Any:
    return keras.optimizers.Adam(0.01, epsilon=1e-3)


def decayed() -> Any:
    return keras.optimizers.SGD(0.01, momentum=0.9)


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        (decayed, {"segments": "1", "segment_steps": "30", "segment_rates": "0.06"}),
        (decayed, {"segments": "1,2", "segment_steps": "12,28", "segment_rates": "0.06,0.02"}),
        (adam, {"segments": "2,1", "segment_steps": "12,28", "segment_rates": "0.06,0.02"}),
    ],
)
def test_it_is_the_damped_inverse(optimizer: Any, settings: dict[str, Any]) -> None:
    """To the tolerance, whatever preconditions; and a pass brings it nearer than `source`, where it begins."""
    model = checkpoints(optimizer, sum(map(int, settings["segments"].split(","))))
    tests, train = (model.losses_and_gradients(batch)[1] for batch in (rows(TRAIN, TRAIN + TEST), rows(0, TRAIN)))
    left, right = np.asarray(tests, dtype=np.float64), np.asarray(train, dtype=np.float64)
    wanted = rational(model, settings, 0.01, left) @ right.T
    errors = [np.abs(solved(model, settings, 0.01, passes, tolerance=1e-10) - wanted).max() for passes in (0, 2, 200)]
    assert errors[0] > errors[1] and errors[2] < 1e-8 * np.abs(wanted).max(), errors / np.abs(wanted).max()
