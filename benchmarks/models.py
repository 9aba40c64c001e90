"""Which models work, how fast, and how right? EK-FAC of all weights of each, and two independent computations in float64.

    python -m benchmarks.models [NAME…] [--examples N] [--write]

Each model in a process of its own; seconds are of CPU, user and system. An epoch is the second of `model.fit`, in batches of 32, and
`again` the second time that EK-FAC is fitted and scores ten test points: without what TensorFlow takes to trace. The gradients are
compared with Keras's own tape, one example at a time, through a model that is built again with float64 as Keras's default; influence
on the last layer with the inverse of a Hessian by the same tape. `--write` keeps the table in docs/models.md, and its numbers in
models.json beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

TABLE = pathlib.Path(__file__).parent.parent / "docs" / "models.md"
COMPARED = 4  # examples whose gradients are compared
TRAIN, TEST = 12, 3  # of the exact Hessian
SMALL = 100  # weights of a last layer whose Hessian is computed
DAMPING = 0.01
LARGE = 256  # weights that make one output
SETTLED = 64  # examples whose statistics batch normalisations have
BATCH = 32
_START, _END = "<!-- table -->", "<!-- end of table -->"


def main() -> int:
    """Measures the models named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which models (default: all)")
    parser.add_argument("--examples", type=int, help="training examples of the epoch and of EK-FAC (default: each model's own)")
    parser.add_argument("--timeout", type=int, default=900, help="seconds for a model")
    parser.add_argument("--write", action="store_true", help="keep the table in docs/models.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        for found in measure(arguments.child, arguments.examples):  # each a line: what was measured stays if the process doesn't end
            print(json.dumps(found), flush=True)
        return 0
    from benchmarks.model_zoo import CASES

    unknown = set(arguments.names) - set(CASES)
    if unknown:
        parser.error(f"no model {sorted(unknown)[0]!r}; there are {', '.join(CASES)}")
    found = {}
    for name in arguments.names or CASES:
        needs = CASES[name].needs
        if needs is not None and importlib.util.find_spec(needs) is None:
            print(f"{name}: left out, since {needs} is not installed", flush=True)
            continue
        found[name] = in_child(name, arguments.examples, arguments.timeout)
        print(row(name, found[name]), flush=True)
    if arguments.write:
        keep(found)
    return 0


def in_child(name: str, examples: int | None, timeout: int) -> dict[str, Any]:
    """One model in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.models", "--child", name, *(["--examples", str(examples)] if examples else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as stopped:
        measured = (stopped.stdout or b"").decode().splitlines()
        return json.loads(measured[-1]) if measured else {"error": f"not done after {timeout} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["ended without a word"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, count: int | None) -> Iterator[dict[str, Any]]:
    """The row of one model, longer each time."""
    from beam_influence.influence_ops import device

    device.configure_tensorflow()
    import keras
    import numpy as np

    from benchmarks.model_zoo import CASES

    case = CASES[name]
    keras.utils.disable_interactive_logging()
    keras.utils.set_random_seed(1)
    model = case.build()
    rng = np.random.default_rng(2)
    model.set_weights([jittered(rng, weight) for weight in model.get_weights()])
    count = count or case.epoch_of
    inputs, labels = case.draw(rng, count)
    settle(model, inputs)
    weights = model.get_weights()
    found: dict[str, Any] = {"weights": int(sum(np.prod(v.shape) for v in model.trainable_variables)), "examples": count}
    explained, times = influence_times(model, inputs, labels)
    found |= times
    yield found
    found["epoch"] = epoch_seconds(model, inputs, labels)
    yield found
    model.set_weights(weights)
    found["again"] = again_seconds(explained, inputs, labels)
    yield found
    yield found | differences(case, model, weights, inputs, labels)


def jittered(rng: Any, weight: Any) -> Any:
    """No weight at its initial value; moving variances stay positive. Large kernels, random already, stay: what a deep network computes
    would grow layer by layer until it is the same for all examples."""
    is_float = weight.dtype.kind == "f" or weight.dtype.name == "bfloat16"
    is_large = weight.ndim > 1 and weight[..., 0].size > LARGE
    return weight + 0.1 * abs(rng.standard_normal(weight.shape)) if is_float and not is_large else weight


def settle(model: Any, inputs: Any) -> None:
    """Gives batch normalisations the statistics of some inputs, as training does: with those that they begin with, a deep network says the
    same of all examples."""
    import tensorflow as tf

    norms = [layer for layer in model._flatten_layers() if type(layer).__name__ == "BatchNormalization"]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    if norms:
        model(tf.nest.map_structure(lambda leaf: leaf[:SETTLED], inputs), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def batches(inputs: Any, labels: Any, size: int, first: int = 0, last: int | None = None) -> list[Any]:
    """`ExampleBatch`es of the examples from `first` to `last`."""
    import keras
    import numpy as np

    from beam_influence.influence_ops.reading.example_batch import ExampleBatch

    last = len(keras.tree.flatten(labels)[0]) if last is None else last

    def part(array: Any, rows: slice) -> Any:
        return {name: part(value, rows) for name, value in array.items()} if isinstance(array, dict) else array[rows]

    made = []
    for start in range(first, last, size):
        rows = slice(start, min(start + size, last))
        ids = np.array([str(row) for row in range(rows.start, rows.stop)], dtype=object)
        made.append(ExampleBatch(ids, part(inputs, rows), part(labels, rows)))
    return made


def influence_times(model: Any, inputs: Any, labels: Any) -> tuple[Any, dict[str, Any]]:
    """EK-FAC of all weights and the top 10 of 10 test points, in memory: the model, its seconds and the process's peak."""
    from beam_influence import InfluenceModel

    explained = InfluenceModel(model, weights="all", precision="native")
    began = time.process_time()
    explained.check(batches(inputs, labels, 6, 0, 6)[0])
    fit_and_score(explained, inputs, labels)
    return explained, {
        "seconds": time.process_time() - began,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "without_factors": explained.weights_without_factors,
    }


def again_seconds(explained: Any, inputs: Any, labels: Any) -> float:
    """The same, of functions that were traced before."""
    began = time.process_time()
    fit_and_score(explained, inputs, labels)
    return time.process_time() - began


def fit_and_score(explained: Any, inputs: Any, labels: Any) -> None:
    """What is measured."""
    from beam_influence import compute_in_memory

    compute_in_memory(explained, "ekfac", batches(inputs, labels, BATCH), batches(inputs, labels, 10, 0, 10), top_k=10)


def epoch_seconds(model: Any, inputs: Any, labels: Any) -> float:
    """The second epoch of training on the same examples."""
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(BATCH)
    model.fit(data, epochs=1)
    began = time.process_time()
    model.fit(data, epochs=1)
    return time.process_time() - began


def differences(case: Any, model: Any, weights: list[Any], inputs: Any, labels: Any) -> dict[str, Any]:
    """Of the float64 gradients of all weights, and of influence on the last layer: the largest, relative to the largest value."""
    import numpy as np

    from beam_influence import InfluenceModel, compute_in_memory

    explained = InfluenceModel(model, weights="all")
    mine = np.asarray(explained.losses_and_gradients(batches(inputs, labels, COMPARED, 0, COMPARED)[0])[1], np.float64)
    last = InfluenceModel(model, weights="last")
    scores = None
    if case.exact and last.size <= SMALL:
        together = batches(inputs, labels, TRAIN, 0, TRAIN), batches(inputs, labels, TEST, TRAIN, TRAIN + TEST)
        table = compute_in_memory(last, "exact", *together, damping=DAMPING, outputs=("scores",)).tables["scores"].to_pylist()
        pairs = {(row["test_id"], row["train_id"]): row["influence"] for row in table}
        scores = np.array([[pairs[str(TRAIN + t), str(i)] for i in range(TRAIN)] for t in range(TEST)])
    with in_float64():
        twin = case.build()
        twin.set_weights(weights)
        wanted = np.array([keras_gradient(twin, twin.trainable_variables, one) for one in batches(inputs, labels, 1, 0, COMPARED)])
        found = {"precision": explained.dtype, "gradients": float(np.abs(mine - wanted).max() / np.abs(wanted).max())}
        if scores is not None:
            wanted = keras_influence(twin, twin.trainable_variables[-len(last.variables) :], inputs, labels)
            found["influence"] = float(np.abs(scores - wanted).max() / np.abs(wanted).max())
    return found


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """A context in which Keras's default is float64."""
    import keras

    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def keras_influence(model: Any, variables: list[Any], inputs: Any, labels: Any) -> Any:
    """∇ℓ(t)ᵀ (H + λI)⁻¹ ∇ℓ(i) of the last `TEST` and the first `TRAIN` examples: [T, n]."""
    import numpy as np

    train, test = batches(inputs, labels, 1, 0, TRAIN), batches(inputs, labels, 1, TRAIN, TRAIN + TEST)
    hessian = np.mean([keras_hessian(model, variables, one) for one in train], axis=0)
    of_train, of_test = (np.array([keras_gradient(model, variables, one) for one in part]) for part in (train, test))
    return of_test @ np.linalg.solve(hessian + DAMPING * np.eye(len(hessian)), of_train.T)


def keras_loss(model: Any, one: Any) -> Any:
    """The compiled loss of a batch of one example, without regularisers."""
    import keras
    import tensorflow as tf

    def given(tree: Any) -> Any:
        return keras.tree.map_structure(lambda a: tf.constant(a.tolist()) if a.dtype == object else tf.convert_to_tensor(a), tree)

    inputs, labels = given(one.inputs), given(one.labels)
    return model._compile_loss(labels, model(inputs, training=False))


def keras_gradient(model: Any, variables: list[Any], one: Any) -> Any:
    """∇ℓ by Keras's own tape: [P]."""
    import numpy as np
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = keras_loss(model, one)
    values = [variable.value for variable in variables]
    found = tape.gradient(loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return np.concatenate([np.asarray(tf.convert_to_tensor(part)).ravel() for part in found])


def keras_hessian(model: Any, variables: list[Any], one: Any) -> Any:
    """∇²ℓ by two tapes: [P, P]."""
    import numpy as np
    import tensorflow as tf

    values = [variable.value for variable in variables]
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            loss = keras_loss(model, one)
        found = inner.gradient(loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        flat = tf.concat([tf.reshape(tf.convert_to_tensor(part), [-1]) for part in found], axis=0)
        entries = tf.unstack(flat)
    rows = []
    for entry in entries:
        parts = outer.gradient(entry, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        rows.append(np.concatenate([np.asarray(tf.convert_to_tensor(part)).ravel() for part in parts]))
    return np.array(rows)


def row(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    if "error" in found:
        return f"| {name} | {found['error']} | | | | | | | | |"
    seconds = [f"{found[name]:.2f}" if name in found else "–" for name in ("seconds", "again", "epoch")]
    seconds.append(f"{found['again'] / found['epoch']:.0f} ×" if "again" in found else "–")
    off = [f"{found[name]:.0e}" if name in found else "–" for name in ("gradients", "influence")]
    without = str(len(found["without_factors"]))
    counts = [f"{found['weights']:,}", f"{found['examples']:,}"]
    return f"| {' | '.join([name, *counts, *seconds, format(found['peak'], ',.0f'), without, *off])} |"


def keep(found: dict[str, Any]) -> None:
    """Puts the table in docs/models.md, with the rows of models that were not measured now as they were."""
    from benchmarks.model_zoo import CASES

    kept = TABLE.with_suffix(".json")
    every = {**(json.loads(kept.read_text()) if kept.exists() else {}), **found}
    every = {name: every[name] for name in CASES if name in every}
    kept.write_text(json.dumps(every, indent=1) + "\n")
    names = "Model|weights|examples|EK-FAC, s|again, s|epoch, s|times|peak MiB|without factors|gradients off|influence off".split("|")
    head = [f"| {' | '.join(names)} |", f"|---|{'---:|' * (len(names) - 1)}"]
    text = TABLE.read_text()
    before, after = text.split(_START)[0], text.split(_END)[1]
    TABLE.write_text("\n".join([before + _START, *head, *(row(name, facts) for name, facts in every.items()), _END + after]))


if __name__ == "__main__":
    sys.exit(main())
