"""Influence position by position against NumPy, and its sum against the pair's score."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from beam_influence.influence_ops.model.guard import Agreement
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.scoring.in_memory import compute_in_memory
from beam_influence.influence_ops.scoring.scores import ScoreOptions
from benchmarks.models import batches

ROUNDING = 1e-12  # of float64, over some hundred weights; the task asks for 1e-6
Layers = keras.layers


def rows_of(model: keras.Model, inputs: Any, labels: Any, curvature: str, **options: Any) -> list[dict[str, Any]]:
    of_model = {name: options.pop(name) for name in ("weight_decay", "regularizer") if name in options}
    explained = InfluenceModel(model, weights="all", **of_model)
    explained.agreement = Agreement(1, 0.0, 0.0, 0.0, 0.0, 0.0)  # other tests compare such models with Keras
    train, test = batches(inputs, labels, 5), batches(inputs, labels, 2, 0, 3)
    table = compute_in_memory(explained, curvature, train, test, top_k=4, per_token=True, **options).tables["top_k"]
    return table.to_pylist()


def assert_sums(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == 12
    for side in ("train", "test"):
        for row in rows:
            total = sum(row[f"{side}_token_scores"]) + row[f"{side}_unplaced_score"]
            assert total == pytest.approx(row["influence"], rel=ROUNDING)


def test_equals_numpy_in_a_model_of_one_layer() -> None:
    """Logits are the mean over positions of x_s W + b, so ∇ℓ is Σ_s [x_s, 1] ⊗ (p − y) / T, and H the mean of x̄ x̄ᵀ ⊗ (diag p − p pᵀ)."""
    keras.utils.set_random_seed(3)
    model: Any = keras.Sequential([keras.Input((4, 2), name="x"), Layers.Dense(3), Layers.GlobalAveragePooling1D()])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    inputs, labels = rng.standard_normal((9, 4, 2)).astype(np.float32), rng.integers(0, 3, 9)
    rows = rows_of(model, inputs, labels, "gauss_newton", damping=0.1)
    kernel, bias = (weight.astype(np.float64) for weight in model.get_weights())
    seen = np.concatenate([inputs.astype(np.float64), np.ones((9, 4, 1))], axis=2)
    logits = seen.mean(axis=1) @ np.concatenate([kernel, bias[None]])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    terms = np.einsum("nsi,no->nsio", seen, (shares - np.eye(3)[labels]) / 4)
    outer, of_shares = np.einsum("ni,nj->nij", *[seen.mean(axis=1)] * 2), shares[:, :, None] * (np.eye(3) - shares[:, None, :])
    hessian = np.einsum("nij,nop->iojp", outer, of_shares).reshape(9, 9) / 9 + 0.1 * np.eye(9)
    solved = np.linalg.solve(hessian, terms.sum(axis=1).reshape(9, 9).T).T.reshape(9, 3, 3)
    assert_sums(rows)
    for row in rows:
        i, t = int(row["train_id"]), int(row["test_id"])
        np.testing.assert_allclose(row["train_token_scores"], np.einsum("sio,io->s", terms[i], solved[t]), rtol=1e-10)
        np.testing.assert_allclose(row["test_token_scores"], np.einsum("sio,io->s", terms[t], solved[i]), rtol=1e-10)
        assert row["train_unplaced_score"] == row["test_unplaced_score"] == 0


def transformer(causal: bool) -> Any:
    """Attention and a norm; a classifier of mean states, or the next token by the embedding's own table."""
    x = keras.Input((4,), name="x", dtype="int32")
    table = Layers.ReversibleEmbedding(7, 4)
    h = table(x)
    h = Layers.LayerNormalization()(h + Layers.MultiHeadAttention(2, 2)(h, h, use_causal_mask=causal))
    return keras.Model(x, table(h, reverse=True) if causal else Layers.Dense(3)(Layers.GlobalAveragePooling1D()(h)))


@pytest.mark.parametrize("causal", [False, True])
def test_adds_up_in_a_transformer(causal: bool) -> None:
    keras.utils.set_random_seed(1)
    model, rng = transformer(causal), np.random.default_rng(2)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs = rng.integers(0, 7, (8, 5))
    rows = rows_of(model, inputs[:, :-1], inputs[:, 1:] if causal else inputs[:, 0] % 3, "identity")
    assert_sums(rows)
    assert all((row["train_unplaced_score"] == 0) == causal for row in rows)  # the classifier's head sees the mean over positions alone


def test_masked_positions_have_none_and_relative_scores_add_up() -> None:
    keras.utils.set_random_seed(1)
    recurrent = Layers.Bidirectional(Layers.SimpleRNN(2))
    model: Any = keras.Sequential([keras.Input((4,), name="x"), Layers.Embedding(9, 2, mask_zero=True), recurrent, Layers.Dense(2)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(4)
    inputs, labels = rng.integers(1, 9, (8, 4)), rng.integers(0, 2, 8)
    inputs[::2, 2:] = 0
    how = {"options": ScoreOptions(normalize="loss"), "weight_decay": 0.01, "regularizer": "loss"}
    rows = rows_of(model, inputs, labels, "identity", **how)
    assert_sums(rows)
    for row in rows:
        for side in ("train", "test"):
            masked = np.array(row[f"{side}_token_scores"])[2:]
            assert (masked == 0).all() == (int(row[f"{side}_id"]) % 2 == 0)


def test_refuses_what_has_no_positions() -> None:
    model: Any = keras.Sequential([keras.Input((6,), name="x"), Layers.Dense(3), Layers.Dense(2)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    data = rng.standard_normal((4, 6)), rng.integers(0, 2, 4)
    with pytest.raises(ValueError, match=r"no watched layer follows the model's inputs \(shapes \[6\]\)"):
        rows_of(model, *data, curvature="identity")
    with pytest.raises(ValueError, match="not lissa; use ekfac"):
        rows_of(model, *data, curvature="lissa", damping=0.1)
