"""PNG images and a small CNN for them, which `benchmarks.speed` reads and trains on."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

from benchmarks import networks
from benchmarks.networks import TEST

IMAGES, SHARDS, COPIES = 60_000, 6, 10


def decode_one(image: Any) -> Any:
    import tensorflow as tf

    return tf.cast(_pixels(image), tf.float32) / 255


def _pixels(image: Any) -> Any:
    import tensorflow as tf

    return tf.ensure_shape(tf.io.decode_png(image, channels=1), [28, 28, 1])


def decoded(features: dict[str, Any]) -> Any:
    """`--preprocess`: [B, 28, 28, 1] from PNG bytes."""
    import tensorflow as tf

    return _decode_all()(tf.constant(features["image"].reshape(-1))).numpy()


@functools.cache
def _decode_all() -> Any:
    import tensorflow as tf

    def decode(images: Any) -> Any:
        pixels = tf.map_fn(_pixels, images, fn_output_signature=tf.TensorSpec([28, 28, 1], tf.uint8))
        return tf.cast(pixels, tf.float32) / 255

    return tf.function(decode, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)


def make_images(folder: pathlib.Path) -> pathlib.Path:
    """`networks.draw_images` as PNG, and a CNN of 10,954 weights, trained for an epoch; kept when they are there."""
    if (folder / "model.keras").exists():
        return folder
    from beam_influence.influence_ops import device

    device.configure_tensorflow()
    import keras
    import numpy as np
    import tensorflow as tf

    folder.mkdir(parents=True, exist_ok=True)
    x, y = networks.draw_images(np.random.default_rng(5), IMAGES + TEST)
    pixels = np.clip(255 * x, 0, 255).astype(np.uint8)
    each = IMAGES // SHARDS
    train = {f"train-{shard:05d}": slice(shard * each, (shard + 1) * each) for shard in range(SHARDS)}
    for name, rows in {**train, "test": slice(IMAGES, None)}.items():
        with tf.io.TFRecordWriter(str(folder / f"{name}.tfrecord")) as writer:
            for image, label in zip(pixels[rows], y[rows], strict=True):
                png = tf.train.Feature(bytes_list=tf.train.BytesList(value=[tf.io.encode_png(image).numpy()]))
                number = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
                writer.write(tf.train.Example(features=tf.train.Features(feature={"image": png, "label": number})).SerializeToString())
    keras.utils.set_random_seed(1)
    layers = keras.layers
    convolutions = [layers.Conv2D(16, 3, strides=2, activation="relu"), layers.Conv2D(16, 3, strides=2, activation="relu")]
    dense = [layers.Flatten(), layers.Dense(16, "relu"), layers.Dense(10)]
    model = keras.Sequential([keras.Input((28, 28, 1), name="x"), *convolutions, *dense])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    keras.utils.disable_interactive_logging()
    model.fit(x, y, epochs=1, batch_size=128)
    model.save(folder / "model.keras")
    return folder


def many_images(folder: pathlib.Path) -> pathlib.Path:
    """The same files by ten names each, in a folder of their own."""
    many = make_images(folder) / "many"
    many.mkdir(exist_ok=True)
    names = {"model.keras": "model.keras", "test.tfrecord": "test.tfrecord"}
    names |= {f"train-{number:05d}.tfrecord": f"train-{number % SHARDS:05d}.tfrecord" for number in range(COPIES * SHARDS)}
    for name, file in names.items():
        if not (many / name).exists():
            (many / name).hardlink_to(folder / file)
    return many
