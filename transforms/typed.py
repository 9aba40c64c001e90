"""Types for what Beam's `|` gives: Beam declares `PValue`, whatever the transform on the right returns."""

from __future__ import annotations

from typing import Any, cast

from apache_beam import pvalue


def collection(applied: Any) -> pvalue.PCollection[Any]:
    """The one output of a transform."""
    return cast("pvalue.PCollection[Any]", applied)


def outputs(applied: Any) -> pvalue.DoOutputsTuple:
    """The tagged outputs of a `ParDo(...).with_outputs(...)`."""
    return cast(pvalue.DoOutputsTuple, applied)
