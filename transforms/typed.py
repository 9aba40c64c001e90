"""Types for what Beam's `|` gives: Beam declares `PValue`, whatever the transform on the right returns."""

from __future__ import annotations

from typing import Any, cast

import apache_beam as beam
from apache_beam import pvalue


def collection(applied: Any) -> pvalue.PCollection[Any]:
    """The one output of a transform."""
    return cast("pvalue.PCollection[Any]", applied)


def outputs(applied: Any) -> pvalue.DoOutputsTuple:
    """The tagged outputs of a `ParDo(...).with_outputs(...)`."""
    return cast(pvalue.DoOutputsTuple, applied)


def run_once(pipeline: beam.Pipeline, label: str, fn: beam.DoFn, kind: Any, *sides: pvalue.AsSideInput) -> pvalue.PCollection[Any]:
    """What `fn` gives, of type `kind`, for one None and the side inputs, which are complete by then."""
    start = pipeline | f"Once[{label}]" >> beam.Create([None], reshuffle=False)
    return collection(start | label >> beam.ParDo(fn, *sides).with_output_types(kind))
