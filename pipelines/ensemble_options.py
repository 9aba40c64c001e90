"""The options of `beam-influence ensemble`, each with its help."""

from __future__ import annotations

import dataclasses
import functools
import os
import posixpath

from beam_influence.pipelines.options.option import REQUIRED, option

_option = functools.partial(option, group="ensemble")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleOptions:
    """What an ensemble is made of.

    Attributes:
      results: the folders of at least two finished runs over the same examples and test points, its members.

    Raises:
      ValueError: an option is wrong; the message names it, its value and what to write instead.
    """

    results: tuple[str, ...]
    output: str = _option(REQUIRED, "Folder for the results: the members' tables with their mean, and manifest.json.", names=True)
    top_k: int | None = _option(
        None, "How many training examples to keep for each test point, of the members' table scores. Default: the members' own.", least=1
    )
    interval_factor: float | None = _option(
        None,
        "How many standard errors a 90-percent interval is wide to either side, as evaluate coverage finds out by retraining. "
        "Default: that of Student's t, for the mean over all members that there could be.",
    )
    overwrite: bool = _option(False, "Replace the finished results that OUTPUT holds.")

    def __post_init__(self) -> None:
        folders = tuple(folder.strip().rstrip("/") for folder in self.results)
        object.__setattr__(self, "results", folders)
        if len(folders) < 2 or not all(folders):
            raise ValueError(f"RESULTS {' '.join(folders)!r} must be the folders of at least 2 finished runs: one has no standard error")
        places = [_place(folder) for folder in folders]
        twice = next((folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1), None)
        if twice is not None:
            raise ValueError(f"RESULTS has {twice!r} twice: a run that counts twice makes the standard error too small; leave it out")
        if not self.output.strip():
            raise ValueError("--output '' must name a folder")
        if _place(self.output) in places:
            raise ValueError(f"--output {self.output!r} is the folder of a member; give another one")
        if self.interval_factor is not None and not 0 < self.interval_factor < float("inf"):
            raise ValueError(f"--interval_factor {self.interval_factor} must be above 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"--top_k {self.top_k} must be at least 1")

    @property
    def factor(self) -> float:
        """Half the width of a 90 % interval in standard errors."""
        from beam_influence.influence_ops.ensemble.intervals import interval_factor

        return self.interval_factor or interval_factor(len(self.results))


def _place(folder: str) -> str:
    """What a folder is, however its path is written."""
    folder = folder.strip().rstrip("/")
    scheme, separator, rest = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(rest)}" if separator else os.path.realpath(folder)
