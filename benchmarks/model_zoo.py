"""The models of `benchmarks.models`, by name."""

from __future__ import annotations

import dataclasses

from benchmarks.zoo_hub import draw_hub, hub
from benchmarks.zoo_networks import (
    Build,
    Draw,
    Gated,
    Layers,
    convolution,
    draw_columns,
    draw_multi_task,
    draw_pairs,
    draw_pixels,
    draw_wide_and_deep,
    floats,
    frozen_and_nested,
    images,
    in_precision,
    low_rank_adapters,
    lstm,
    modern_decoder,
    multi_task,
    next_tokens,
    preprocessing,
    pretrained,
    sequences,
    sequential,
    subclassed,
    tokens,
    transformer,
    two_towers,
    unet,
    wide_and_deep,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model that people have.

    Attributes:
      group: the heading in the table.
      build: () -> the compiled model.
      draw: (random generator, number) -> inputs and labels.
      epoch_of: how many examples an epoch of training and EK-FAC are measured on.
      exact: whether the last layer is small enough for an independent Hessian.
      needs: a package that must be there.
    """

    group: str
    build: Build
    draw: Draw
    epoch_of: int = 256
    exact: bool = True
    needs: str | None = None


_HUB = {"num_layers": 2, "hidden_dim": 8, "intermediate_dim": 16}
_HEADS = {**_HUB, "num_heads": 2, "max_sequence_length": 8}
_LLAMA = {**_HUB, "num_query_heads": 2, "num_key_value_heads": 1}
_RELU = {"activation": "relu"}
_MASKED = convolution("Embedding", 12, 6, mask_zero=True)

CASES: dict[str, Case] = {
    "preprocessing": Case("tables", preprocessing, draw_columns),
    "wide-and-deep": Case("tables", wide_and_deep, draw_wide_and_deep),
    "two-towers": Case("tables", two_towers, draw_pairs),
    "multi-task": Case("tables", multi_task, draw_multi_task),
    "prelu": Case("tables", lambda: sequential((6,), Layers.Dense(5), Layers.PReLU(), Layers.Dense(3)), floats(6)),
    "cnn": Case("images", images(convolution("Conv2D", 4, 3, **_RELU), convolution("Conv2D", 6, 3, **_RELU)), floats(12, 12, 3)),
    "unet": Case("images", unet, draw_pixels),
    "separable": Case("images", images(convolution("SeparableConv2D", 6, 3, **_RELU)), floats(12, 12, 3)),
    "group-norm": Case("images", images(convolution("Conv2D", 4, 3), convolution("GroupNormalization", 2)), floats(12, 12, 3)),
    "augmented": Case(
        "images",
        images(convolution("RandomFlip"), convolution("RandomRotation", 0.1), convolution("Conv2D", 4, 3)),
        floats(12, 12, 3),
    ),
    "conv3d": Case(
        "images",
        lambda: sequential((5, 6, 6, 2), Layers.Conv3D(4, 3, activation="relu"), Layers.Flatten(), Layers.Dense(3)),
        floats(5, 6, 6, 2),
    ),
    "mobilenet-v2": Case("images", pretrained("MobileNetV2", 32), floats(32, 32, 3), epoch_of=1000, exact=False),
    "resnet50-v2": Case("images", pretrained("ResNet50V2", 32), floats(32, 32, 3), epoch_of=64, exact=False),
    "efficientnet-v2-b0": Case(
        "images", pretrained("EfficientNetV2B0", 32, include_preprocessing=False), floats(32, 32, 3), epoch_of=1000, exact=False
    ),
    "lstm": Case("sequences", sequences(lstm()), floats(10, 6)),
    "lstm-masked": Case(
        "sequences",
        lambda: sequential((10,), _MASKED(), Layers.LSTM(5), Layers.Dense(3), dtype="int32"),
        tokens(10, 12, padded=True),
    ),
    "lstm-stacked": Case("sequences", sequences(lstm(return_sequences=True), lstm()), floats(10, 6)),
    "lstm-two-layers": Case(
        "sequences",
        lambda: sequential((50, 32), Layers.LSTM(64, return_sequences=True), Layers.LSTM(64), Layers.Dense(3)),
        floats(50, 32),
        epoch_of=1000,
    ),
    "gru": Case("sequences", sequences(convolution("GRU", 5)), floats(10, 6)),
    "gru-reset-before": Case("sequences", sequences(convolution("GRU", 5, reset_after=False)), floats(10, 6)),
    "simple-rnn": Case("sequences", sequences(convolution("SimpleRNN", 5)), floats(10, 6)),
    "bidirectional": Case("sequences", sequences(lambda: Layers.Bidirectional(Layers.GRU(5))), floats(10, 6)),
    "any-length": Case("sequences", sequences(lstm(), shape=(None, 6)), floats(10, 6)),
    "lstm-cells": Case("sequences", sequences(lambda: Layers.RNN([Layers.LSTMCell(5), Layers.LSTMCell(4)])), floats(10, 6)),
    "conv-lstm": Case(
        "sequences",
        lambda: sequential((4, 6, 6, 2), Layers.ConvLSTM2D(3, 3), Layers.Flatten(), Layers.Dense(3)),
        floats(4, 6, 6, 2),
    ),
    "time-distributed": Case(
        "sequences",
        sequences(lambda: Layers.TimeDistributed(Layers.Dense(5, "tanh")), convolution("GlobalAveragePooling1D"), shape=(None, 6)),
        floats(10, 6),
    ),
    "conv1d-causal": Case(
        "sequences",
        sequences(convolution("Conv1D", 5, 3, padding="causal", dilation_rate=2), convolution("GlobalMaxPooling1D")),
        floats(10, 6),
    ),
    "encoder": Case("transformers", transformer(False), tokens(10, 20)),
    "decoder": Case("transformers", transformer(True), next_tokens(10, 20)),
    "decoder-tied": Case("transformers", transformer(True, tied=True), next_tokens(10, 20)),
    "decoder-llama": Case("transformers", modern_decoder, next_tokens(10, 20)),
    "hub-bert": Case("transformers", hub("Bert", False, **_HEADS), draw_hub(False), needs="keras_hub"),
    "hub-gpt2": Case("transformers", hub("GPT2", True, **_HEADS), draw_hub(True), needs="keras_hub"),
    "hub-llama": Case("transformers", hub("Llama", True, **_LLAMA), draw_hub(True), needs="keras_hub"),
    "hub-gemma": Case("transformers", hub("Gemma", True, head_dim=4, **_LLAMA), draw_hub(True), needs="keras_hub"),
    "hub-gpt2-classes": Case("transformers", hub("GPT2", False, **_HEADS), draw_hub(False), needs="keras_hub"),
    "gpt2-small": Case(
        "transformers",
        hub("GPT2", True, 2000, 64, num_layers=4, hidden_dim=128, intermediate_dim=512, num_heads=4, max_sequence_length=64),
        draw_hub(True, 2000, 64),
        epoch_of=1000,
        exact=False,
        needs="keras_hub",
    ),
    "mixed-float16": Case("other", in_precision("mixed_float16"), floats(8, 8, 3)),
    "bfloat16": Case("other", in_precision("mixed_bfloat16"), floats(8, 8, 3)),
    "lora": Case("other", low_rank_adapters, tokens(8, 12)),
    "frozen-nested": Case("other", frozen_and_nested, floats(6)),
    "own-layer": Case("other", lambda: sequential((6,), Gated(5), Layers.Dense(3)), floats(6)),
    "subclassed": Case("other", subclassed, floats(6)),
}
