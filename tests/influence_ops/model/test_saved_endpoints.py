"""A SavedModel as a trainer of TFX writes it: fed records, or by the model inside, its gradients are those of the closed form."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.model.network import declared_inputs
from beam_influence.influence_ops.model.saved_model import SavedModelNetwork
from beam_influence.influence_ops.reading import READERS
from beam_influence.influence_ops.reading.decode import RowDecoder
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.reading.features import RECORD, Roles, Stored
from beam_influence.influence_ops.reading.resolve_features import FeatureResolver
from beam_influence.influence_ops.scoring.in_memory import compute_in_memory
from beam_influence.transforms.load_model import load_checkpoint, load_model
from tests.pipelines.digits_job import floats, framed, ints, strings

WORDS = ["red", None, "blue", "red", "green", None]
SIZES = [0.5, 1.0, -2.0, None, 1.5, 0.25]
LABELS = np.arange(6)
VOCABULARY = ["", "red", "blue"]
WEIGHTS = np.array([[0.5], [-1.0], [0.25], [2.0]], np.float32)


def encoded() -> np.ndarray:
    """What the graph makes of the examples, in NumPy: the place of each word, -1 for others, then its size."""
    words = ["" if word is None else word for word in WORDS]
    one_hot = np.array([[word == known for known in VOCABULARY] for word in words], np.float32)
    return np.concatenate([one_hot, np.array([[size or 0.0] for size in SIZES], np.float32)], axis=1)


def records() -> list[bytes]:
    rows = []
    for word, size, label in zip(WORDS, SIZES, LABELS, strict=True):
        features = {"y": ints([int(label)])}
        features |= {} if word is None else {"word": strings([word])}
        features |= {} if size is None else {"size": floats([size])}
        rows.append(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return rows


class Inside(tf.Module):
    """Its call takes what the serving signature's graph makes of an example."""

    def __init__(self) -> None:
        self.kernel = tf.Variable(tf.constant(WEIGHTS), name="head/kernel")
        self.moment, self.optimizer = tf.Variable(tf.constant(WEIGHTS), trainable=False), tf.Module()
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(VOCABULARY, tf.range(3, dtype=tf.int64)), -1)

    @tf.function(input_signature=[{"words": tf.TensorSpec([None, 3], name="words"), "size": tf.TensorSpec([None, 1], name="size")}])
    def __call__(self, inputs: Any) -> Any:
        return tf.concat([inputs["words"], inputs["size"]], axis=1) @ self.kernel

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve_examples(self, examples: Any) -> dict[str, Any]:
        spec = {"word": tf.io.VarLenFeature(tf.string), "size": tf.io.FixedLenFeature([1], tf.float32, 0.0)}
        parsed = tf.io.parse_example(examples, spec)
        word = tf.sparse.to_dense(tf.sparse.reset_shape(parsed["word"], [tf.shape(examples)[0], 1]))[:, 0]
        return {"outputs": self({"words": tf.one_hot(self.table.lookup(word), 3), "size": parsed["size"]})}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    module, folder = Inside(), str(tmp_path_factory.mktemp("saved") / "model")
    tf.saved_model.save(module, folder, signatures={"serving_default": module.serve_examples})
    return folder


def influence(model: SavedModelNetwork, inputs: Any) -> np.ndarray:
    batch = ExampleBatch(LABELS.astype(str).astype(object), inputs, LABELS.astype(np.float32)[:, None])
    explained = InfluenceModel(model, weights="all", loss_function="squared_error")  # type: ignore[arg-type]
    table = compute_in_memory(explained, "identity", [batch], [batch], outputs=("scores",)).tables["scores"].to_pandas()
    table = table.sort_values(["test_id", "train_id"], key=lambda column: column.astype(int))
    return table["influence"].to_numpy().reshape(6, 6)


def closed_form() -> np.ndarray:
    x = encoded().astype(np.float64)
    errors = x @ WEIGHTS.astype(np.float64) - LABELS[:, None]
    gradients = errors * x
    return gradients @ gradients.T


def test_records_go_to_a_signature_that_parses_them(folder: str) -> None:
    model = SavedModelNetwork(folder)
    (tensor,) = declared_inputs(model)
    assert (tensor.name, tensor.shape, tensor.dtype, tensor.parses) == ("examples", (), "string", ("size", "word"))
    reader, data = READERS["tfrecord"], io.BytesIO(framed(records()))
    resolver = FeatureResolver(reader.describe(data, 9), None, has_records=reader.has_records)
    spec = resolver.resolve([tensor], Roles({}, ("y",)))
    assert [feature.name for feature in spec.features()] == [RECORD, "y"]
    data.seek(0)
    (rows,) = reader(spec.features()).read(data, 9)
    batch, rejected = RowDecoder(spec).decode(rows, "f")
    assert rejected == [] and isinstance(batch.inputs, np.ndarray) and batch.inputs.tolist() == records()
    scores = influence(model, batch.inputs)
    x = influence(SavedModelNetwork(folder, "call"), {"words": encoded()[:, :3], "size": encoded()[:, 3:]})
    wanted = closed_form() * (scores[1, 1] / closed_form()[1, 1])  # a constant of the loss
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5 * abs(wanted).max())  # float32
    np.testing.assert_allclose(x, scores, rtol=1e-6, atol=1e-6 * abs(wanted).max())


def test_what_does_not_go_with_a_signature_is_refused(folder: str) -> None:
    (tensor,) = declared_inputs(SavedModelNetwork(folder))
    with pytest.raises(ValueError, match="the model parses size, word out of each tf.Example, and the data has label, x.*--signature call"):
        data = {"x": Stored("int", ()), "label": Stored("int", ())}
        FeatureResolver(data, None, has_records=True).resolve([tensor], Roles({}, ("label",)))
    with pytest.raises(ValueError, match="takes serialized tf.Examples, and these files hold none; give --signature call"):
        FeatureResolver({"word": Stored("bytes", ())}, None).resolve([tensor], Roles({}, ("word",)))
    with pytest.raises(ValueError, match="no signature 'other'; name one with --signature: serving_default, call"):
        SavedModelNetwork(folder, "other")


def test_the_slots_of_an_optimizer_of_keras_2_are_left_out(folder: str, tmp_path: pathlib.Path) -> None:
    """Such a folder is written by Keras 2 alone: here the graph's file gets what it writes, a slot of a variable at an optimizer."""
    target = tmp_path / "model"
    tf.io.gfile.makedirs(str(target / "variables"))
    for name in ("saved_model.pb", *(f"variables/{name}" for name in tf.io.gfile.listdir(f"{folder}/variables"))):
        tf.io.gfile.copy(f"{folder}/{name}", str(target / name))
    graph = target / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
    nodes = saved.meta_graphs[0].object_graph_def.nodes
    children = {child.local_name: child.node_id for child in nodes[0].children}
    of = {"original_variable_node_id": children["kernel"], "slot_variable_node_id": children["moment"]}
    nodes[children["optimizer"]].slot_variables.add(slot_name="m", **of)
    graph.write_bytes(saved.SerializeToString())
    with pytest.raises(AttributeError, match="add_slot"):
        tf.saved_model.load(str(target))
    model, digest = load_model(str(target), signature="call")
    assert len(model.trainable_variables) == 1 and load_model(str(target), digest=digest)[1] == digest


def test_h5_files(tmp_path: pathlib.Path) -> None:
    inputs = keras.Input((3,), name="x")
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile(loss="mse")
    model.save(tmp_path / "model.h5")
    model.save_weights(tmp_path / "model.weights.h5")
    for loaded, _ in (load_model(str(tmp_path / "model.h5")), load_checkpoint(str(tmp_path / "model.h5"), str(tmp_path / "none.keras"))):
        for one, other in zip(loaded.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
        assert loaded.loss == "mse"
    with pytest.raises(ValueError, match="has weights alone; give it with --model_weights, and --model module:function"):
        load_model(str(tmp_path / "model.weights.h5"))
    with pytest.raises(ValueError, match="--signature call is of a SavedModel folder"):
        load_model(str(tmp_path / "model.h5"), signature="call")
    model.compile(loss=[keras.losses.BinaryCrossentropy(label_smoothing=0.25)], metrics=["mae"])
    model.save(tmp_path / "smooth.h5")
    (loss,) = load_model(str(tmp_path / "smooth.h5"))[0].loss
    assert isinstance(loss, keras.losses.BinaryCrossentropy) and loss.get_config()["label_smoothing"] == 0.25
    (tmp_path / "bad.h5").write_bytes(b"no model")
    with pytest.raises(ValueError, match="can't load the model '.*bad.h5'"):
        load_model(str(tmp_path / "bad.h5"))
