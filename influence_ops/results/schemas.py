"""The Arrow schemas of the result tables, and the facts that each file carries with it.

All tables keep to these columns on every runner. `influence` is the score I; `loss_change` is I / n, the
predicted change of the test loss when the example (or the group) is removed, null where scores are normalised
or n is unknown. Positive: removal raises the loss, so the example is helpful; negative: harmful. Where candidates
are scored, which were not trained on, the columns of `OF_CANDIDATES` have other names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

_TEST = pa.field("test_id", pa.string(), nullable=False)
_TRAIN = pa.field("train_id", pa.string(), nullable=False)
_INFLUENCE = pa.field("influence", pa.float64(), nullable=False)
_CHANGE = pa.field("loss_change", pa.float64())
_GROUP = pa.field("group", pa.string(), nullable=False)
_GROUP_COUNT = pa.field("count", pa.int64(), nullable=False)
_VECTOR = pa.field("vector", pa.list_(pa.float64()), nullable=False)

TOP_K = pa.schema([_TEST, pa.field("rank", pa.int32(), nullable=False), _TRAIN, _INFLUENCE, _CHANGE])
TOKENS = [
    pa.field("train_token_scores", pa.list_(pa.float64()), nullable=False),
    pa.field("train_unplaced_score", pa.float64(), nullable=False),
    pa.field("test_token_scores", pa.list_(pa.float64()), nullable=False),
    pa.field("test_unplaced_score", pa.float64(), nullable=False),
]
"""More columns of `TOP_K` with `--per_token`: the influence by position, and what of it is at none."""
SELF_INFLUENCE = pa.schema([_TRAIN, _INFLUENCE, _CHANGE])
SELF_INFLUENCE_TOP_K = pa.schema([pa.field("rank", pa.int32(), nullable=False), _TRAIN, _INFLUENCE, _CHANGE])
GROUP_INFLUENCE = pa.schema(
    [
        _GROUP,
        pa.field("test_id", pa.string()),  # null: the sum over test_group's points, or over all of them
        pa.field("test_group", pa.string()),
        _INFLUENCE,
        _CHANGE,
        _GROUP_COUNT,
    ]
)
GROUP_SELF_INFLUENCE = pa.schema([_GROUP, _INFLUENCE, _CHANGE, _GROUP_COUNT])
GROUP_VECTORS = pa.schema([_GROUP, _VECTOR, _GROUP_COUNT])
SCORES = pa.schema([_TEST, _TRAIN, _INFLUENCE, _CHANGE])
INFLUENCE_VECTORS = pa.schema([_TRAIN, _VECTOR])
RESIDUALS = pa.schema([_TEST, pa.field("residual", pa.float64(), nullable=False)])
REJECTED = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)

STANDARD_ERROR = pa.field("standard_error", pa.float64(), nullable=False)
"""The column of scores whose error is known: of `influence`, over the members of an ensemble, or as one run knows it."""
STABLE = pa.field("stable", pa.bool_(), nullable=False)
"""The column of `top_k` that tells whether a row's 90 % interval ends before the first training example that is not in the table."""

OF_CANDIDATES = {
    "train_id": "candidate_id",
    "loss_change": "loss_change_if_added",
    "train_token_scores": "candidate_token_scores",
    "train_unplaced_score": "candidate_unplaced_score",
}
"""The names of columns where what is scored are candidates, which were not trained on; `loss_change_if_added` is −I / n."""

METADATA_KEY = b"beam_influence"


def facts(curvature: Mapping[str, Any], normalize: str, removal: str, of_candidates: bool = False) -> dict[str, Any]:
    """What a reader must know to use a score: sign, unit, curvature, damping and the model's fingerprint."""
    unit = "loss × n: divide by n for the predicted change of the test loss when the example is removed"
    sign = "positive = removing the training example raises the loss at the test point (helpful); negative = harmful"
    if of_candidates:
        sign = "positive = adding the candidate to the training set lowers the loss at the test point (helpful); negative = harmful"
        unit = "loss × n: divide by -n for the predicted change of the test loss when the candidate is added with the weight 1/n"
    if normalize != "none":
        unit = f"relative ({normalize}-RelatIF): compare within one test point"
    return {
        "sign": sign,
        "unit": unit,
        "n": curvature["examples"],
        "curvature": curvature["curvature"],
        "damping": curvature["damping"],
        "normalize": normalize,
        "removal": removal,
        "model_fingerprint": curvature["fingerprint"],
    }


def of_candidates(schema: pa.Schema) -> pa.Schema:
    """A table's schema where candidates are scored in place of training examples."""
    return pa.schema([field.with_name(OF_CANDIDATES.get(field.name, field.name)) for field in schema])


def with_facts(schema: pa.Schema, content: Mapping[str, Any]) -> pa.Schema:
    """The schema with `content` as its `beam_influence` metadata (JSON)."""
    return schema.with_metadata({METADATA_KEY: json.dumps(content, sort_keys=True).encode()})
