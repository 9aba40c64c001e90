"""What `benchmarks.speed` has beside the scoring stage of the MLP: the same work with nothing around it, no Beam."""

from __future__ import annotations

import pathlib
import time
from typing import Any

from benchmarks import networks


def run(folder: pathlib.Path, examples: int) -> dict[str, float]:
    """Reads, decodes, differentiates and multiplies, with nothing around it."""
    from beam_influence.influence_ops import device

    device.configure_tensorflow()
    import keras
    import numpy as np
    import tensorflow as tf

    networks.make("mlp", folder)
    model: Any = keras.models.load_model(folder / "model.keras")
    (kernel, bias, head, head_bias) = (tf.constant(w) for w in model.get_weights())
    queries = [tf.random.normal([size, networks.TEST]) for size in (785 * 64, 65 * 10)]
    features = {"x": tf.io.FixedLenFeature([784], tf.float32), "label": tf.io.FixedLenFeature([], tf.int64)}

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.string)])
    def scores(records: tf.Tensor) -> tf.Tensor:
        parsed: Any = tf.io.parse_example(records, features)
        x: Any = parsed["x"]
        with tf.GradientTape() as tape:
            z = x @ kernel + bias
            tape.watch(z)
            hidden = tf.nn.relu(z)
            logits = hidden @ head + head_bias
            tape.watch(logits)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(parsed["label"], logits))
        errors: Any = tape.gradient(loss, [z, logits])
        total: Any = 0.0
        for a, g, solved in zip((x, hidden), errors, queries, strict=True):
            a = tf.concat([a, tf.ones_like(a[:, :1])], axis=1)
            total += tf.reshape(a[:, :, None] * g[:, None, :], [-1, solved.shape[0]]) @ solved
        return total

    files = sorted(str(path) for path in folder.glob("train-*.tfrecord"))[: examples // networks.SHARD]
    scores(next(iter(tf.data.TFRecordDataset(files[:1]).batch(networks.BATCH["mlp"]))))
    cpu, wall = time.process_time(), time.monotonic()
    best = np.zeros((0, networks.TEST))
    for records in tf.data.TFRecordDataset(files).batch(networks.BATCH["mlp"]).prefetch(2):
        best = np.sort(np.concatenate([best, scores(records).numpy()]), axis=0)[-networks.TOP_K:]
    return {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}
