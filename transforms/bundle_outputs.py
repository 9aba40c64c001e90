"""What a worker keeps of the outputs: parts until the bundle ends, and files until the shard does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from apache_beam import pvalue

from beam_influence.influence_ops.curvature import Preconditioner
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.results.result_files import ParquetFile
from beam_influence.influence_ops.scoring.outputs.base import OutputOptions, Scoring
from beam_influence.influence_ops.scoring.outputs.collector import Collector
from beam_influence.influence_ops.scoring.scores import BatchScores
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.elements import FILES, PARTS, QueryReference, Shard, at_end_of_bundle
from beam_influence.transforms.embed_queries import open_queries
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.finish_curvature import open_preconditioner
from beam_influence.transforms.open_model import ModelSpec


def open_scoring(
    options: OutputOptions, preconditioner: Broadcast, references: Iterable[QueryReference], model: ModelSpec | None = None
) -> Scoring:
    """What outputs are made with on this worker; without `model`, only those that need neither it nor the operator."""

    def open_operator() -> tuple[InfluenceModel, Preconditioner]:
        assert model is not None
        session = model.session()
        return session, open_preconditioner(preconditioner).bind(session)

    keys, blocks = open_queries(references)
    return Scoring(options, dict(zip(keys, blocks, strict=True)), preconditioner.description, open_operator)


class BundleOutputs:
    """The outputs of one DoFn.

    Args:
      output: the folder of the results.
    """

    def __init__(self, output: str):
        self._output = output
        self._collector: Collector | None = None
        self._files: dict[str, ParquetFile] = {}

    def start_bundle(self) -> None:
        """Begins with nothing."""
        self._collector = None

    def begin_shard(self, shard: Shard, scoring: Scoring) -> Collector:
        """Opens the shard's files; `scoring` is the same for all shards of a bundle."""
        if self._collector is None:
            self._collector = Collector(scoring)
        for output in self._collector.row_outputs:
            for table, schema in output.tables.items():
                name = f"shard-{shard.ordinal:05d}"
                self._files[table] = ParquetFile(self._output, table, name, schema, scoring.facts, BeamFiles())
        return self._collector

    def add(self, scored: BatchScores) -> None:
        """Takes in a batch of the shard."""
        assert self._collector is not None
        self._collector.add(scored, lambda table, rows: self._files[table].write(rows))

    def end_shard(self) -> Iterator[pvalue.TaggedOutput]:
        """Closes the shard's files and gives them."""
        for file in self._files.values():
            yield pvalue.TaggedOutput(FILES, file.close())
        self._files = {}

    def abandon_shard(self) -> None:
        """Leaves nothing of the shard's files."""
        for file in self._files.values():
            file.abandon()
        self._files = {}

    def finish_bundle(self) -> Iterator[pvalue.TaggedOutput]:
        """Gives the parts."""
        for name, parts in ({} if self._collector is None else self._collector.parts).items():
            for key, part in parts.items():
                yield pvalue.TaggedOutput(PARTS, at_end_of_bundle(((name, key), part)))
        self._collector = None
