"""What a worker keeps of the outputs: parts until the bundle ends, and files until the shard does."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from apache_beam import pvalue
from apache_beam.utils.shared import Shared

from beam_influence.influence_ops.results.result_files import ParquetFile
from beam_influence.influence_ops.scoring.group_sums import GroupSums
from beam_influence.influence_ops.scoring.outputs.base import OutputOptions, Scoring
from beam_influence.influence_ops.scoring.outputs.collector import Collector
from beam_influence.influence_ops.scoring.query_block import QueryArray, QueryBlock
from beam_influence.influence_ops.scoring.scores import BatchScores
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.elements import FILES, PARTS, Bucket, GroupBlock, QueryReference, Shard, at_end_of_bundle
from beam_influence.transforms.embed_queries import QUERY_ERROR, open_block
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.finish_curvature import open_operator
from beam_influence.transforms.group_blocks import GROUP_SUMS, send_groups
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.sent_bytes import count_sent


class OpenedInTurn:
    """Blocks with some of their arrays; each is opened when it is its turn, and held by nobody here."""

    def __init__(self, references: list[QueryReference], *arrays: QueryArray):
        self._references = references
        self._arrays = arrays

    def __iter__(self) -> Iterator[QueryBlock]:
        return (open_block(reference, self._arrays) for reference in self._references)


def open_scoring(
    options: OutputOptions,
    preconditioner: Broadcast,
    references: Iterable[QueryReference],
    model: ModelSpec,
    needs: Collection[QueryArray] = (),
) -> Scoring:
    """What outputs are made with on this worker; the blocks have the arrays that are needed. Solutions are opened when the first batch
    is scored, block by block."""
    known = sorted(references, key=lambda reference: reference.key)
    queries = {reference.key: open_block(reference, needs) for reference in known}
    in_turn = OpenedInTurn(known, *(("gradients",) if options.by_embedding else ("solved", "errors")))
    scoring = Scoring(options, queries, preconditioner.description, lambda: open_operator(model, preconditioner), lambda: in_turn)
    errors = [meta[QUERY_ERROR] for reference in known if QUERY_ERROR in (meta := reference.broadcast.description)]
    if errors:
        scoring.facts[QUERY_ERROR] = max(errors)
    return scoring


class BundleOutputs:
    """The outputs of one DoFn.

    Args:
      options: what is asked for.
      model: the model.
      folder: of the results.
      needs: the arrays of test points that are looked at beside their solutions.
      number: of the round over the training set, from 0.
      shared: what a process holds its test points by: one for all rounds, so that it lets go of a round's when the next begins.
      work: a folder for temporary files that all workers reach.
      group_bytes: what sums over groups may take before they leave.
    """

    def __init__(
        self,
        options: OutputOptions,
        model: ModelSpec,
        folder: str,
        needs: Collection[QueryArray] = (),
        number: int = 0,
        shared: Shared | None = None,
        work: str = "",
        group_bytes: int = 0,
    ):
        self._needs = needs
        self._suffix = f"-round-{number:05d}" if number else ""
        self._options = options
        self._model = model
        self._folder = folder
        self._shared = shared or Shared()
        self._collector: Collector | None = None
        self._files: dict[str, ParquetFile] = {}
        self._work = work
        self._group_bytes = group_bytes
        self._sent: list[tuple[Bucket, GroupBlock]] = []

    def open(self, preconditioner: Broadcast, references: Iterable[QueryReference]) -> Scoring:
        """What this process makes outputs with: opened once, and the same for all shards of a bundle."""
        known = sorted(references, key=lambda reference: reference.key)
        tag = f"{self._model}|{self._options}|{preconditioner.digest}|{[reference.broadcast.digest for reference in known]}"
        scoring: Scoring = self._shared.acquire(
            lambda: open_scoring(self._options, preconditioner, known, self._model, self._needs), tag=tag
        )
        if self._collector is None:
            self._collector = Collector(scoring)
        return scoring

    def start_bundle(self) -> None:
        """Begins with nothing."""
        self._collector, self._sent = None, []

    @property
    def collector(self) -> Collector:
        """What is kept of this bundle, once it is open."""
        assert self._collector is not None
        return self._collector

    def begin_shard(self, shard: Shard, scoring: Scoring) -> None:
        """Opens the shard's files."""
        for output in self.collector.row_outputs:
            for table, schema in output.tables.items():
                name = f"shard-{shard.key}{self._suffix}"
                self._files[table] = ParquetFile(self._folder, table, name, self._options.schema(schema), scoring.facts, BeamFiles())

    def add(self, scored: BatchScores) -> None:
        """Takes in a batch of the shard."""
        self.collector.add(scored, lambda table, rows: self._files[table].write(rows))
        self._send_groups(self._group_bytes)

    def _send_groups(self, least: int) -> None:
        for name, parts in self.collector.take_groups(least):
            self._sent += send_groups(name, parts, self._work)

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
        if self._collector is None:
            return
        self._send_groups(0)
        parts = [((name, key), part) for name, by_key in self._collector.parts.items() for key, part in by_key.items()]
        parts = [element for element in parts if not isinstance(element[1], GroupSums)]
        count_sent("score", [part for _, part in parts] + [block for _, block in self._sent])
        for tag, elements in ((PARTS, parts), (GROUP_SUMS, self._sent)):
            for element in elements:
                yield pvalue.TaggedOutput(tag, at_end_of_bundle(element))
        self._collector, self._sent = None, []
