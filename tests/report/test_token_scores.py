"""Tokens in the colours of what they add to a score."""

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_influence.influence_ops.results import schemas
from beam_influence.report.examples import StoredExample
from beam_influence.report.showing import MOST_TOKENS, Shown, ShowOptions, View
from beam_influence.report.strongest import Score
from beam_influence.report.tables import PointScores, RunTables
from beam_influence.report.token_scores import ByPosition, scored_tokens


def test_a_colour_is_as_deep_as_the_part_of_the_largest():
    found = scored_tokens(Shown(tokens=("a", "b", "c", "d"), token_count=4), ByPosition([-8.0, 2.0, 2.1, 0.0], 0.5))
    assert found is not None
    assert found.tokens == [("a", "harms-4"), ("b", "helps-1"), ("c", "helps-2"), ("d", "")]
    assert found.summary == "a −8.00, c 2.10, b 2.00; at no position 0.500"


@pytest.mark.parametrize(
    ("shown", "scores", "levels"),
    [
        (Shown(tokens=("a", "b"), token_count=2, is_padded=True), [1.0, -1.0, 0.0], ["helps-4", "harms-4"]),
        (Shown(tokens=("a", "b"), token_count=2, is_padded=True), [1.0], ["helps-4", ""]),  # the model cuts what is longer
        (Shown(tokens=(*"a" * MOST_TOKENS, "…"), token_count=99), [1.0] * 99, [*["helps-4"] * MOST_TOKENS, ""]),
        (Shown(tokens=("a", "b"), token_count=2), [1.0, 2.0, 3.0], None),  # a list that is not the model's sequence
        (Shown(text="a b"), [1.0, 2.0], None),
    ],
)
def test_positions_are_those_of_the_tokens(shown: Shown, scores: list[float], levels: list[str] | None):
    found = scored_tokens(shown, ByPosition(scores, 0.0))
    assert (found and [token.level for token in found.tokens]) == levels


def test_the_sequence_of_a_model_is_shown_as_tokens_and_its_mask_is_not():
    values = {"attention": np.array([1, 1, 0]), "ids": np.array([7, 4, 0]), "wide": np.array([0.5, 0.2])}
    example = StoredExample("e", "f", 0, values)
    shown = View([example], ShowOptions(by_position=True)).show(example)
    assert shown.tokens == ("7", "4", "0") and [name for name, _ in shown.fields] == ["attention", "wide"]
    assert View([example], ShowOptions()).show(example).tokens == ()


def test_scores_by_position_are_those_of_the_table(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    path = str(tmp_path / "part.parquet")
    monkeypatch.setattr(RunTables, "_paths", lambda *_: iter([path]))
    schema = pa.schema([*schemas.TOP_K, *schemas.TOKENS])
    rows = [
        {"test_id": t, "rank": 1, "train_id": i, "influence": 3.0, "train_token_scores": [1.0, 2.0 * number], "train_unplaced_score": 0.0,
         "test_token_scores": [number], "test_unplaced_score": 1.0}  # fmt: skip
        for number, (t, i) in enumerate([("t", "a"), ("t", "b"), ("u", "a")])
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    manifest = {"tables": {"top_k": {}}, "config": {"order": "descending", "per_token": True}, "curvature": {}}
    points = [PointScores("t", [Score("b", 3.0, None)], None)]
    assert RunTables(str(tmp_path), manifest).by_position(points) == {("t", "b"): (ByPosition([1.0, 2.0], 0.0), ByPosition([1.0], 1.0))}
    manifest["config"]["per_token"] = False
    assert RunTables(str(tmp_path), manifest).by_position(points) == {}
