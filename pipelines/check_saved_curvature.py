"""Is a saved curvature of this model, and of what this run asks for?"""

from __future__ import annotations

import numpy as np

from beam_influence.influence_ops.curvature import CURVATURES, Preconditioner, load_preconditioner
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.options.method import CURVATURE_OF_INDEX
from beam_influence.transforms.files import BeamFiles


def check_saved_curvature(config: InfluenceConfig, model: ExplainedModel, path: str) -> type[Preconditioner]:
    """The kind of the saved curvature's operator.

    Raises:
      ValueError: it is of another model, or this run can't use it, or would take a preconditioner for the answer.
    """
    preconditioner = load_preconditioner(path, BeamFiles())
    preconditioner.check(model)
    saved, named = preconditioner.meta["curvature"], config.make_curvature().name
    not_said = (type(config).curvature, CURVATURE_OF_INDEX) if config.only_index else (type(config).curvature,)
    if not config.solver_passes and saved != named and config.curvature not in not_said:
        raise ValueError(f"the curvature at {path!r} is {saved!r}, not --curvature {config.curvature}; leave one of them out")
    if config.solver_passes and saved != named:
        need = f"passes over the data need the one that --curvature {config.curvature} fits, or --passes 0"
        raise ValueError(f"the curvature at {path!r} is {saved!r}; {need}")
    systems = CURVATURES[saved].systems if saved in CURVATURES else None
    begins = f"the curvature at {path!r} is where the passes of {saved} begin;"
    if systems == "segments":
        raise ValueError(f"{begins} fit it again, without --curvature_path")
    if systems == "gauss_newton" and saved != named and not config.only_index:
        raise ValueError(f"{begins} add --curvature {saved}, and --passes 0 where it is the answer itself")
    if bool(preconditioner.meta.get("leave_one_out")) != (config.removal == "newton"):
        raise ValueError(f"the curvature at {path!r} was not fitted for --removal {config.removal}; fit it again with the same --removal")
    if config.only_index:
        preconditioner.bind(model).embed(np.zeros((1, model.size)))  # refuses a curvature without one
    return type(preconditioner)
