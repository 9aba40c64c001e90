"""How well does each curvature predict real retraining? LDS and leave-one-out on scikit-learn's digits, beside other systems.

An MLP 64-32-10 on 1,500 digits, all its 2,410 weights, with 50 retrainings on random halves and 100 single removals, all real
(`tests/data/lds_digits.npz`). One damping rule for every curvature.

    python -m benchmarks.lds [--curvatures gauss_newton,exact] [--damping auto]
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import time

import influence_ops.device  # sets TensorFlow's log level before it is imported

influence_ops.device.configure_tensorflow()

import keras  # noqa: E402  (after the log level is set)
import numpy as np  # noqa: E402

from influence_ops import ExampleBatch  # noqa: E402
from influence_ops.curvature import CURVATURES, FinishOptions, curvature_by_name  # noqa: E402
from influence_ops.evaluation.correlation import bootstrap_error, mean_over_columns, pearson  # noqa: E402
from influence_ops.evaluation.lds import linear_datamodelling_score  # noqa: E402
from influence_ops.in_memory import fit_curvature  # noqa: E402
from influence_ops.model import InfluenceModel  # noqa: E402
from influence_ops.scores import ScoreOptions, Scorer, concatenate_queries, embed_queries  # noqa: E402

DATA = pathlib.Path(__file__).parent.parent / "tests" / "data" / "lds_digits.npz"
WEIGHT_DECAY = 1e-3
BATCH = 250


@dataclasses.dataclass(frozen=True)
class Measured:
    """One curvature's figures: LDS and LOO r (the mean over test points) with their standard errors, λ, CPU seconds."""

    curvature: str
    damping: float
    cpu: float
    lds: float
    lds_error: float
    loo: float
    loo_error: float


def load() -> dict[str, np.ndarray]:
    """The arrays of the reference."""
    return dict(np.load(DATA))


def make_model(data: dict[str, np.ndarray], prefix: str = "base") -> InfluenceModel:
    """The network with the reference's weights, all watched, in float64 from the start so that no weight is rounded."""
    inputs = keras.Input((64,), dtype="float64", name="x")
    hidden = keras.layers.Dense(32, activation="relu", dtype="float64", name="hidden")(inputs)
    network = keras.Model(inputs, keras.layers.Dense(10, dtype="float64", name="logits")(hidden))
    w1, b1, w2, b2 = (data[f"{prefix}_{name}"] for name in ("W1", "b1", "W2", "b2"))
    network.set_weights([w1.T, b1, w2.T, b2])
    return InfluenceModel(network, loss_function="softmax_cross_entropy", weights="all", weight_decay=WEIGHT_DECAY)


def batches(data: dict[str, np.ndarray], split: str) -> list[ExampleBatch]:
    """The split in batches; an example's id is its row."""
    x, y = data[f"X_{split}"], data[f"y_{split}"]
    ids = np.arange(len(x)).astype(str).astype(object)
    return [ExampleBatch(ids[s : s + BATCH], x[s : s + BATCH], y[s : s + BATCH]) for s in range(0, len(x), BATCH)]


def scores_of(model: InfluenceModel, data: dict[str, np.ndarray], curvature: str, options: FinishOptions) -> tuple[np.ndarray, float]:
    """The influence of every training example on every test point, [T, N], and λ."""
    train = batches(data, "train")
    preconditioner = fit_curvature(model, curvature_by_name(curvature), train, options).bind(model)
    blocks = [embed_queries(model, preconditioner, batch)[0] for batch in batches(data, "test")]
    scorer = Scorer(model, preconditioner, concatenate_queries(blocks, len(data["X_test"])), ScoreOptions())
    scores = np.concatenate([scorer.score(batch).scores[0] for batch in train], axis=1)
    return scores, float(preconditioner.meta["damping"])


def measure(model: InfluenceModel, data: dict[str, np.ndarray], curvature: str, options: FinishOptions) -> Measured:
    """Fits, scores, and compares with the retrainings."""
    started = time.process_time()
    scores, damping = scores_of(model, data, curvature, options)
    cpu = time.process_time() - started
    lds = linear_datamodelling_score(data["subset_masks"] @ scores.T, data["subset_test_loss"])
    predicted, actual = scores[:, data["loo_idx"]].T, data["loo_test_loss"] - data["base_test_loss"]
    loo = mean_over_columns(pearson(predicted, actual))
    loo_error = bootstrap_error(lambda rows: mean_over_columns(pearson(predicted[rows], actual[rows])), len(actual))
    return Measured(curvature, damping, cpu, lds.mean, lds.standard_error, loo, loo_error)


def main() -> int:
    """Prints one row for each curvature."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curvatures", default=",".join(CURVATURES), help="names, separated by commas (default: the whole table)")
    parser.add_argument("--damping", default="auto", help="λ for all of them, or auto, the program's own rule (default)")
    parser.add_argument("--rank", type=int, help="of curvatures that have one")
    arguments = parser.parse_args()
    damping = arguments.damping if arguments.damping == "auto" else float(arguments.damping)
    data = load()
    model = make_model(data)
    print(f"{'curvature':<22}{'damping':>10}{'CPU s':>8}{'LDS':>8} ± s.e.{'LOO r':>9} ± s.e.")
    for name in arguments.curvatures.split(","):
        try:
            m = measure(model, data, name, FinishOptions(damping, rank=arguments.rank))
        except ValueError as error:
            print(f"{name:<22}refused: {error}", flush=True)
            continue
        print(f"{name:<22}{m.damping:>10.3g}{m.cpu:>8.1f}{m.lds:>8.3f} ± {m.lds_error:.3f}{m.loo:>8.3f} ± {m.loo_error:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
