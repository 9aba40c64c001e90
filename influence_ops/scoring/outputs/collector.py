"""The loop over training examples: what a plain loop in memory and a worker of the Beam job share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa

from beam_influence.influence_ops.scoring.group_sums import GroupSums
from beam_influence.influence_ops.scoring.outputs.base import CombinedOutput, FinishedTable, RowOutput, Scoring
from beam_influence.influence_ops.scoring.outputs.table import outputs_of
from beam_influence.influence_ops.scoring.part import Part
from beam_influence.influence_ops.scoring.scores import BatchScores, Normalize


class Collector:
    """Everything that is asked for, over some of the training data.

    Attributes:
      row_outputs: those whose rows are written as they are made.
      parts: the others' parts, by output and key.
    """

    def __init__(self, scoring: Scoring):
        outputs = outputs_of(scoring.options.tables)
        self._scoring = scoring
        self._combined = [output for output in outputs if isinstance(output, CombinedOutput)]
        self.row_outputs = [output for output in outputs if isinstance(output, RowOutput)]
        self.parts: dict[str, dict[str, Part]] = {output.name: output.create(scoring) for output in self._combined}

    @property
    def normalize(self) -> Normalize:
        """See `ScoreOptions`."""
        return self._scoring.options.score.normalize

    def add(self, scored: BatchScores, write: Callable[[str, pa.Table], None]) -> None:
        """Takes in a batch; `write` is given rows and the name of their table."""
        if not len(scored.ids):
            return
        for output in self._combined:
            output.add(self.parts[output.name], scored, self._scoring)
        for output in self.row_outputs:
            for rows in output.rows(scored, self._scoring):
                write(output.name, self._scoring.options.written(rows))

    def take_groups(self, least: int = 0) -> Iterator[tuple[str, dict[str, GroupSums]]]:
        """The parts that are summed over groups, by their output, which begins anew; none whose sums take less than `least` bytes."""
        for output in self._combined:
            parts = {key: part for key, part in self.parts[output.name].items() if isinstance(part, GroupSums)}
            if output.by_group and sum(part.nbytes for part in parts.values()) >= least:
                self.parts[output.name] = output.create(self._scoring)
                yield output.name, parts

    def finish(self) -> Iterator[FinishedTable]:
        """The tables of the parts, which are over all training data by now."""
        for output in self._combined:
            for finished in output.finish(self.parts[output.name], self._scoring):
                yield finished._replace(rows=self._scoring.options.written(finished.rows))
