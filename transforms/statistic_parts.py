"""How a bundle's statistic leaves its worker, and how it is added up: small by value, large by path, in files of at most 32 MB.

A bundle is what a runner repeats, so each has a statistic of its own. Where that is large, its sums are written to files in a folder of
the bundle's own: what a bundle that failed has written is named by no part, and goes with the work folder. Nothing large is in an element,
and whoever adds the files up holds the sum and one file at a time.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
from apache_beam.typehints.decorators import with_input_types, with_output_types

from beam_influence.influence_ops.curvature import Curvature, Statistic
from beam_influence.transforms.broadcast import INLINE_LIMIT, INLINE_PART_LIMIT, Broadcast
from beam_influence.transforms.elements import StatisticPart
from beam_influence.transforms.files import join
from beam_influence.transforms.merging import MergingCombineFn

FILE_BYTES = 32 << 20


def send_statistic(curvature: Curvature, statistic: Statistic, layout: str, work: str) -> Iterator[StatisticPart]:
    """The parts of a bundle's statistic, which is emptied.

    Args:
      curvature: whose it is. What it merges in its own way, no sum, goes by value.
      layout: of the pass; see `StatisticPart`.
      work: a folder for temporary files that all workers reach.
    """
    adds = type(curvature).merge_part is Curvature.merge_part
    total = sum(part.nbytes for part in statistic.values() if isinstance(part, np.ndarray))
    limit = INLINE_PART_LIMIT if total > INLINE_LIMIT else INLINE_LIMIT
    folder = join(work, uuid.uuid4().hex)
    for name in list(statistic):
        part = statistic.pop(name)
        shape = part.shape if adds and isinstance(part, np.ndarray) else ()
        if not shape or part.nbytes <= limit:
            yield StatisticPart(name, part, layout, shape)
            continue
        rows = max(1, FILE_BYTES // max(1, part[:1].nbytes))
        saved = tuple(
            (first, Broadcast.publish({"rows": part[first : first + rows]}, {}, join(folder, name, f"{first:09d}"), inline_limit=0))
            for first in range(0, len(part), rows)
        )
        yield StatisticPart(name, None, layout, shape, saved)


@with_input_types(StatisticPart)
@with_output_types(StatisticPart)
class MergePartsCombineFn(MergingCombineFn[StatisticPart]):
    """Merges parts of one name: values are added, of files the paths are collected.

    Raises:
      ValueError: they are of other models, passes or shapes.
    """

    def __init__(self, curvature: Curvature):
        self._curvature = curvature

    def copy(self, element: StatisticPart) -> StatisticPart:
        return StatisticPart(element.name, copy.deepcopy(element.array), element.layout, element.shape, element.saved)

    def merge(self, total: StatisticPart, element: StatisticPart) -> StatisticPart:
        if (total.name, total.layout, total.shape) != (element.name, element.layout, element.shape):
            raise ValueError(
                f"two statistics do not belong together: part {total.name!r} {total.shape} of {total.layout[:12]} and {element.name!r} "
                f"{element.shape} of {element.layout[:12]}; the model or the program changed during the run: start it again"
            )
        if total.array is None or element.array is None:
            array = copy.deepcopy(element.array) if total.array is None else total.array
        else:
            array = self._curvature.merge_part(total.name, total.array, element.array)
        return StatisticPart(total.name, array, total.layout, total.shape, total.saved + element.saved)


def merged_array(part: StatisticPart) -> Any:
    """A part with its files added up, one after the other."""
    if not part.saved:
        return part.array
    total = None if part.array is None else np.array(part.array)  # the element may be given again
    for first, broadcast in part.saved:
        rows = broadcast.open()[0]["rows"]
        if total is None:
            total = np.zeros(part.shape, rows.dtype)
        total[first : first + len(rows)] += rows
    return total
