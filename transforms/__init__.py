"""Beam wiring, one public verb per file, in the order in which data meets them."""

from beam_influence.influence_ops import device as device  # before TensorFlow is imported
from beam_influence.transforms.accumulate_curvature import AccumulateCurvature as AccumulateCurvature
from beam_influence.transforms.clean_shards import CleanShards as CleanShards
from beam_influence.transforms.clean_shards import CopyFiles as CopyFiles
from beam_influence.transforms.clean_shards import WriteCleaningFacts as WriteCleaningFacts
from beam_influence.transforms.embed_queries import EmbedQueries as EmbedQueries
from beam_influence.transforms.find_ids import FindIds as FindIds
from beam_influence.transforms.finish_curvature import AdvanceCurvature as AdvanceCurvature
from beam_influence.transforms.finish_curvature import FinishCurvature as FinishCurvature
from beam_influence.transforms.finish_curvature import LoadCurvature as LoadCurvature
from beam_influence.transforms.group_products import MultiplyGroups as MultiplyGroups
from beam_influence.transforms.index_examples import IndexExamples as IndexExamples
from beam_influence.transforms.measure_smoothness import MeasureSmoothness as MeasureSmoothness
from beam_influence.transforms.read_shards import ReadShards as ReadShards
from beam_influence.transforms.refuse_one_group import RefuseOneGroup as RefuseOneGroup
from beam_influence.transforms.replay_training import ReplayTraining as ReplayTraining
from beam_influence.transforms.retrain_models import RetrainModels as RetrainModels
from beam_influence.transforms.score_examples import ScoreExamples as ScoreExamples
from beam_influence.transforms.score_tokens import ScoreTokens as ScoreTokens
from beam_influence.transforms.score_vectors import ScoreVectors as ScoreVectors
from beam_influence.transforms.select_threshold import SelectThreshold as SelectThreshold
from beam_influence.transforms.solve_queries import SolveQueries as SolveQueries
from beam_influence.transforms.unroll_test_points import CutTestPoints as CutTestPoints
from beam_influence.transforms.unroll_test_points import UnrollTestPoints as UnrollTestPoints
from beam_influence.transforms.write_groups import WriteGroups as WriteGroups
from beam_influence.transforms.write_manifest import WriteManifest as WriteManifest
from beam_influence.transforms.write_outputs import WriteOutputs as WriteOutputs
from beam_influence.transforms.write_rejected import WriteRejected as WriteRejected
