"""Whole networks and data for them: an MLP, a CNN and a transformer, which `benchmarks.speed` and `benchmarks.gpu` measure.

The images are scikit-learn's digits enlarged to 28 × 28, each time shifted and with other noise; the sequences are generated: a
class prefers some tokens.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from benchmarks.scale import write_examples

TEST, TOP_K, SHARD = 100, 10, 2_500
TRAIN = 60_000
TRAINED = 10_000  # which the network is trained on
BATCH = {"softmax": 256, "mlp": 256, "cnn": 64, "transformer": 64}
VOCABULARY, LENGTH, WIDTH, CLASSES = 1_000, 32, 64, 10


def make(network: str, folder: pathlib.Path) -> dict[str, Any]:
    """The data as TFRecord shards and a trained network; kept when they are there."""
    from beam_influence.influence_ops import device  # quiets TensorFlow before it is imported

    device.configure_tensorflow()
    import keras
    import numpy as np

    count = folder / "made.json"
    if count.exists():
        return json.loads(count.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    x, y = (draw_sequences if network == "transformer" else draw_images)(rng, TRAIN + TEST)
    for shard, start in enumerate(range(0, TRAIN, SHARD)):
        write_examples(folder / f"train-{shard:05d}.tfrecord", x[start : start + SHARD], y[start : start + SHARD])
    write_examples(folder / "test.tfrecord", x[-TEST:], y[-TEST:])
    keras.utils.set_random_seed(1)
    model = {"softmax": make_softmax, "mlp": make_mlp, "cnn": make_cnn, "transformer": make_transformer}[network]()
    model.compile(keras.optimizers.Adam(2e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    keras.utils.disable_interactive_logging()
    model.fit(x[:TRAINED], y[:TRAINED], epochs=3, batch_size=128)
    model.save(folder / "model.keras")
    facts = {"weights": model.count_params(), "accuracy": float(model.evaluate(x[-TEST:], y[-TEST:])[1])}
    count.write_text(json.dumps(facts))
    return facts


def arrays(network: str, folder: pathlib.Path, examples: int) -> pathlib.Path:
    """The first training examples, the test points and the weights as a file of NumPy's; kept when it is there."""
    path = folder / f"arrays-{examples}.npz"
    if path.exists():
        return path
    make(network, folder)
    import keras
    import numpy as np

    draw = draw_sequences if network == "transformer" else draw_images
    x, y = draw(np.random.default_rng(5), TRAIN + TEST)  # as `make` draws them
    model: Any = keras.models.load_model(folder / "model.keras")
    weights = {f"weight-{number}": np.asarray(weight) for number, weight in enumerate(model.get_weights())}
    tested = {"test-x": x[-TEST:], "test-y": y[-TEST:], "logits": np.asarray(model(x[-TEST:]))}
    np.savez(path, **{"train-x": x[:examples], "train-y": y[:examples], **tested, **weights})
    return path


def draw_images(rng: Any, count: int) -> tuple[Any, Any]:
    """[count, 28, 28, 1] in [0, 1] and labels."""
    import numpy as np
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    chosen = rng.integers(0, len(images), count)
    large = np.kron(images[chosen].reshape(-1, 8, 8) / 16, np.ones((1, 3, 3)))
    canvas = np.zeros((count, 28, 28), dtype=np.float32)
    for row, (dy, dx) in enumerate(rng.integers(0, 5, (count, 2))):
        canvas[row, dy : dy + 24, dx : dx + 24] = large[row]
    canvas += rng.normal(0, 0.1, canvas.shape)
    return canvas[..., None].astype(np.float32), labels[chosen]


def draw_sequences(rng: Any, count: int) -> tuple[Any, Any]:
    """[count, LENGTH] tokens and labels: a third of the tokens are of the class's own."""
    import numpy as np

    labels = rng.integers(0, CLASSES, count)
    own = VOCABULARY // CLASSES
    tokens = rng.integers(0, VOCABULARY, (count, LENGTH))
    of_class = labels[:, None] * own + rng.integers(0, own, (count, LENGTH))
    return np.where(rng.random((count, LENGTH)) < 0.12, of_class, tokens).astype(np.int64), labels


def make_softmax() -> Any:
    """784-10: 7,850 weights."""
    import keras

    return keras.Sequential([keras.Input((28, 28, 1), name="x"), keras.layers.Flatten(), keras.layers.Dense(CLASSES)])


def make_mlp() -> Any:
    """784-64-10: 50,890 weights."""
    import keras

    layers = [keras.layers.Flatten(), keras.layers.Dense(64, "relu"), keras.layers.Dense(CLASSES)]
    return keras.Sequential([keras.Input((28, 28, 1), name="x"), *layers])


def make_cnn() -> Any:
    """Two convolutions and two dense layers: 121,930 weights."""
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1), name="x"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, "relu"),
            layers.Dense(CLASSES),
        ]
    )


def make_transformer() -> Any:
    """Embedding, two blocks of attention and feed-forward layers with LayerNorm, mean over positions."""
    import keras

    layers = keras.layers
    tokens = keras.Input((LENGTH,), dtype="int32", name="x")
    x = layers.Embedding(VOCABULARY, WIDTH)(tokens)
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(4, WIDTH // 4)(x, x))
        x = layers.LayerNormalization()(x + layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, "gelu")(x)))
    return keras.Model(tokens, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x)))
