"""Saved retrainings: read back as they were, and refused where they do not fit."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from beam_influence.influence_ops.evaluation.ground_truth import GroundTruth, load_ground_truth
from tests.influence_ops.reference import DATA


def test_the_reference_is_a_ground_truth() -> None:
    truth = load_ground_truth(str(DATA / "lds_digits.npz"))
    assert truth.subset_masks is not None and truth.subset_masks.shape == (50, 1500)
    named = truth.with_ids([str(row) for row in range(1500)], [str(row) for row in range(100)])
    assert named.train_ids is not None and named.train_ids[1499] == "1499"
    with pytest.raises(ValueError, match="of 1,500 training examples, but there are 7 ids"):
        truth.with_ids(["a"] * 7, ["b"] * 100)


def test_saved_and_read(tmp_path: pathlib.Path) -> None:
    truth = GroundTruth(
        loo_idx=np.array([2, 0]),
        loo_test_loss=np.ones((2, 3)),
        base_test_loss=np.zeros(3),
        train_ids=np.array(["a", "b", "ü"], dtype=object),
        test_ids=np.array(["x", "y", "z"], dtype=object),
    )
    path = str(tmp_path / "truth.npz")
    truth.save(path)
    found = load_ground_truth(path)
    assert found.subset_masks is None and found.train_ids is not None and found.train_ids.tolist() == ["a", "b", "ü"]
    assert found.loo_idx is not None and found.loo_idx.tolist() == [2, 0]
    assert found.loo_test_loss is not None and found.loo_test_loss.tolist() == np.ones((2, 3)).tolist()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"subset_masks": np.ones((4, 5), bool)}, "subset_test_loss is missing beside subset_masks"),
        ({"subset_masks": np.ones((4, 5)), "subset_test_loss": np.ones((4, 2))}, "must be bool"),
        ({"subset_masks": np.ones((4, 5), bool), "subset_test_loss": np.ones((3, 2))}, r"\(3, 2\) \[S, T\]"),
        ({"loo_idx": np.array([1]), "loo_test_loss": np.ones((1, 2))}, "needs base_test_loss"),
        ({"loo_idx": np.array([1.5]), "loo_test_loss": np.ones((1, 2)), "base_test_loss": np.ones(2)}, "positions"),
        ({"loo_idx": np.array([1]), "loo_test_loss": np.ones((1, 2)), "base_test_loss": np.ones(3)}, r"must be \[R, T\] = \(1, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: pathlib.Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "truth.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        load_ground_truth(str(path))


def test_files_that_are_no_ground_truth(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="there is no ground truth at"):
        load_ground_truth(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match="can't read the ground truth"):
        load_ground_truth(str(tmp_path / "text.npz"))
    np.savez(tmp_path / "pickled.npz", subset_masks=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match="can't read the ground truth"):
        load_ground_truth(str(tmp_path / "pickled.npz"))
