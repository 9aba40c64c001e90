"""What every engine is: a value of `--runner`, the options that go with it, and Beam's options that it becomes."""

from __future__ import annotations

import abc
import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from beam_influence.pipelines.config import InfluenceConfig

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions  # seconds that --help need not wait


@dataclasses.dataclass(frozen=True)
class Engine:
    """Where a run goes.

    Attributes:
      arguments: Beam's options, all of them.
      is_local: whether the workers are on this machine, so that they can report progress to the launcher.
      accelerator: the resource hint of the steps that differentiate examples, or None.
      time_limit: after how many seconds the job is cancelled, or None.
      after_cancel: sees to it that a job ends which Beam was asked to cancel, and returns what the user must know besides; None: Beam does.
    """

    arguments: list[str]
    is_local: bool
    accelerator: str | None = None
    time_limit: float | None = None
    after_cancel: Callable[[], str] | None = None

    def options(self) -> PipelineOptions:
        """Beam's options as Beam has them."""
        from apache_beam.options.pipeline_options import PipelineOptions

        # DoFns are in installed modules; a pickled main session would only break.
        return PipelineOptions(self.arguments, save_main_session=False)


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of the command line that some engines take.

    Attributes:
      name: without dashes.
      help: what it says in `--help`.
      type: makes the value from its text.
      metavar: what stands for the value in `--help`.
      choices: the values there are, or None for any.
      without_value: the value where the name stands alone, or None where it can't.
      refuse: says what is wrong with a value, or None.
      elsewhere: what to do with an engine that does not take it.
    """

    name: str
    help: str
    type: Callable[[str], object] = str
    metavar: str | None = None
    choices: Sequence[str] | None = None
    without_value: str | None = None
    refuse: Callable[[Any], str | None] = lambda value: None
    elsewhere: str = "leave it out"


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user asks an engine for.

    Attributes:
      own: the value of each `Option`, None where it was not given.
      beam: those of Beam's options that were given.
      config: has the paths that the engine must reach; None: not known yet.
    """

    own: argparse.Namespace
    beam: Mapping[str, Any]
    config: InfluenceConfig | None


class Runner(abc.ABC):
    """An engine that `--runner` names.

    Attributes:
      name: the value of `--runner`.
      options: those of this package that it takes.
      instead: for options that it does not take, what to do; else the option's own `elsewhere`.
      beam_prefix: what the names of Beam's options for this engine alone begin with.
      knows_more_options: whether a server of it may have options that Beam's Python does not know.
    """

    name: str
    options: tuple[Option, ...] = ()
    instead: Mapping[str, str] = {}
    beam_prefix: str | None = None
    knows_more_options = False

    @abc.abstractmethod
    def engine(self, request: Request) -> Engine:
        """Where the run goes; of `arguments` only those that are added, and no `time_limit`.

        Raises:
          ValueError: the options don't go together, or the engine is not there; the message says what to write instead.
        """


TIME_LIMIT = Option(
    "time_limit",
    "With --runner prism, flink or dataflow: cancel the job when it has not finished by then.",
    type=float,
    metavar="SECONDS",
    refuse=lambda seconds: None if seconds > 0 else f"--time_limit {seconds:g} must be above 0",
)
