"""The options of `beam-influence clean`, each with its help."""

from __future__ import annotations

import dataclasses
import decimal
import functools
import math

from beam_influence.pipelines.options.option import REQUIRED, option

_option = functools.partial(option, group="clean")


def check_share(share: float, name: str = "share") -> None:
    """Refuses what is no part of the examples.

    Args:
      name: what the message calls it.

    Raises:
      ValueError: it is not above 0 and below 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"{name} {share} must be above 0 and below 1: the part of the examples that is suspicious")


def count_suspicious(share: float, examples: int) -> int:
    """How many examples a share of them is, exactly: 0.29 of 100 is 29.

    Raises:
      ValueError: less than one.
    """
    count = int(decimal.Decimal(repr(share)) * examples)
    if examples and not count:
        raise ValueError(f"--share {share} of {examples:,} examples is less than one; give at least {math.ceil(1e6 / examples) / 1e6:g}")
    return count


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleanOptions:
    """What is taken out of the training set of a finished run.

    Attributes:
      results: the folder of the run, which wrote `self_influence`.

    Raises:
      ValueError: an option is wrong; the message names it, its value and what to write instead.
    """

    results: str
    output: str = _option(REQUIRED, "The folder of the cleaned files: each under the name that it has below --source.")
    share: float | None = _option(
        None,
        "The part of the scored examples that is suspicious, above 0 and below 1: those of the largest self-influence. Equal scores at the "
        "edge are taken together or not at all.",
    )
    ids: str | None = _option(
        None,
        "In place of --share: the ids of the suspicious examples, as export --to ids writes them: a text file with one a line, or Parquet "
        "or CSV with a column train_id. At most 64 MiB.",
    )
    weight: float | None = _option(None, "Keep the suspicious examples, with this weight times their own, from 0 to 1. Default: drop them.")
    weight_feature: str = _option("weight", "With --weight: the feature with the weights; an example without it has 1.")
    source: str | None = _option(None, "The folder below which all files are. Default: the one that all training files have in common.")
    others: str | None = _option(None, "Patterns of files below --source that are copied as they are, separated by commas.")

    def __post_init__(self) -> None:
        if not self.results.strip():
            raise ValueError("RESULTS '' must name the folder of a finished run")
        if not self.output.strip():
            raise ValueError("--output '' must name a folder")
        if (self.share is None) == (self.ids is None):
            given = "neither was" if self.share is None else "both were"
            raise ValueError(f"give --share (a part of the examples) or --ids (a list of them); {given} given")
        if self.share is not None:
            check_share(self.share, "--share")
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise ValueError(f"--weight {self.weight} must be from 0 to 1; leave it out to drop the suspicious examples")
        if self.weight is None and self.weight_feature != "weight":
            raise ValueError(f"--weight_feature {self.weight_feature!r} goes with --weight; leave it out")
