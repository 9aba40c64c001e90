"""What a page shows of a run's tables: each is read once, a row group at a time, and only where it is needed."""

from __future__ import annotations

import dataclasses
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from beam_influence.influence_ops.arrow_compute import pc
from beam_influence.influence_ops.results.result_files import iterate_table, naming_listed, read_facts, table_files
from beam_influence.report.concentration import Concentration
from beam_influence.report.strongest import Score, Strongest
from beam_influence.report.token_scores import ByPosition
from beam_influence.transforms.embed_queries import QUERY_ERROR
from beam_influence.transforms.files import BeamFiles

_ROWS = 1 << 16
_ROWS_BY_POSITION = 1 << 10  # with a list for each position
_MOST_KINDS = 50
_MOST_REJECTED = 20
MOST_GROUPS = 12


@dataclasses.dataclass(frozen=True)
class PointScores:
    """A test point's most helpful and most harmful training examples; None where the run did not keep that end."""

    test_id: str
    helpful: list[Score] | None
    harmful: list[Score] | None


@dataclasses.dataclass(frozen=True)
class SelfInfluence:
    """The training examples of the largest self-influence, and how it is distributed; `spread` None: only the first were kept."""

    first: list[Score]
    count: int
    spread: Concentration | None


@dataclasses.dataclass(frozen=True)
class Group:
    """What the removal of a group does: to the sum of the test points' losses (of `test_group`, where it is not all), or to its own."""

    name: str
    test_group: str | None
    influence: float
    loss_change: float | None
    count: int


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups that help most, then those that harm most, and how many there are; then those of the test points of one group."""

    shown: list[Group]
    count: int
    of_test_groups: list[Group]
    of_test_groups_count: int


class _Ends:
    """The groups at either end, `MOST_GROUPS` of each."""

    def __init__(self) -> None:
        self._heaps: dict[int, list[tuple[float, int, Group]]] = {1: [], -1: []}
        self.count = 0

    def add(self, group: Group) -> None:
        """Keeps the group while it is among them."""
        self.count += 1
        sign = 1 if group.influence >= 0 else -1
        heap = self._heaps[sign]
        (heapq.heappush if len(heap) < MOST_GROUPS else heapq.heappushpop)(heap, (sign * group.influence, -self.count, group))

    def sorted(self) -> list[Group]:
        """Those that were kept, the most helpful first."""
        kept = [group for heap in self._heaps.values() for _, _, group in heap]
        return sorted(kept, key=lambda group: (-group.influence, group.name))


@dataclasses.dataclass(frozen=True)
class RejectedRows:
    """How many examples were left out, by split and error, and the first of them."""

    count: int
    kinds: list[tuple[str, str, int]]
    first: list[dict[str, Any]]


class RunTables:
    """The tables of a finished run.

    Args:
      folder: the run's output.
      manifest: its manifest.

    Attributes:
      names: the tables that the run wrote.
      of_candidates: whether it scored candidates in place of training examples.
    """

    def __init__(self, folder: str, manifest: Mapping[str, Any]):
        self._folder = folder
        self.names = set(manifest["tables"])
        self.of_candidates = manifest["config"].get("candidates") is not None
        self._order = manifest["config"]["order"]
        self._n = manifest["curvature"].get("examples") or 0
        self._per_token = bool(manifest["config"].get("per_token"))

    def choose_points(self, count: int) -> list[str]:
        """The test points on which one training example has the largest influence; without `top_k`, the first ones of `scores`."""
        if "top_k" in self.names:
            best = Strongest(count, "descending", name="test_id")
            for batch in self._batches("top_k", ["test_id", "rank", "influence", "loss_change"]):
                first = batch.filter(pc.equal(batch.column("rank"), 1))
                place = first.schema.get_field_index("influence")
                best.add(first.set_column(place, "influence", pc.abs(first.column("influence"))))
            return [score.id for score in best.rows().get(None, [])]
        found: dict[str, None] = {}
        for batch in self._batches("scores", ["test_id"]) if "scores" in self.names else ():
            found.update(dict.fromkeys(batch.column("test_id").unique().to_pylist()))
            if len(found) >= count:
                break
        return list(found)[:count]

    def of_points(self, test_ids: Sequence[str], k: int) -> list[PointScores]:
        """The k most helpful and the k most harmful examples of some test points.

        Raises:
          ValueError: the run has no such test point.
        """
        ends = {"descending": Strongest(k, "descending", "test_id"), "ascending": Strongest(k, "ascending", "test_id")}
        whole = "scores" in self.names
        for end in ends if whole else [self._order]:
            wanted = pa.array(test_ids, pa.string())
            for batch in self._batches("scores" if whole else "top_k", ["test_id", "train_id", "influence", "loss_change"]):
                ends[end].add(batch.filter(pc.is_in(batch.column("test_id"), wanted)))
        rows = {end: strongest.rows() for end, strongest in ends.items()}
        for test_id in test_ids:
            if not any(test_id in of_end for of_end in rows.values()):
                raise ValueError(f"--test_points: the run in {self._folder!r} has no test point {test_id!r}{self._example_of_id()}")
        helpful, harmful = rows["descending"], rows["ascending"]
        has = {end: whole or self._order == end for end in ends}
        return [
            PointScores(
                test_id,
                [row for row in helpful.get(test_id, []) if row.influence > 0] if has["descending"] else None,
                [row for row in harmful.get(test_id, []) if row.influence < 0] if has["ascending"] else None,
            )
            for test_id in test_ids
        ]

    def by_position(self, points: Sequence[PointScores]) -> dict[tuple[str, str], tuple[ByPosition, ByPosition]]:
        """Of each of these pairs of a test point and a training example, the score over the positions of the training example's sequence,
        and over those of the test point's; none where the run had no --per_token."""
        wanted = {(point.test_id, score.id) for point in points for score in (*(point.helpful or ()), *(point.harmful or ()))}
        test_ids = pa.array([point.test_id for point in points], pa.string())
        found = {}
        for batch in self._batches("top_k", rows=_ROWS_BY_POSITION) if self._per_token and wanted else ():
            for row in batch.filter(pc.is_in(batch.column("test_id"), test_ids)).to_pylist():
                if (row["test_id"], row["train_id"]) in wanted:
                    sides = [ByPosition(row[f"{split}_token_scores"], row[f"{split}_unplaced_score"]) for split in ("train", "test")]
                    found[row["test_id"], row["train_id"]] = (sides[0], sides[1])
        return found

    def self_influence(self, count: int) -> SelfInfluence | None:
        """The `count` examples of the largest self-influence; None where the run wrote none, or kept only the smallest."""
        if "self_influence" in self.names:
            best, spread = Strongest(count, "descending"), Concentration()
            for batch in self._batches("self_influence"):
                best.add(batch)
                spread.add(batch.column("influence").to_numpy())
            return SelfInfluence(best.rows().get(None, []), spread.count, spread)
        if "self_influence_top_k" in self.names and self._order == "descending":
            best = Strongest(count, "descending")
            for batch in self._batches("self_influence_top_k"):
                best.add(batch)
            return SelfInfluence(best.rows().get(None, []), self._n, None)
        return None

    def groups(self) -> Groups | None:
        """The groups of `group_influence` on the sums over test points, or of `group_self_influence`; None where there is neither."""
        name = next((name for name in ("group_influence", "group_self_influence") if name in self.names), None)
        if name is None:
            return None
        all_points, of_groups = _Ends(), _Ends()
        for batch in self._batches(name):
            for row in (batch.filter(pc.is_null(batch.column("test_id"))) if name == "group_influence" else batch).to_pylist():
                group = Group(row["group"], row.get("test_group"), row["influence"], row["loss_change"], row["count"])
                (all_points if group.test_group is None else of_groups).add(group)
        return Groups(all_points.sorted(), all_points.count, of_groups.sorted(), of_groups.count)

    def rejected(self) -> RejectedRows:
        """What was left out."""
        kinds: Counter[tuple[str, str]] = Counter()
        first: list[dict[str, Any]] = []
        for batch in self._batches("rejected") if "rejected" in self.names else ():
            for pair in zip(batch.column("split").to_pylist(), batch.column("error").to_pylist(), strict=True):
                kinds[pair if pair in kinds or len(kinds) < _MOST_KINDS else (pair[0], "other")] += 1
            if len(first) < _MOST_REJECTED:
                first += batch.slice(0, _MOST_REJECTED - len(first)).to_pylist()
        return RejectedRows(kinds.total(), [(*pair, times) for pair, times in kinds.most_common()], first)

    def query_error(self) -> float | None:
        """The error of test points that were kept as factors; see `--query_rank`. None where they were kept whole."""
        for name in ("top_k", "scores"):
            for path in self._paths(name):
                return read_facts(path, BeamFiles()).get(QUERY_ERROR)
        return None

    def _example_of_id(self) -> str:
        some = self.choose_points(1)
        return f"; one that it has is {some[0]!r}" if some else "; it has none: give it --test"

    def _paths(self, name: str) -> Iterator[str]:
        return table_files(self._folder, name, BeamFiles()) if name in self.names else iter(())

    def _batches(self, name: str, columns: list[str] | None = None, rows: int = _ROWS) -> Iterator[pa.RecordBatch]:
        for path in self._paths(name):
            with naming_listed(path):
                yield from iterate_table(path, BeamFiles(), rows, columns)

