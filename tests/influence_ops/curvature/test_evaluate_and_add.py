"""One pass forward for losses, gradients and the Fisher's draw gives the sums of one for each; so do weights of 1 and none."""

from __future__ import annotations

import dataclasses
from typing import get_args

import numpy as np
import pytest
import tensorflow as tf

from beam_influence.influence_ops.curvature import Curvature, Statistic, curvature_by_name
from beam_influence.influence_ops.curvature.ekfac import Ekfac
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.settings import Fisher, KroneckerSettings
from beam_influence.influence_ops.types import Loss
from tests.influence_ops.curvature.test_curvature import data as last_layer
from tests.influence_ops.curvature.test_curvature import network
from tests.influence_ops.curvature.test_kronecker import data, make


def second_pass(curvature: Curvature, model: InfluenceModel, statistic: Statistic) -> Curvature:
    parts = {name: curvature.finish_part(name, part) for name, part in statistic.items()}
    return curvature.resume(curvature.advance(model, parts))


def assert_same(found: Statistic, wanted: Statistic) -> None:
    assert found.keys() == wanted.keys()
    for name, part in wanted.items():
        np.testing.assert_allclose(found[name], part, rtol=1e-9, atol=1e-12 * max(1.0, float(np.abs(part).max())), err_msg=name)


def with_a_nan(batch: ExampleBatch) -> ExampleBatch:
    inputs = np.array(batch.inputs)
    inputs[3] = np.nan
    return dataclasses.replace(batch, inputs=inputs)


FISHERS: tuple[Fisher, ...] = get_args(Fisher)
CASES = [*(("dense", fisher) for fisher in FISHERS), ("conv2d-strided-same", "signed"), ("einsum-odd-bias", "signed")]
"""Of `einsum-odd-bias`, no rule knows the bias."""


@pytest.mark.parametrize(("kind", "fisher"), CASES)
def test_both_ways_give_the_same_sums(kind: str, fisher: Fisher) -> None:
    model = make(kind)
    plain = data(model, kind, 12, weighted=False)
    curvature: Curvature = Ekfac(KroneckerSettings(fisher=fisher))
    for _ in range(2):
        statistic = curvature.add(model, curvature.create(model), plain)
        ones = dataclasses.replace(plain, weights=np.ones(len(plain)))
        for batch in (plain, ones):
            found, rejected = curvature.evaluate_and_add(model, curvature.create(model), batch)
            assert not rejected
            assert_same(found, statistic)
        curvature = second_pass(curvature, model, statistic) if curvature.passes == 2 else curvature


@pytest.mark.parametrize("fisher", ["signed", "empirical"])
def test_an_example_that_is_not_finite_is_left_out(fisher: Fisher) -> None:
    model = make("dense")
    curvature, batch = Ekfac(KroneckerSettings(fisher=fisher)), data(model, "dense", 12)
    found, rejected = curvature.evaluate_and_add(model, curvature.create(model), with_a_nan(batch))
    assert [each.error for each in rejected] == ["not_finite"]
    assert_same(found, curvature.add(model, curvature.create(model), batch.select(np.delete(np.arange(12), 3))))


def own_loss(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Not convex in the outputs, and of no known likelihood."""
    return 1 - tf.exp(-tf.square(tf.cast(labels, outputs.dtype) - outputs[:, 0]) / 2)


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", own_loss])
@pytest.mark.parametrize("kind", ["exact", "gauss_newton"])
def test_sums_of_a_last_layer_by_one_pass_forward(kind: str, loss: Loss) -> None:
    """Those of the examples that are finite, as if the others were not there."""
    model, curvature = InfluenceModel(network(), loss_function=loss, weight_decay=0.02), curvature_by_name(kind)
    wanted = curvature.complete(curvature.add(model, curvature.create(model), last_layer().select(np.delete(np.arange(16), 3))))
    found, rejected = curvature.evaluate_and_add(model, curvature.create(model), with_a_nan(last_layer()))
    assert [each.error for each in rejected] == ["not_finite"]
    assert_same(curvature.complete(found), wanted)
    none, rejected = curvature.evaluate_and_add(model, curvature.create(model), with_a_nan(last_layer()).select(np.array([3])))
    assert len(rejected) == 1 and none.keys() == curvature.create(model).keys()


def test_sums_that_stay_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; there is one copy to the host for a bundle."""
    model = make("dense")
    batches = [data(model, "dense", 12).select(np.arange(start, start + 4)) for start in (0, 4, 8)]
    curvature: Curvature = Ekfac(KroneckerSettings())
    for _ in range(2):
        wanted, found = curvature.create(model), curvature.create(model)
        for batch in batches:
            wanted = curvature.add(model, wanted, batch)
        with monkeypatch.context() as changed:
            changed.setattr("beam_influence.influence_ops.curvature.kfac.stay_on_device", lambda _: True)
            for batch in batches:
                found = curvature.add(model, found, batch)
        assert found.keys() == {"count", "pending"}
        assert_same(curvature.complete(found), wanted)
        curvature = second_pass(curvature, model, wanted) if curvature.passes == 2 else curvature
