"""The training of the main job's network (`beam-influence demo digits`) as a function for `beam-influence evaluate --train_fn`."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from beam_influence.pipelines.demo.digits import make_network


def train(examples: tf.data.Dataset, seed: int) -> keras.Model:
    """Trains on the examples that are kept, (image, label) each; see docs/evaluation.md."""
    shuffled = examples.cache().shuffle(int(examples.cardinality()), seed=seed)
    model = make_network()
    fit: Any = model.fit  # Keras types `verbose` as a string only
    fit(shuffled.batch(128), epochs=30, shuffle=False, verbose=0)
    return model
