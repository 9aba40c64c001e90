"""The artifact types that the components give, and those of TFX where only its light SDK is installed."""

from __future__ import annotations

import importlib.util
import sys
import types

from tfx.types import standard_artifacts as standard_artifacts
from tfx.types.artifact import Artifact
from tfx.types.system_artifacts import Statistics

# Every artifact of `standard_artifacts` refuses to be made unless this module of full TFX can be imported; the
# components use nothing of it.
if importlib.util.find_spec("tfx.extensions") is None:
    sys.modules.setdefault("tfx.extensions", types.ModuleType("tfx.extensions"))


class InfluenceScores(Artifact):
    """A finished run's output folder: Parquet tables and `manifest.json`.

    Custom properties, facts of the run: `train_examples`, `test_examples`, `rejected` (counts); `curvature`, `damping`
    (text, since the metadata store rounds to 6 decimals), `watched_weights`, `model_fingerprint`; `train_splits`,
    `test_splits` (JSON lists); `mislabel_candidates` (JSON, the examples of the largest self-influence, at most 20, as
    [{"train_id": ..., "self_influence": ...}, ...]).
    """

    TYPE_NAME = "InfluenceScores"
    TYPE_ANNOTATION = Statistics
    # A type's properties can't change once it is registered in a metadata store: facts are custom properties.
    PROPERTIES = {}


class Curvature(Artifact):
    """A saved curvature, for later runs on the same model: `InfluenceCalculator(saved_curvature=...)`."""

    TYPE_NAME = "InfluenceCurvature"
    PROPERTIES = {}
