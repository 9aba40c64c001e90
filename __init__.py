"""beam-influence: which training examples a TensorFlow model's predictions are due to, at any size, on Apache Beam.

This is the whole public list; each name is loaded when it is first used, so that importing this costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beam_influence.influence_ops.calculator import CACHE as CACHE
    from beam_influence.influence_ops.calculator import ORDER as ORDER
    from beam_influence.influence_ops.calculator import ArnoldiInfluenceCalculator as ArnoldiInfluenceCalculator
    from beam_influence.influence_ops.calculator import FirstOrderInfluenceCalculator as FirstOrderInfluenceCalculator
    from beam_influence.influence_ops.calculator import IHVPCalculator as IHVPCalculator
    from beam_influence.influence_ops.calculator import SecondOrderInfluenceCalculator as SecondOrderInfluenceCalculator
    from beam_influence.influence_ops.calculator import TracIn as TracIn
    from beam_influence.influence_ops.curvature import CURVATURES as CURVATURES
    from beam_influence.influence_ops.curvature import Curvature as Curvature
    from beam_influence.influence_ops.curvature import FinishOptions as FinishOptions
    from beam_influence.influence_ops.curvature import Preconditioner as Preconditioner
    from beam_influence.influence_ops.model.checkpoints import CheckpointSum as CheckpointSum
    from beam_influence.influence_ops.model.explained_model import ExplainedModel as ExplainedModel
    from beam_influence.influence_ops.model.influence_model import InfluenceModel as InfluenceModel
    from beam_influence.influence_ops.replay.batch_order import epoch_order as epoch_order
    from beam_influence.influence_ops.scoring.in_memory import compute_in_memory as compute_in_memory
    from beam_influence.influence_ops.scoring.index import InfluenceIndex as InfluenceIndex
    from beam_influence.influence_ops.scoring.nearest_neighbors import FaissSearch as FaissSearch
    from beam_influence.influence_ops.scoring.nearest_neighbors import LinearSearch as LinearSearch
    from beam_influence.influence_ops.settings import CurvatureSettings as CurvatureSettings
    from beam_influence.influence_ops.settings import setting as setting
    from beam_influence.pipelines.build import build as build
    from beam_influence.pipelines.config import InfluenceConfig as InfluenceConfig
    from beam_influence.pipelines.ensemble import EnsembleSummary as EnsembleSummary
    from beam_influence.pipelines.ensemble import ensemble as ensemble
    from beam_influence.pipelines.ensemble_options import EnsembleOptions as EnsembleOptions
    from beam_influence.pipelines.launch import run as run
    from beam_influence.pipelines.load_influence import Influence as Influence
    from beam_influence.pipelines.load_influence import load_influence as load_influence
    from beam_influence.pipelines.planning.plan import plan as plan
    from beam_influence.pipelines.planning.run_plan import RunPlan as RunPlan
    from beam_influence.pipelines.run_pipeline import RunFailedError as RunFailedError
    from beam_influence.pipelines.run_summary import RunSummary as RunSummary
    from beam_influence.pipelines.unrolled import unroll as unroll
    from beam_influence.pipelines.unrolled_config import UnrolledConfig as UnrolledConfig

__version__ = "0.1.0"

_MODULE_OF = {
    "ArnoldiInfluenceCalculator": "influence_ops.calculator",
    "CACHE": "influence_ops.calculator",
    "FirstOrderInfluenceCalculator": "influence_ops.calculator",
    "IHVPCalculator": "influence_ops.calculator",
    "ORDER": "influence_ops.calculator",
    "SecondOrderInfluenceCalculator": "influence_ops.calculator",
    "TracIn": "influence_ops.calculator",
    "CheckpointSum": "influence_ops.model.checkpoints",
    "Curvature": "influence_ops.curvature",
    "CURVATURES": "influence_ops.curvature",
    "FinishOptions": "influence_ops.curvature",
    "Preconditioner": "influence_ops.curvature",
    "epoch_order": "influence_ops.replay.batch_order",
    "compute_in_memory": "influence_ops.scoring.in_memory",
    "InfluenceIndex": "influence_ops.scoring.index",
    "ExplainedModel": "influence_ops.model.explained_model",
    "InfluenceModel": "influence_ops.model.influence_model",
    "FaissSearch": "influence_ops.scoring.nearest_neighbors",
    "LinearSearch": "influence_ops.scoring.nearest_neighbors",
    "CurvatureSettings": "influence_ops.settings",
    "setting": "influence_ops.settings",
    "build": "pipelines.build",
    "InfluenceConfig": "pipelines.config",
    "ensemble": "pipelines.ensemble",
    "EnsembleOptions": "pipelines.ensemble_options",
    "EnsembleSummary": "pipelines.ensemble",
    "run": "pipelines.launch",
    "Influence": "pipelines.load_influence",
    "load_influence": "pipelines.load_influence",
    "plan": "pipelines.planning.plan",
    "RunPlan": "pipelines.planning.run_plan",
    "RunFailedError": "pipelines.run_pipeline",
    "RunSummary": "pipelines.run_summary",
    "unroll": "pipelines.unrolled",
    "UnrolledConfig": "pipelines.unrolled_config",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
