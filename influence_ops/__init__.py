"""The mathematics of influence on one worker: TensorFlow, NumPy and Arrow. Never imports Beam."""

from beam_influence.influence_ops import device as device  # sets TensorFlow's log level before it is imported
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
from beam_influence.influence_ops.curvature import curvature_by_name as curvature_by_name
from beam_influence.influence_ops.curvature import load_preconditioner as load_preconditioner
from beam_influence.influence_ops.model.influence_model import InfluenceModel as InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch as ExampleBatch
from beam_influence.influence_ops.reading.example_batch import Rejected as Rejected
from beam_influence.influence_ops.scoring.group_sums import GroupSums as GroupSums
from beam_influence.influence_ops.scoring.in_memory import InfluenceResult as InfluenceResult
from beam_influence.influence_ops.scoring.in_memory import compute_in_memory as compute_in_memory
from beam_influence.influence_ops.scoring.in_memory import fit_curvature as fit_curvature
from beam_influence.influence_ops.scoring.nearest_neighbors import FaissSearch as FaissSearch
from beam_influence.influence_ops.scoring.nearest_neighbors import LinearSearch as LinearSearch
from beam_influence.influence_ops.scoring.nearest_neighbors import NearestNeighbors as NearestNeighbors
from beam_influence.influence_ops.scoring.scores import QueryBlock as QueryBlock
from beam_influence.influence_ops.scoring.scores import ScoreOptions as ScoreOptions
from beam_influence.influence_ops.scoring.scores import Scorer as Scorer
from beam_influence.influence_ops.scoring.top_k import TopK as TopK
