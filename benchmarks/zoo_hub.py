"""Backbones of keras_hub, which is no dependency, as models of `benchmarks.models`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from benchmarks.zoo_networks import Build, Draw, Layers, classes, compiled


def hub(name: str, causal: bool, vocabulary: int = 20, length: int = 8, **options: Any) -> Build:
    """A tiny backbone of keras_hub, as a classifier of mean states, or as a causal language model."""

    def build() -> keras.Model:
        import keras_hub  # pyright: ignore[reportMissingImports]

        body = getattr(keras_hub.models, f"{name}Backbone")(vocabulary_size=vocabulary, **options)
        names = [tensor.name for tensor in body.inputs]
        ids = keras.Input((length,), name="token_ids", dtype="int32")
        mask = keras.Input((length,), name="padding_mask", dtype="int32")
        given = {"token_ids": ids, "padding_mask": mask}
        if "segment_ids" in names:
            given["segment_ids"] = keras.ops.zeros_like(ids)
        states = body(given)
        states = states["sequence_output"] if isinstance(states, dict) else states
        outputs = body.token_embedding(states, reverse=True) if causal else Layers.Dense(3)(Layers.GlobalAveragePooling1D()(states))
        return compiled(keras.Model([ids, mask], outputs))

    return build


def draw_hub(causal: bool, vocabulary: int = 20, length: int = 8) -> Draw:
    """Rows for `hub`."""

    def draw(rng: np.random.Generator, count: int) -> tuple[Any, Any]:
        found = rng.integers(1, vocabulary, (count, length + 1)).astype(np.int32)
        inputs = {"token_ids": found[:, :-1], "padding_mask": np.ones((count, length), np.int32)}
        return inputs, found[:, 1:] if causal else classes(rng, count)

    return draw
