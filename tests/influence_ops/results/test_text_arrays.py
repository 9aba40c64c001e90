"""Texts in arrays that can be saved come back as they were, trailing NULs too."""

from __future__ import annotations

import numpy as np
import pytest

from beam_influence.influence_ops.curvature.conjugate_gradient import ConjugateGradient
from beam_influence.influence_ops.curvature.sample import Sample, to_arrays
from beam_influence.influence_ops.curvature.sampled import SAMPLE
from beam_influence.influence_ops.evaluation.ground_truth import GroundTruth
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.results.array_folder import from_npy, to_npy
from beam_influence.influence_ops.results.text_arrays import bytes_to_texts, texts_to_bytes
from beam_influence.influence_ops.scoring.group_sums import GroupSums
from beam_influence.influence_ops.scoring.query_block import QueryBlock
from beam_influence.influence_ops.settings import IterativeSettings
from beam_influence.transforms.elements import QueryReference
from beam_influence.transforms.embed_queries import open_queries, publish_queries

TEXTS = ["a", "a\0", "a\0\0", "", "\0", "é:1", "a."]


def test_texts_come_back() -> None:
    encoded = from_npy(to_npy(texts_to_bytes(TEXTS)))
    assert bytes_to_texts(encoded).tolist() == TEXTS
    assert bytes_to_texts(texts_to_bytes([])).tolist() == []


def test_ids_of_queries_and_samples() -> None:
    ids = np.array(TEXTS, dtype=object)
    numbers = np.zeros((len(ids), 2))
    block = QueryBlock(ids, numbers, numbers, ids)
    (opened,) = open_queries([QueryReference("k", publish_queries(block, "unused"))])[1]
    assert opened.groups is not None
    assert opened.ids.tolist() == opened.groups.tolist() == TEXTS
    curvature, sample = ConjugateGradient(IterativeSettings(n_samples=100)), Sample(100, 0)
    sample.add(ExampleBatch(ids, numbers, numbers[:, 0]))
    back = curvature.unpack_part(SAMPLE, curvature.pack_part(SAMPLE, sample))
    assert sorted(back.batch.ids) == sorted(TEXTS)


def test_groups_that_differ_by_nul_alone() -> None:
    sums = GroupSums(1)
    sums.add(np.array([[1.0, 2.0, 4.0]]), np.array(["g", "g\0", "g"], dtype=object))
    assert dict(zip(sums.names, sums.sums[:, 0].tolist(), strict=True)) == {"g": 5.0, "g\0": 2.0}


def test_where_they_can_not_be_kept_they_are_refused() -> None:
    with pytest.raises(ValueError, match="ends with NUL"):
        truth = GroundTruth(np.ones((1, 1), dtype=bool), np.zeros((1, 1)), train_ids=np.array(["a\0"], dtype=object))
        truth.save("unused")
    batch = ExampleBatch(np.array(["a"], dtype=object), np.array([b"raw\0"], dtype=object), np.zeros(1))
    with pytest.raises(ValueError, match="ends with NUL bytes"):
        to_arrays(batch)
