"""The options of `beam-influence export`, each with its help."""

from __future__ import annotations

import dataclasses
import functools

from beam_influence.pipelines.clean_options import check_share
from beam_influence.pipelines.options.option import REQUIRED, option

TARGETS = ("duckdb", "pandas", "spotlight", "cleanlab", "ids")
_OF_ISSUES = ("cleanlab", "ids")
_WITH_EXAMPLES = ("duckdb", "pandas", "spotlight")
_option = functools.partial(option, group="export")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What is written for which other program.

    Attributes:
      results: the folder of a finished run.

    Raises:
      ValueError: an option is wrong; the message names it, its value and what to write instead.
    """

    results: str
    to: str = _option(
        REQUIRED,
        "For what: duckdb, a database of all tables and examples; pandas, one Parquet table of scores with their training examples; "
        "spotlight, that and pictures; cleanlab, is_label_issue and label_score; ids, those to drop, one a line.",
        choices=TARGETS,
    )
    output: str = _option(REQUIRED, "The file that is written.")
    table: str | None = _option(
        None, "With --to pandas and spotlight: which table of the run. Default: self_influence, else top_k, whichever it has."
    )
    features: str = _option(
        "all",
        "With --to duckdb, pandas and spotlight: which features of the examples are written: all, none, or names separated by commas.",
    )
    share: float | None = _option(
        None, "With --to cleanlab and ids: the part of the training examples that is suspicious: those of the largest self-influence."
    )
    overwrite: bool = _option(False, "Replace the file that is there.")

    def __post_init__(self) -> None:
        if not self.results.strip():
            raise ValueError("RESULTS '' must name the folder of a finished run")
        if self.to not in TARGETS:
            raise ValueError(f"--to {self.to!r} must be one of {', '.join(TARGETS)}")
        if not self.output.strip():
            raise ValueError("--output '' must name a file")
        if self.to in _OF_ISSUES and self.share is None:
            raise ValueError(f"--to {self.to} needs --share, the part of the training examples whose labels are suspicious, such as 0.05")
        if self.to not in _OF_ISSUES and self.share is not None:
            raise ValueError(f"--share {self.share} goes with --to {' and '.join(_OF_ISSUES)}, not {self.to}; leave it out")
        if self.share is not None:
            check_share(self.share, "--share")
        if self.to not in _WITH_EXAMPLES and self.features != "all":
            raise ValueError(f"--features {self.features!r} goes with --to {', '.join(_WITH_EXAMPLES)}, not {self.to}; leave it out")
        if self.to not in ("pandas", "spotlight") and self.table is not None:
            raise ValueError(f"--table {self.table!r} goes with --to pandas and spotlight, not {self.to}; leave it out")

    @property
    def feature_names(self) -> list[str] | None:
        """The names in `features`; None: all."""
        if self.features.strip() == "all":
            return None
        return [name.strip() for name in self.features.split(",") if name.strip() not in ("", "none")]
