"""How well does each curvature predict real retraining? LDS and leave-one-out on scikit-learn's digits, beside other systems.

An MLP 64-32-10 on 1,500 digits, all its 2,410 weights, with 50 retrainings on random halves and 100 single removals, all real
(`tests/data/lds_digits.npz`). One damping rule for every curvature, fixed beforehand: the program's default. Options of the
program follow a curvature's name after colons.

    python -m benchmarks.lds [--curvatures gauss_newton,gauss_newton_cg:passes=5] [--damping auto]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

from beam_influence.influence_ops import device  # sets TensorFlow's log level before it is imported

device.configure_tensorflow()

import keras  # noqa: E402  (after the log level is set)
import numpy as np  # noqa: E402

from beam_influence.influence_ops.curvature import CURVATURES  # noqa: E402
from beam_influence.influence_ops.evaluation.lds import linear_datamodelling_score  # noqa: E402
from beam_influence.influence_ops.evaluation.leave_one_out import leave_one_out  # noqa: E402
from beam_influence.influence_ops.model.explained_model import ExplainedModel  # noqa: E402
from beam_influence.influence_ops.model.influence_model import InfluenceModel  # noqa: E402
from beam_influence.influence_ops.reading.example_batch import ExampleBatch  # noqa: E402
from beam_influence.influence_ops.scoring.in_memory import fit_curvature, solve_over  # noqa: E402
from beam_influence.influence_ops.scoring.query_block import concatenate_queries  # noqa: E402
from beam_influence.influence_ops.scoring.scores import ScoreOptions, Scorer, embed_queries  # noqa: E402
from beam_influence.pipelines.build import PASS_TOLERANCE  # noqa: E402
from beam_influence.pipelines.config import InfluenceConfig  # noqa: E402
from beam_influence.pipelines.options.option import option_type  # noqa: E402
from benchmarks.scale import write_examples  # noqa: E402

DATA = pathlib.Path(__file__).parent.parent / "tests" / "data" / "lds_digits.npz"
WEIGHT_DECAY = 1e-3
BATCH = 250

# conjugate_gradient and lissa solve with the raw Hessian, which is not positive definite here: they run to their caps.
_LEFT_OUT = ("conjugate_gradient", "lissa")

_VARIANTS = ("kfac:fisher=expected", "ekfac:fisher=expected", *(f"gauss_newton_cg:passes={passes}" for passes in (0, 1, 3, 5, 10)))

PEERS = """\
kronfluence EK-FAC, damping 1e-8 (its default) / 1e-3 / 0.1 × mean eigenvalue    6 CPU s   0.483 / 0.559 / 0.592
kronfluence K-FAC 1e-3                                                          5.0         0.565
pyDVL EK-FAC 1e-3                                                               7.8         0.591
dattri CG, 30 iterations, 2e-3                                                  3.4         0.717
dattri explicit / pyDVL direct / pyDVL CG 50, 2e-3                   7.7 / 17 / 37         0.685
pyDVL Nyström 200 / Arnoldi 100                                          7.5 / 20         0.668 / 0.584
captum Arnoldi 50 / LogIX LoGra / TracIn / TRAK one model     7 / 0.5 / 3.8 / 7.8         0.412 / 0.265 / 0.222 / 0.115"""


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


def write_files(data: dict[str, np.ndarray], folder: pathlib.Path) -> None:
    """The reference as files for the commands: the model and a TFRecord file of each split, and those with flipped labels."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(data).model.save(folder / "model.keras")
    make_model(data, "flip").model.save(folder / "flipped.keras")
    write_examples(folder / "train.tfrecord", data["X_train"], data["y_train"])
    write_examples(folder / "test.tfrecord", data["X_test"], data["y_test"])
    write_examples(folder / "flipped.tfrecord", data["X_train"], data["y_train_flipped"])
    (folder / "flipped.txt").write_text("".join(f"flipped.tfrecord:{row}\n" for row in np.flatnonzero(data["flip_mask"])))


def batches(data: dict[str, np.ndarray], split: str) -> list[ExampleBatch]:
    """The split in batches; an example's id is its row."""
    x, y = data[f"X_{split}"], data[f"y_{split}"]
    ids = np.arange(len(x)).astype(str).astype(object)
    return [ExampleBatch(ids[s : s + BATCH], x[s : s + BATCH], y[s : s + BATCH]) for s in range(0, len(x), BATCH)]


def scores_of(model: ExplainedModel, data: dict[str, np.ndarray], config: InfluenceConfig) -> tuple[np.ndarray, float]:
    """The influence of every training example on every test point, [T, N], and λ."""
    train = batches(data, "train")
    curvature = config.make_curvature()
    preconditioner = fit_curvature(model, curvature, train, config.finish_options()).bind(model)
    blocks = [embed_queries(model, preconditioner, batch)[0] for batch in batches(data, "test")]
    queries = concatenate_queries(blocks, len(data["X_test"]))
    if config.solver_passes and curvature.systems is not None:
        tolerance = config.tolerance or PASS_TOLERANCE
        queries = [solve_over(train, model, preconditioner, curvature.systems, block, config.solver_passes, tolerance) for block in queries]
    scorer = Scorer(model, preconditioner, queries, ScoreOptions())
    scores = np.concatenate([scorer.score(batch).scores[0] for batch in train], axis=1)
    return scores, float(preconditioner.meta["damping"])


def configuration(described: str, damping: str, **more: Any) -> InfluenceConfig:
    """The program's options for a curvature such as `arnoldi:rank=100:passes=8`, and more of them by name."""
    name, *options = described.split(":")
    chosen: dict[str, Any] = {"curvature": name, "damping": damping, "weights": "all", **more}
    types = {field.name: option_type(field, InfluenceConfig) for field in dataclasses.fields(InfluenceConfig)}
    for option in options:
        key, _, value = option.partition("=")
        if key not in types:
            raise ValueError(f"{described!r}: the program has no option --{key}")
        chosen[key] = types[key](value)
    return InfluenceConfig(model="reference", train="reference", test="reference", output="reference", outputs="scores", **chosen)


def measure(model: InfluenceModel, data: dict[str, np.ndarray], described: str, damping: str) -> Measured:
    """Fits, scores, and compares with the retrainings."""
    config = configuration(described, damping)
    started = time.process_time()
    scores, value = scores_of(model, data, config)
    cpu = time.process_time() - started
    lds = linear_datamodelling_score(data["subset_masks"] @ scores.T, data["subset_test_loss"])
    loo = leave_one_out(scores[:, data["loo_idx"]].T, data["loo_test_loss"] - data["base_test_loss"])
    return Measured(described, value, cpu, lds.mean, lds.standard_error, loo.pearson, loo.pearson_error)


def in_child(described: str, damping: str) -> Measured | str:
    """Measures in a process of its own, so that no curvature finds another's traced functions; a refusal as text."""
    command = [sys.executable, "-m", "benchmarks.lds", "--child", described, "--damping", damping]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found if isinstance(found, str) else Measured(**found)


def main() -> int:
    """Prints one row for each curvature."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ",".join([*(name for name in CURVATURES if name not in _LEFT_OUT), *_VARIANTS])
    parser.add_argument("--curvatures", default=every, help=f"names, separated by commas (default: {every})")
    parser.add_argument("--damping", default="auto", help="λ for all of them, or auto, the program's own rule (default)")
    parser.add_argument("--write", type=pathlib.Path, help="only write the model and the data to this folder, for the commands")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_files(load(), arguments.write)
        return 0
    if arguments.child:
        data = load()
        try:
            print(json.dumps(dataclasses.asdict(measure(make_model(data), data, arguments.child, arguments.damping))))
        except ValueError as error:
            print(json.dumps(str(error)))
        return 0
    print(f"{'curvature':<36}{'damping':>10}{'CPU s':>8}{'LDS':>8} ± s.e.{'LOO r':>9} ± s.e.")
    for described in arguments.curvatures.split(","):
        m = in_child(described, arguments.damping)
        if isinstance(m, str):
            print(f"{described:<36}refused: {m}", flush=True)
            continue
        errors = f"{m.lds:>8.3f} ± {m.lds_error:.3f}{m.loo:>8.3f} ± {m.loo_error:.3f}"
        print(f"{described:<36}{m.damping:>10.3g}{m.cpu:>8.1f}{errors}", flush=True)
    print(f"\nOther systems on the same retrainings, measured elsewhere by others, CPU seconds and LDS:\n{PEERS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
