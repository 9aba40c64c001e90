"""The scoring kernel on a GPU: are its numbers the CPU's, how often does the host wait for it, and what share of the card's peak is it?

The networks of `benchmarks.networks`, EK-FAC of all weights (of the transformer: attention and dense layers) in float32, 1,000 test
points, synthetic examples that are in memory, so that reading is no part of it. Without a GPU the same runs on the CPU alone, and says so.
`--hlo` writes the whole kernel, from examples to the first 10, as XLA has it, with its inputs and the CPU's outputs: for a machine with
a GPU and JAX, and without TensorFlow.

    python -m benchmarks.gpu [--networks mlp,cnn] [--batches 50] [--batch_size 1024] [--test 1000] [--peak_tflops 67] [--hlo FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from beam_influence.influence_ops import device
from benchmarks import networks

TOP_K = 10


def main() -> int:
    """Measures each network, prints a line for each quantity; 1 where the two devices disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="mlp,cnn", help="which, separated by commas")
    parser.add_argument("--batches", type=int, default=50, help="scored on each device")
    parser.add_argument("--batch_size", type=int, default=1024, help="training examples in a batch")
    parser.add_argument("--test", type=int, default=1000, help="test points")
    parser.add_argument("--peak_tflops", type=float, help="the card's peak in float32, from its data sheet")
    parser.add_argument("--hlo", type=pathlib.Path, help="a folder: writes NETWORK.hlo and NETWORK.npz into it")
    options = parser.parse_args()
    device.configure_tensorflow()
    import tensorflow as tf

    cards = tf.config.list_physical_devices("GPU")
    names = ["/CPU:0", *(["/GPU:0"] if cards else [])]
    print(f"TensorFlow {tf.__version__}; {'a GPU' if cards else 'no GPU: what follows is of the CPU alone'}")
    agree = True
    for network in options.networks.split(","):
        found = {name: measure(network, name, options) for name in names}
        for name, one in found.items():
            rate, of_batch = one["flops"] / one["seconds"] / 1e12, 1 / options.batches
            share = f" ({rate / options.peak_tflops:.1%} of the peak)" if options.peak_tflops else ""
            print(
                f"{network:<4} {name}  {1e3 * one['seconds'] * of_batch:8.2f} ms a batch, {rate:.3f} TFLOP/s in the products{share}; "
                f"the host waited {one['transfers'] * of_batch:.2f} times a batch, for {one['bytes'] * of_batch / 1024:,.1f} KiB; "
                f"CPU {1e3 * one['cpu'] * of_batch:.0f} ms; by one function of XLA's {1e3 * one['xla']:.1f} ms, "
                f"CPU {1e3 * one['xla_cpu']:.0f} ms"
            )
        if cards:
            cpu, gpu = (found[name] for name in names)
            off = float(np.abs(cpu["values"] - gpu["values"]).max() / np.abs(cpu["values"]).max())
            same = float(np.mean([len({*a} & {*b}) / TOP_K for a, b in zip(cpu["ids"], gpu["ids"], strict=True)]))
            agree = agree and off < 1e-3 and same > 0.99
            print(f"{network:<4} of the CPU's top {TOP_K} the GPU has {same:.2%}; influence differs by {off:.1e} of the largest")
    return 0 if agree else 1


def measure(network: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The scoring of the batches on one device."""
    import keras
    import tensorflow as tf

    from beam_influence.influence_ops.curvature.base import FinishOptions
    from beam_influence.influence_ops.curvature.ekfac import Ekfac
    from beam_influence.influence_ops.model.influence_model import InfluenceModel
    from beam_influence.influence_ops.reading.example_batch import ExampleBatch
    from beam_influence.influence_ops.scoring.in_memory import fit_curvature
    from beam_influence.influence_ops.scoring.scores import ScoreOptions, Scorer, embed_queries
    from beam_influence.influence_ops.scoring.top_k import TopK

    rng = np.random.default_rng(1)
    draw = networks.draw_sequences if network == "transformer" else networks.draw_images
    inputs, labels = draw(rng, 4 * options.batch_size + options.test)

    def batch(rows: np.ndarray, number: int) -> ExampleBatch:
        return ExampleBatch(np.array([f"{number}:{row}" for row in rows], object), inputs[rows], labels[rows])

    size = options.batch_size
    batches = [batch(np.arange(first, first + size), first // size) for first in range(0, 4 * size, size)]
    with tf.device(name):
        keras.utils.set_random_seed(1)
        own = {"mlp": networks.make_mlp, "cnn": networks.make_cnn, "transformer": networks.make_transformer}[network]()
        watched = r".*(multi_head_attention|dense).*" if network == "transformer" else "all"
        model = InfluenceModel(own, weights=watched, loss_function="softmax_cross_entropy", precision="native")
        operator = fit_curvature(model, Ekfac(), batches, FinishOptions())
        tests, _ = embed_queries(model, operator, batch(np.arange(4 * size, len(inputs)), -1), ("solved",))
        scorer, top = Scorer(model, operator, [tests], ScoreOptions()), TopK(len(tests), TOP_K)
        scored = scorer.score(batches[0])  # traced
        TopK(len(tests), TOP_K).add(scored.scores[0], scored.ids)
        with transfers() as counted:
            began, used = time.monotonic(), time.process_time()
            for number in range(options.batches):
                scored = scorer.score(batches[number % len(batches)])
                top.add(scored.unfetched[0], np.array([f"{number}:{row}" for row in range(size)], object))
            values, ids = top.values, top.ids
            seconds, cpu = time.monotonic() - began, time.process_time() - used
        whole, given = kernel(model, scorer, batches[0])
        whole(*given)  # compiled
        began, used = time.monotonic(), time.process_time()
        for _ in range(5):
            for tensor in whole(*given):
                tensor.numpy()
        xla = {"xla": (time.monotonic() - began) / 5, "xla_cpu": (time.process_time() - used) / 5}
        if options.hlo:
            write_kernel(options.hlo / network, whole, given)
    flops = size * options.batches * sum(cost.flops for cost in scorer.costs)
    spent = {"cpu": cpu, "seconds": seconds, "flops": flops, "transfers": counted[0], "bytes": counted[1]}
    return {**xla, **spent, "values": values, "ids": ids}


def kernel(model: Any, scorer: Any, batch: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The scoring of a batch by one function that XLA compiles whole, and its inputs: examples, labels, weights, solutions.

    It gives the losses and whether they are finite [2, B], then the first `TOP_K` of each test point (`first_columns`).
    """
    import tensorflow as tf

    from beam_influence.influence_ops.model.gradients.blocks import bounds_of
    from beam_influence.influence_ops.scoring.top_k_on_device import first_columns

    _, gradients = model.losses_and_gradients(batch)
    (contraction,) = scorer.contractions(gradients)

    @tf.function(autograph=False, jit_compile=True)
    def whole(inputs: Any, labels: Any, weights: Any, solutions: Any) -> Any:
        losses, blocks = model.derivatives.losses_and_blocks(inputs, {"labels": labels}, weights)
        found = first_columns(contraction.of_blocks(solutions, *blocks), TOP_K, 1.0)
        return tf.stack([tf.cast(losses, tf.float64), bounds_of(*blocks, for_xla=True)]), *found

    examples = tf.constant(batch.inputs, model.inputs[0].dtype)
    return whole, (examples, tf.constant(batch.labels), tf.ones(len(batch), model.dtype), contraction.tensors)


def write_kernel(path: pathlib.Path, function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
    """The function as HLO; its inputs and what it captured, the model's weights; and its outputs."""
    import tensorflow as tf

    path.parent.mkdir(parents=True, exist_ok=True)
    whole: Any = function
    path.with_suffix(".hlo").write_bytes(whole.experimental_get_compiler_ir(*inputs)(stage="hlo_serialized"))
    traced = whole.get_concrete_function(*inputs)
    values = {id(variable.handle): variable.value() for variable in traced.graph.variables}
    given = [*tf.nest.flatten(inputs), *(values.get(id(each), each) for each in traced.captured_inputs)]
    found = tf.nest.flatten(whole(*inputs))
    arrays = {f"in{number}": each.numpy() for number, each in enumerate(given)}
    np.savez(path.with_suffix(".npz"), **arrays, **{f"out{number}": each.numpy() for number, each in enumerate(found)})


@contextlib.contextmanager
def transfers() -> Iterator[list[int]]:
    """How often a tensor is made an array, and of how many bytes. One that NumPy reads in place, on a CPU, is not seen."""
    from tensorflow.python.framework import ops

    tensors: Any = ops._EagerTensorBase
    counted, fetch = [0, 0], tensors._numpy

    def count(tensor: Any) -> Any:
        value = fetch(tensor)
        counted[0], counted[1] = counted[0] + 1, counted[1] + np.asarray(value).nbytes
        return value

    tensors._numpy = count
    try:
        yield counted
    finally:
        tensors._numpy = fetch


if __name__ == "__main__":
    sys.exit(main())
