"""TFX components: influence beside Trainer and Evaluator, and the training set cleaned by it. See docs/tfx.md."""

from beam_influence.influence_ops import device as _device  # noqa: F401  (sets TensorFlow's log level before TFX imports it)

try:
    import ml_metadata as _ml_metadata  # noqa: F401
    from tfx.dsl.components.base import base_beam_component as _base_beam_component  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"beam_influence.pipelines.tfx needs the extra 'tfx' ({error}). In the project's folder: pip install -e '.[tfx]'; where the C "
        "library is older than 2.39 (ldd --version): pip install --no-deps -r requirements-tfx.txt -e . in an environment of its own. "
        "Everything else works without it."
    ) from error

from beam_influence.pipelines.tfx.artifacts import Curvature as Curvature
from beam_influence.pipelines.tfx.artifacts import InfluenceScores as InfluenceScores
from beam_influence.pipelines.tfx.example_cleaner import ExampleCleaner as ExampleCleaner
from beam_influence.pipelines.tfx.influence_calculator import InfluenceCalculator as InfluenceCalculator
