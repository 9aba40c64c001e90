"""What the executors share: Beam's arguments as the user gave them."""

from __future__ import annotations

import abc
import copy
from typing import Any

from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor


class BeamExecutor(BaseBeamExecutor, abc.ABC):
    """A Beam executor whose workers need nothing of TFX.

    The base class ships a package of TFX to the workers, which asks for all of TFX to be installed there, and parses the
    host program's own arguments as flags. Neither is wanted here: what remote workers need is this package, by
    `--sdk_container_image`, `--extra_package` or `--setup_file`.
    """

    def __init__(self, context: Any = None):
        self.beam_arguments: list[str] = list(getattr(context, "beam_pipeline_args", None) or [])
        if context is not None:
            context = copy.copy(context)
            context.beam_pipeline_args = None
        super().__init__(context)

    @property
    def make_pipeline(self) -> Any:
        """The orchestrator's own way to make a pipeline, or None."""
        return self._make_beam_pipeline_fn
