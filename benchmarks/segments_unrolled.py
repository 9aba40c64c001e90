"""SOURCE beside the exact derivative of the same training, through all of its steps and all that its optimizer remembers.

The MLP 64-12-10 and the 400 digits of `segments`, trained in float64 by Keras's own optimizer in batches of 40. For each test point the
correlation over training examples, and the whole table's error relative to the derivative's norm.

    python -m benchmarks.segments_unrolled [--optimizers sgd,adam] [--regimes early]
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from typing import Any

from beam_influence.influence_ops import device  # sets TensorFlow's log level before it is imported

device.configure_tensorflow()

import keras  # noqa: E402  (after the log level is set)
import numpy as np  # noqa: E402

from beam_influence.influence_ops.model.checkpoints import CheckpointSum  # noqa: E402
from beam_influence.influence_ops.model.influence_model import InfluenceModel  # noqa: E402
from beam_influence.influence_ops.replay.batch_order import BatchOrder  # noqa: E402
from beam_influence.influence_ops.replay.training_run import TrainingRun, as_checkpoint  # noqa: E402
from beam_influence.influence_ops.replay.training_step import State, TrainingStep  # noqa: E402
from benchmarks.many_trainings import BATCH, DECAY, HIDDEN, TRAIN, Phase, load  # noqa: E402
from benchmarks.segments import ONE_OF, REGIMES, batch, cuts_of, scores  # noqa: E402

SEGMENTS = 3


def network(optimizer: str, phases: list[Phase]) -> Any:
    """The network before its training, compiled."""
    keras.utils.set_random_seed(0)
    penalty = keras.regularizers.L2(DECAY / 2)
    options: dict[str, Any] = {"dtype": "float64", "kernel_regularizer": penalty, "bias_regularizer": penalty}
    inputs = keras.Input((64,), dtype="float64")
    hidden = keras.layers.Dense(HIDDEN, activation="relu", **options)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(10, **options)(hidden))
    ends, rates = np.cumsum([phase.steps for phase in phases]).tolist(), [phase.rate for phase in phases]
    rate: Any = keras.optimizers.schedules.PiecewiseConstantDecay([end - 1 for end in ends[:-1]], rates)
    made = keras.optimizers.SGD(rate) if optimizer == "sgd" else keras.optimizers.Adam(rate)
    model.compile(made, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def checkpoint(run: TrainingRun, state: State, step: int) -> InfluenceModel:
    """The model after so many steps, with its optimizer."""
    given: Any = run.step.model.network.original
    made = keras.models.clone_model(given)
    made.compile(type(given.optimizer).from_config(given.optimizer.get_config()), given.loss)
    made.optimizer.build(made.trainable_variables)
    made.optimizer.iterations.assign(step)
    values = {_name(variable): value for variable, value in zip(run.step.variables, state, strict=True)}
    for variable in (*made.trainable_variables, *made.optimizer.variables):
        if _name(variable) in values:  # all but the number of steps and the learning rate
            variable.assign(values[_name(variable)])
    return InfluenceModel(made, weights="all")


def _name(variable: keras.Variable) -> str:
    return re.sub(r"^(adam|sgd)(_\d+)?/", "", variable.path)


def measure(optimizer: str, regime: str) -> None:
    """Prints the rows of one training."""
    data, phases = load(), REGIMES["adam" if optimizer == "adam" else "sgd"][regime]
    cuts, settings = cuts_of(phases, SEGMENTS)
    epochs = cuts[-1] // (TRAIN // BATCH)
    model = network(optimizer, phases)
    step = TrainingStep(InfluenceModel(model, weights="all"), model.optimizer)
    run = TrainingRun.of(step, batch(data.x, data.y), BatchOrder.of_fit(TRAIN, BATCH, epochs, 0), 1 << 30)
    run = dataclasses.replace(run, segment=1)
    states = {number: state for number, state in run.forward()}
    derivative = run.backward(lambda number: as_checkpoint(states[number]), batch(data.test_x, data.test_y))[1].T
    actual = -TRAIN * derivative  # as influence: of an example's part of the mean loss
    models = [checkpoint(run, states[cut], cut) for cut in cuts]
    print(f"\n{optimizer}, {regime}: {phases}")
    for name in [*dict.fromkeys(ONE_OF.values()), *ONE_OF]:
        found = scores(CheckpointSum(models), data, name, settings) if name in ONE_OF else scores(models[-1], data, name, {}, 0.0)
        each = [np.corrcoef(found[:, test], actual[:, test])[0, 1] for test in range(found.shape[1])]
        error = np.linalg.norm(found - actual) / np.linalg.norm(actual)
        print(f"{name:<22}correlation {np.mean(each):.3f}, error {error:.2f}", flush=True)


def main() -> int:
    """Measures each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", default="sgd,adam")
    parser.add_argument("--regimes", default="early", help="early, converged")
    options = parser.parse_args()
    for optimizer in options.optimizers.split(","):
        for regime in options.regimes.split(","):
            measure(optimizer, regime)
    return 0


if __name__ == "__main__":
    sys.exit(main())
