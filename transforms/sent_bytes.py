"""How much the bundles of a stage give to other workers, as counters of the job."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
from apache_beam.metrics.metric import Metrics

from beam_influence.transforms.read_shards import NAMESPACE

SENT = "_sent_bytes"
BUNDLES = "_bundles"


def count_sent(stage: str, values: list[Any]) -> None:
    """Counts what one bundle gives: the bytes of its arrays, and of anything else as it is pickled."""
    size = sum(value.nbytes if isinstance(value, np.ndarray) and value.dtype != object else len(pickle.dumps(value)) for value in values)
    Metrics.counter(NAMESPACE, f"{stage}{SENT}").inc(size)
    Metrics.counter(NAMESPACE, f"{stage}{BUNDLES}").inc()
