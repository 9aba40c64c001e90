"""Beam wiring, one public verb per file, in the order in which data meets them."""

from influence_ops import device as device  # before TensorFlow is imported
from transforms.accumulate_curvature import AccumulateCurvature as AccumulateCurvature
from transforms.clean_shards import CleanShards as CleanShards
from transforms.clean_shards import CopyFiles as CopyFiles
from transforms.clean_shards import WriteCleaningFacts as WriteCleaningFacts
from transforms.combine_top_k import CombineTopK as CombineTopK
from transforms.embed_queries import EmbedQueries as EmbedQueries
from transforms.finish_curvature import AdvanceCurvature as AdvanceCurvature
from transforms.finish_curvature import FinishCurvature as FinishCurvature
from transforms.finish_curvature import LoadCurvature as LoadCurvature
from transforms.group_products import MultiplyGroups as MultiplyGroups
from transforms.index_examples import IndexExamples as IndexExamples
from transforms.read_shards import ReadShards as ReadShards
from transforms.refuse_one_group import RefuseOneGroup as RefuseOneGroup
from transforms.retrain_models import RetrainModels as RetrainModels
from transforms.score_examples import ScoreExamples as ScoreExamples
from transforms.score_vectors import ScoreVectors as ScoreVectors
from transforms.select_threshold import SelectThreshold as SelectThreshold
from transforms.solve_queries import SolveQueries as SolveQueries
from transforms.sum_groups import SumGroups as SumGroups
from transforms.write_manifest import WriteManifest as WriteManifest
from transforms.write_rejected import WriteRejected as WriteRejected
from transforms.write_results import WriteGroups as WriteGroups
from transforms.write_results import WriteTopK as WriteTopK
