"""The options of `beam-influence report`, each with its help."""

from __future__ import annotations

import dataclasses
import functools

from beam_influence.pipelines.options.option import option

MOST_POINTS = 1000
_option = functools.partial(option, group="report")


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """What a report shows.

    Attributes:
      results: the folder of a finished run, its `--output`.

    Raises:
      ValueError: an option is wrong; the message names it, its value and what to write instead.
    """

    results: str
    output: str = _option("report.html", "The page, one file; replaced where it is there already.")
    test_points: str = _option(
        "20",
        "How many test points: those on which one training example has the largest influence. Or their ids, separated by commas.",
    )
    top_k: int = _option(5, "How many helpful and how many harmful training examples to show beside each, as far as the run kept them.")
    show: str | None = _option(
        None,
        "Your function module:function({feature: value}) that shows an example: it returns text, an image file's bytes, an array of "
        "pixels, or a dictionary of named values. Default: found out (docs/report.md).",
    )
    class_names: str | None = _option(None, "What the classes are called, from class 0, separated by commas; default: by their numbers.")
    evaluation: str | None = _option(None, "The OUTPUT of beam-influence evaluate, whose figures for this run are shown.")
    model: str | None = _option(None, "The run's --model again, where that is your function module:function: a file names no code.")
    loss: str | None = _option(None, "The run's --loss again, where that is your own, module:function.")
    preprocess: str | None = _option(None, "The run's --preprocess again, where it had one.")

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError("RESULTS '' must name the folder of a finished run")
        if not self.output.endswith((".html", ".htm")):
            raise ValueError(f"--output {self.output!r} must be a file whose name ends in .html")
        if not self.test_points.strip():
            raise ValueError(f"--test_points {self.test_points!r} must be a number, or ids separated by commas")
        if self.point_count is not None and not 1 <= self.point_count <= MOST_POINTS:
            raise ValueError(f"--test_points {self.test_points} must be from 1 to {MOST_POINTS:,}")
        if self.top_k < 1:
            raise ValueError(f"--top_k {self.top_k} must be at least 1")
        if self.show is not None and ":" not in self.show:
            raise ValueError(f"--show {self.show!r} is not an import path; write it as 'package.module:function'")

        if self.class_names is not None and not all(self.classes):
            raise ValueError(f"--class_names {self.class_names!r} must name a class, from class 0, between its commas")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names in `class_names`."""
        return () if self.class_names is None else tuple(name.strip() for name in self.class_names.split(","))

    @property
    def point_count(self) -> int | None:
        """How many test points are to be chosen; None: they are named."""
        return int(self.test_points) if self.test_points.strip().lstrip("+-").isdecimal() else None

    @property
    def point_ids(self) -> list[str]:
        """The names in `test_points`."""
        return list(dict.fromkeys(name.strip() for name in self.test_points.split(",") if name.strip()))

    @property
    def code(self) -> dict[str, str | None]:
        """What may be named as code, by option."""
        return {"model": self.model, "loss": self.loss, "preprocess": self.preprocess}
