"""TensorFloat-32 is on while a model that asks for it is called, and off for every other; by faked GPUs, since these machines have none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import keras
import pytest
import tensorflow as tf

from beam_influence.influence_ops.model import network as networks
from beam_influence.influence_ops.model import tensor_float_32
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from tests.influence_ops.curvature.test_kronecker import data

is_enabled = tf.config.experimental.tensor_float_32_execution_enabled


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    was = is_enabled()
    yield
    tensor_float_32.allow_tensor_float_32(False)
    tf.config.experimental.enable_tensor_float_32_execution(was)


def dense(policy: str = "float32") -> keras.Model:
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, dtype=policy), keras.layers.Dense(3, dtype="float32")])


def test_it_is_on_for_whoever_asks_for_it() -> None:
    own = dense()
    tf32, native = (InfluenceModel(own, loss_function="softmax_cross_entropy", precision=asked) for asked in ("tf32", "native"))
    assert tf32.network.tensor_float_32 and tf32.dtype == "float32" and tf32.model is own
    batch = data(native, "dense", 4, weighted=False)
    for model, wanted in ((tf32, True), (native, False), (tf32, True), (native, False)):
        model.losses(batch)
        assert is_enabled() == wanted
    tf.config.experimental.enable_tensor_float_32_execution(True)
    native.losses(batch)
    assert is_enabled()  # what the user's own program has set


def test_which_gpus_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a card that rounds to 10 bits is compared with Keras as one of float16."""
    assert not tensor_float_32.has_tensor_float_32()
    capabilities: list[dict[str, tuple[int, int]]] = [{"compute_capability": (7, 5)}, {}]
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: range(len(capabilities)))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda number: capabilities[number])
    network = networks.open_network(dense(), "tf32")
    assert not tensor_float_32.has_tensor_float_32() and network.rounds_as == "float32"
    capabilities.append({"compute_capability": (9, 0)})
    assert tensor_float_32.has_tensor_float_32() and network.rounds_as == "float16"
    assert dataclasses.replace(network, tensor_float_32=False).rounds_as == "float32"


@pytest.mark.parametrize(("policy", "found"), [("mixed_bfloat16", "bfloat16"), ("float64", "float64")])
def test_it_is_of_float32(policy: str, found: str) -> None:
    with pytest.raises(ValueError, match=f"'tf32' is of products of float32, and the model computes in {found}; use precision 'native'"):
        networks.open_network(dense(policy), "tf32")
