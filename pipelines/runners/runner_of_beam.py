"""Any other `--runner`: a runner by the name that Beam has for it, such as `SparkRunner`, with Beam's own options."""

from __future__ import annotations

from collections.abc import Sequence

from beam_influence.pipelines.runners.flink import tell_that_it_goes_on
from beam_influence.pipelines.runners.local import Local
from beam_influence.pipelines.runners.runner import TIME_LIMIT, Engine, Request, Runner

_IN_THIS_PROCESS = ("fnapirunner", "directrunner")
_ON_THIS_MACHINE = (*_IN_THIS_PROCESS, "bundlebaseddirectrunner", "prismrunner")


class RunnerOfBeam(Runner):
    """A runner whose options are passed on without a check.

    Args:
      name: as the user wrote it.
      presets: the names in place of which this one stands.
    """

    instead = Local.instead

    def __init__(self, name: str, presets: Sequence[str]):
        self.name = name
        self.options = () if name.lower() in _IN_THIS_PROCESS else (TIME_LIMIT,)
        self.knows_more_options = name.lower() not in _ON_THIS_MACHINE
        self._presets = presets

    def engine(self, request: Request) -> Engine:
        name = self._name_in_beam()
        after_cancel = tell_that_it_goes_on if "job_endpoint" in request.beam else None
        return Engine([f"--runner={name}"], name.lower() in _ON_THIS_MACHINE, after_cancel=after_cancel)

    def _name_in_beam(self) -> str:
        from apache_beam.options.pipeline_options import StandardOptions

        if "." in self.name:
            return self.name
        names = {known.lower(): known for known in StandardOptions.KNOWN_RUNNER_NAMES}
        known = names.get(self.name.lower()) or names.get(f"{self.name.lower()}runner")
        if known is None:
            presets, others = ", ".join(self._presets), ", ".join(sorted(names.values()))
            raise ValueError(f"--runner {self.name!r} must be one of {presets}, or a runner of Beam: {others}")
        return known
