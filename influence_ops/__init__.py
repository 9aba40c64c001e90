"""The mathematics of influence on one worker: TensorFlow, NumPy and Arrow. Never imports Beam."""

from influence_ops import device as device  # sets TensorFlow's log level before it is imported
from influence_ops.calculator import CACHE as CACHE
from influence_ops.calculator import ORDER as ORDER
from influence_ops.calculator import ArnoldiInfluenceCalculator as ArnoldiInfluenceCalculator
from influence_ops.calculator import FirstOrderInfluenceCalculator as FirstOrderInfluenceCalculator
from influence_ops.calculator import IHVPCalculator as IHVPCalculator
from influence_ops.calculator import SecondOrderInfluenceCalculator as SecondOrderInfluenceCalculator
from influence_ops.calculator import TracIn as TracIn
from influence_ops.curvature import CURVATURES as CURVATURES
from influence_ops.curvature import Curvature as Curvature
from influence_ops.curvature import FinishOptions as FinishOptions
from influence_ops.curvature import Preconditioner as Preconditioner
from influence_ops.curvature import curvature_by_name as curvature_by_name
from influence_ops.curvature import load_preconditioner as load_preconditioner
from influence_ops.example_batch import ExampleBatch as ExampleBatch
from influence_ops.example_batch import Rejected as Rejected
from influence_ops.group_sums import GroupSums as GroupSums
from influence_ops.in_memory import InfluenceResult as InfluenceResult
from influence_ops.in_memory import compute_in_memory as compute_in_memory
from influence_ops.in_memory import fit_curvature as fit_curvature
from influence_ops.model import InfluenceModel as InfluenceModel
from influence_ops.nearest_neighbors import FaissSearch as FaissSearch
from influence_ops.nearest_neighbors import LinearSearch as LinearSearch
from influence_ops.nearest_neighbors import NearestNeighbors as NearestNeighbors
from influence_ops.scores import QueryBlock as QueryBlock
from influence_ops.scores import ScoreOptions as ScoreOptions
from influence_ops.scores import Scorer as Scorer
from influence_ops.top_k import TopK as TopK
