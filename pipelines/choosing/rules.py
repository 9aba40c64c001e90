"""The rules of `--curvature auto`: the table of curvatures among which it chooses, each with its reason and the measurement behind it.

A rule counts where its `when` holds, the other options of the run go with it, and it fits the memory (and `--budget_seconds`). The first in
the table that does is taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from beam_influence.pipelines.config import InfluenceConfig

AUTO = "auto"
WEIGHTS = ("all", "last")
"""What `--weights auto` chooses among, the better first: what an example does through other weights is not counted."""
_NEED_DAMPING = ("ekfac", "kfac", "gauss_newton_cg")
_SMALL = 4096
_LARGE_INDEX = 1_000_000
Value: TypeAlias = str | int


@dataclasses.dataclass(frozen=True)
class Situation:
    """What the rules look at, besides the options.

    Attributes:
      weights: P, how many are watched.
      is_early: whether training counts as stopped early, far from a minimum; see `stopped_early`.
    """

    weights: int
    is_early: bool


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of the table.

    Attributes:
      curvature: its name.
      when: whether the rule counts.
      because: the reason, in words.
      options: which other options it sets.
    """

    curvature: str
    when: Callable[[InfluenceConfig, Situation], bool]
    because: str
    options: dict[str, Value] = dataclasses.field(default_factory=dict)

    def config(self, asked: InfluenceConfig, **more: Value) -> InfluenceConfig:
        """The options of a run with this choice.

        Raises:
          ValueError: they don't go together.
        """
        return dataclasses.replace(asked, **{"curvature": self.curvature, "budget_seconds": None, **self.options, **more})


RULES = (
    Rule(
        "source_gauss_newton",
        lambda config, found: config.segment_rates is not None and found.weights <= _SMALL,
        "the segments of the training run are given, and the whole matrix of each is small: LDS 0.15 above one checkpoint's where training "
        "was stopped early, the same where not (docs/truth.md, SOURCE)",
    ),
    Rule(
        "source",
        lambda config, found: config.segment_rates is not None,
        "the segments of the training run are given: LDS 0.03 above one checkpoint's where training was stopped early, 0.02 below "
        "where not (docs/truth.md, SOURCE)",
    ),
    Rule(
        "source_gauss_newton_cg",
        lambda config, found: config.segment_rates is not None,
        "the segments of the training run are given, and the other options are of solves over the data (docs/truth.md, SOURCE)",
    ),
    Rule(
        "random_projection",
        lambda config, found: config.only_index and found.weights > _LARGE_INDEX,
        "an index of more than 1,000,000 weights: one pass, from the layers' factors (docs/index_and_query.md)",
        {"projection": "sjlt"},
    ),
    Rule("arnoldi", lambda config, found: config.only_index, "an index: few numbers for each example (docs/index_and_query.md)"),
    Rule(
        "ekfac",
        lambda config, found: found.is_early,
        "training was stopped early, far from a minimum: with the damping that follows from it, LDS 0.87 on digits, where the default "
        "has 0.54 (docs/truth.md, Auto)",
    ),
    Rule(
        "gauss_newton",
        lambda config, found: not found.is_early and found.weights <= _SMALL,
        "training did not end far from a minimum, and the whole matrix is small: LDS 0.73 beside 0.60 of ekfac (docs/curvatures.md)",
    ),
    Rule(
        "gauss_newton_cg",
        lambda config, found: not found.is_early,
        "training did not end far from a minimum: what the whole matrix gives, LDS 0.73, without holding it (docs/curvatures.md)",
    ),
    Rule(
        "ekfac",
        lambda config, found: True,
        "the other options, memory or seconds leave no whole matrix: LDS 0.60 beside 0.73 in two passes (docs/curvatures.md)",
    ),
    Rule("kfac", lambda config, found: True, "the least that has a curvature: one pass (docs/curvatures.md)"),
    Rule("gauss_newton", lambda config, found: True, "what is asked for needs the whole matrix (docs/curvatures.md)"),
    Rule("gauss_newton_cg", lambda config, found: True, "the other options are of solves over the data (docs/curvatures.md)"),
)


def check_auto(config: InfluenceConfig) -> None:
    """Whether at least one rule goes with the other options of a run with `--curvature auto`.

    Raises:
      ValueError: none does, or a curvature that was fitted is used.
    """
    saved = next((name for name in ("curvature_path", "influence_vectors_path", "index", "update") if getattr(config, name)), None)
    if saved is not None:
        raise ValueError(f"--curvature auto chooses what is fitted, and --{saved} uses a curvature that was fitted; leave one of them out")
    if config.train is None:
        raise ValueError("--curvature auto looks at training examples: --train is needed")
    refusals: dict[str, str] = {}
    for rule in RULES:
        try:
            rule.config(config, **({"weights": WEIGHTS[0]} if config.weights == AUTO else {}))
        except ValueError as error:
            refusals[rule.curvature] = str(error)
            continue
        return
    whole, by_layer = refusals["gauss_newton"], refusals["kfac"]
    # What two so different ones are refused for is no matter of the curvature.
    raise ValueError(whole if whole == by_layer else f"--curvature auto finds no curvature that goes with the other options; {whole}")


def candidates(config: InfluenceConfig, weights: str | None, found: Situation) -> Iterator[tuple[Rule, InfluenceConfig | str]]:
    """Each rule that counts, in the table's order, with the options of its run, or why the other options don't go with it."""
    more: dict[str, Value] = {} if weights is None else {"weights": weights}
    for rule in RULES:
        if not rule.when(config, found):
            continue
        if rule.curvature in _NEED_DAMPING and (config.rcond is not None or (config.damping != AUTO and float(config.damping) == 0)):
            yield rule, f"--damping 0 and --rcond are of a whole matrix, not of {rule.curvature}"
            continue
        try:
            yield rule, rule.config(config, **more)
        except ValueError as error:
            yield rule, str(error)
