"""How much the bundles of a stage give to other workers, as counters of the job."""

from __future__ import annotations

from typing import Any

import numpy as np
from apache_beam.coders import FastPrimitivesCoder
from apache_beam.metrics.metric import Metrics

from beam_influence.transforms.read_shards import NAMESPACE

SENT = "_sent_bytes"
BUNDLES = "_bundles"


def count_sent(stage: str, values: list[Any]) -> None:
    """Counts what one bundle gives: the bytes of its arrays, and of anything else as Beam encodes it."""
    coder = FastPrimitivesCoder()
    is_plain = [isinstance(value, np.ndarray) and value.dtype != object for value in values]
    size = sum(value.nbytes if plain else len(coder.encode(value)) for value, plain in zip(values, is_plain, strict=True))
    Metrics.counter(NAMESPACE, f"{stage}{SENT}").inc(size)
    Metrics.counter(NAMESPACE, f"{stage}{BUNDLES}").inc()
