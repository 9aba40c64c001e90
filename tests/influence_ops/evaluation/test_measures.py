"""The measures against definitions written out in NumPy, closed forms, and scikit-learn's AUC."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from beam_influence.influence_ops.evaluation.baselines import other_class_near
from beam_influence.influence_ops.evaluation.brittleness import effect
from beam_influence.influence_ops.evaluation.correlation import bootstrap_error, mean_over_columns, pearson, ranks, spearman
from beam_influence.influence_ops.evaluation.lds import linear_datamodelling_score
from beam_influence.influence_ops.evaluation.leave_one_out import leave_one_out
from beam_influence.influence_ops.evaluation.mislabelled import by_chance, detection
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

ROUNDING = 1e-12  # sums of some hundred numbers of order 1


def ranks_one_by_one(values: np.ndarray) -> list[float]:
    """The mean place of all values equal to each."""
    return [float(np.mean([place + 1 for place, other in enumerate(sorted(values)) if other == value])) for value in values]


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_ranks_with_ties(count: int) -> None:
    values = np.random.default_rng(count).integers(0, 5, (count, 3)).astype(float)
    for column in range(3):
        assert ranks(values)[:, column].tolist() == ranks_one_by_one(values[:, column])
    assert ranks(values[:, 0]).tolist() == ranks_one_by_one(values[:, 0])


def test_correlations_are_numpys() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 6, (40, 4)).astype(float), generator.normal(size=(40, 4))
    for column in range(4):
        assert pearson(a, b)[column] == pytest.approx(np.corrcoef(a[:, column], b[:, column])[0, 1], abs=ROUNDING)
        of_ranks = np.corrcoef(ranks_one_by_one(a[:, column]), ranks_one_by_one(b[:, column]))[0, 1]
        assert spearman(a, b)[column] == pytest.approx(of_ranks, abs=ROUNDING)


def test_a_constant_column_predicts_nothing() -> None:
    a = np.stack([np.zeros(5), np.arange(5.0)], axis=1)
    found = spearman(a, np.stack([np.arange(5.0)] * 2, axis=1))
    assert np.isnan(found[0]) and found[1] == pytest.approx(1)
    assert mean_over_columns(found) == pytest.approx(0.5)


def test_bootstrap_error_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(size=400)
    error = bootstrap_error(lambda rows: float(values[rows].mean()), len(values))
    # σ/√n; 500 draws estimate a standard deviation to 1/√1000 = 3 %: four of these.
    assert error == pytest.approx(values.std() / np.sqrt(len(values)), rel=0.13)


def test_lds_of_an_additive_loss_is_1_and_its_sign_is_that_of_help() -> None:
    generator = np.random.default_rng(2)
    helps = generator.normal(size=(60, 5))  # what each example takes off each test loss
    masks = generator.random((20, 60)) < 0.5
    sums = masks @ helps
    found = linear_datamodelling_score(sums, 3 - sums**3)  # any monotone function has the same ranks
    assert found.mean == pytest.approx(1) and found.standard_error == pytest.approx(0, abs=ROUNDING)
    assert linear_datamodelling_score(-sums, 3 - sums).mean == pytest.approx(-1)
    noisy = linear_datamodelling_score(sums, 3 - sums + 5 * generator.normal(size=sums.shape))
    assert 0 < noisy.mean < 0.95 and 0 < noisy.standard_error < 0.2


@pytest.mark.parametrize(
    ("sums", "losses", "message"),
    [
        (np.zeros((2, 4)), np.zeros((2, 4)), "over 2 retrainings"),
        (np.zeros((5, 4)), np.zeros((5, 3)), "must both be"),
        (np.zeros((5, 4)), np.full((5, 4), np.nan), "finite"),
    ],
)
def test_lds_refuses(sums: np.ndarray, losses: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_datamodelling_score(sums, losses)


def test_leave_one_out_of_proportional_changes() -> None:
    predicted = np.random.default_rng(3).normal(size=(30, 4))
    found = leave_one_out(predicted, 1.25 * predicted + 0.5)
    for value in (found.pearson, found.spearman, found.pooled_pearson, found.pooled_spearman):
        assert value == pytest.approx(1)
    assert found.slope == pytest.approx(1.25)
    # Each test point of its own scale: perfect at each, not so pooled; the slope is least squares'.
    scaled = predicted * np.array([1, 2, -3, 4])
    found = leave_one_out(predicted, scaled)
    assert found.per_test == pytest.approx(np.array([1, 1, -1, 1])) and found.pearson == pytest.approx(0.5)
    assert found.pooled_pearson == pytest.approx(np.corrcoef(predicted.ravel(), scaled.ravel())[0, 1])
    assert found.slope == pytest.approx(np.polyfit(predicted.ravel(), scaled.ravel(), 1)[0])


def test_leave_one_out_refuses() -> None:
    with pytest.raises(ValueError, match="over 2 removals"):
        leave_one_out(np.zeros((2, 3)), np.zeros((2, 3)))


def test_detection_is_scikit_learns_auc_and_counts_what_is_found() -> None:
    generator = np.random.default_rng(4)
    wrong = generator.random(200) < 0.15
    values = (generator.normal(size=200) + 1.2 * wrong).round(1)  # rounded: ties
    found = detection(values, wrong, (0.05, 0.2, 1.0))
    assert found.auc == pytest.approx(roc_auc_score(wrong, values), abs=ROUNDING)
    assert found.found[2] == 1
    # The share found among the first 40, as the mean over many orders of the ties.
    shares = []
    for _ in range(4000):
        order = np.lexsort((generator.random(200), -values))
        shares.append(wrong[order[:40]].sum() / wrong.sum())
    assert found.found[1] == pytest.approx(np.mean(shares), abs=4 * np.std(shares) / np.sqrt(4000) + ROUNDING)


def test_error_of_the_auc() -> None:
    """DeLong's closed form against repeated experiments."""
    generator = np.random.default_rng(5)
    wrong = np.arange(100) < 30
    found = [detection(generator.normal(size=100) + 0.8 * wrong, wrong, (0.1,)) for _ in range(600)]
    spread = np.std([one.auc for one in found])
    # A standard deviation over 600 experiments is known to 3 %; four of these.
    assert np.mean([one.auc_error for one in found]) == pytest.approx(spread, rel=0.12)


def test_chance_finds_the_share_it_looks_at() -> None:
    assert by_chance(np.arange(50) < 5, (0.1, 0.5)).found == (0.1, 0.5)


def test_detection_refuses_nothing_to_find() -> None:
    with pytest.raises(ValueError, match="0 of 4"):
        detection(np.arange(4.0), np.zeros(4, bool), (0.1,))


def test_effect() -> None:
    before, after = np.array([[0.1, 0.2], [0.3, 0.2]]), np.array([[0.5, 0.2], [0.9, 0.2]])
    found = effect(before, after, np.array([[1, 2], [1, 2]]), np.array([[1, 2], [3, 2]]))
    assert found.per_test == pytest.approx([0.5, 0.0]) and found.rise == pytest.approx(0.25)
    assert found.rise_error == pytest.approx(np.std([0.5, 0], ddof=1) / np.sqrt(2))
    assert found.flipped == pytest.approx(0.25)
    assert np.isnan(effect(before, after, np.full((2, 2), -1), np.full((2, 2), -1)).flipped)


def test_neighbours_of_another_class_in_batches_without_an_example_of_the_sample():
    """However the training set is cut into batches, the share is the same: that of a search by hand."""
    random = np.random.default_rng(0)
    x, classes = random.standard_normal((40, 3)), random.integers(0, 2, 40)
    names = np.array([f"f:{row}" for row in range(40)], object)

    def batches(size: int, rows: np.ndarray) -> list[ExampleBatch]:
        return [ExampleBatch(names[some], x[some], classes[some]) for some in np.split(rows, range(size, len(rows), size))]

    sample = np.arange(0, 40, 7)
    def found(size: int) -> np.ndarray:
        shares = other_class_near(batches(size, np.arange(40)), batches(2, sample), lambda batch: [str(c) for c in batch.labels], 3)
        return np.concatenate([*shares])

    distances = ((x[:, None] - x[sample][None]) ** 2).sum(axis=2)
    distances[sample, np.arange(len(sample))] = np.inf
    near = np.argsort(distances, axis=1)[:, :3]
    wanted = (classes[sample][near] != classes[:, None]).mean(axis=1)
    for size in (40, 3):
        np.testing.assert_allclose(found(size), wanted)
