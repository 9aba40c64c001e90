"""Floating-point operations of the network for one example, as TensorFlow's profiler counts them."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.profiler.model_analyzer import profile
from tensorflow.python.profiler.option_builder import ProfileOptionBuilder

from beam_influence.influence_ops.model.network import feed
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.pipelines.prepare import PreparedRun
from beam_influence.transforms.progress import Progress
from beam_influence.transforms.read_shards import ShardReader

_EXAMPLES = 8


def network_flops(prepared: PreparedRun) -> float:
    """Of the network, forward, for one example of the run's files; of checkpoints, of all of them. Operations that the profiler does not
    know, such as a `tf.while_loop`'s, count as none."""
    chosen = (prepared.test_features, prepared.test) if prepared.train_features is None else (prepared.train_features, prepared.train)
    features, shards = chosen
    if features is None:
        return 0.0
    reader = ShardReader("plan", features, _EXAMPLES, Progress(None))
    batches = (batch for shard in shards for batch, _ in reader.read(shard) if len(batch))
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # the profiler's own use of what TensorFlow calls old
    try:
        return _of_batches(prepared, batches)
    finally:
        logger.setLevel(level)


def _of_batches(prepared: PreparedRun, batches: Iterator[ExampleBatch]) -> float:
    total = 0.0
    for batch in itertools.islice(batches, 1):
        for part in prepared.model.session().parts:
            network = part.network
            inputs: Any = feed(network.model, batch.inputs, network.dtype)
            function = tf.function(lambda tensors, network=network: network.model(tensors, training=False))
            options: Any = ProfileOptionBuilder.float_operation()
            options["output"] = "none"
            with contextlib.redirect_stdout(io.StringIO()):
                counted: Any = profile(function.get_concrete_function(inputs).graph, options=options)
            total += counted.total_float_ops / len(batch)
    return total
