"""One model a process: the same for all stages, traced once, and right when eight threads use it at the same time."""

from __future__ import annotations

import dataclasses
import pathlib
import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from beam_influence.influence_ops.curvature import FinishOptions, curvature_by_name, fit
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.scoring.query_block import QueryBlock
from beam_influence.influence_ops.scoring.scores import ScoreOptions, Scorer
from beam_influence.transforms.open_model import ModelSpec, forget_models

THREADS = 8


@pytest.fixture
def spec(tmp_path: pathlib.Path) -> ModelSpec:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(16, "tanh", activity_regularizer="l2"),
            layers.Dense(3, "softmax"),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy")
    model.save(tmp_path / "model.keras")
    return ModelSpec(str(tmp_path / "model.keras"), "", "compiled", "all", None, None, 0.0, "curvature", "auto", 0)


def batch(seed: int, count: int = 12) -> ExampleBatch:
    rng = np.random.default_rng(seed)
    ids = np.array([f"{seed}:{row}" for row in range(count)], dtype=object)
    return ExampleBatch(ids, rng.normal(size=(count, 8, 8, 1)).astype(np.float32), rng.integers(0, 3, count))


def test_a_process_has_one(spec: ModelSpec) -> None:
    assert spec.session() is spec.session() is dataclasses.replace(spec).session()
    assert spec.open() is not spec.session()
    assert dataclasses.replace(spec, weights="last").session() is not spec.session()


def test_eight_threads_get_the_numbers_of_one(spec: ModelSpec) -> None:
    alone = spec.open()
    curvature = curvature_by_name("ekfac")
    operator = fit(alone, curvature, lambda: map(batch, range(4)), FinishOptions("auto"))
    gradients = np.asarray(alone.losses_and_gradients(batch(100))[1])
    queries = [QueryBlock(batch(100).ids, gradients, operator.bind(alone).apply(gradients))]
    options = ScoreOptions(self_influence=True)
    wanted = [Scorer(alone, operator, queries, options).score(batch(seed)) for seed in range(THREADS)]
    for _ in range(3):
        ready = threading.Barrier(THREADS)
        model = dataclasses.replace(spec, agreement=alone.agreement).open()  # nothing of it is traced yet

        def use(seed: int, model=model, ready=ready):
            ready.wait()
            statistic = curvature.add(model, curvature.create(model), batch(seed))
            return statistic, Scorer(model, operator, queries, options).score(batch(seed)), model.gauss_newton_products(
                batch(seed), np.ones((1, model.size))
            )

        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(use, range(THREADS)))
        for seed, (statistic, scored, products) in enumerate(found):
            expected = curvature.add(alone, curvature.create(alone), batch(seed))
            for name in expected:
                np.testing.assert_allclose(statistic[name], expected[name], rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(scored.scores[0], wanted[seed].scores[0], rtol=1e-9, atol=1e-12)
            assert scored.self_influence is not None and wanted[seed].self_influence is not None
            np.testing.assert_allclose(np.asarray(scored.self_influence), np.asarray(wanted[seed].self_influence), rtol=1e-9)
            np.testing.assert_allclose(products, alone.gauss_newton_products(batch(seed), np.ones((1, alone.size))), rtol=1e-9, atol=1e-12)
        assert model.weights_without_factors == alone.weights_without_factors


def test_what_was_opened_first_is_kept(spec: ModelSpec) -> None:
    model, first = spec.open_first()
    first.keep(model)
    assert first.session() is model
    forget_models()
    assert first.session() is not model
