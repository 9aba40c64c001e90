"""Sums over groups, some groups at a time: how they leave a worker, and how they are added up, whatever the number of groups.

Groups fall into buckets by their names. A worker's sums leave as blocks of one bucket, by value where all of them are small, else as files
of at most 32 MB; a bucket's blocks are added up by one worker, which holds as many groups at once as it may. What a bundle that failed has
written is named by no block, and goes with the work folder.
"""

from __future__ import annotations

import dataclasses
import itertools
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping

import apache_beam as beam
import numpy as np
from apache_beam import pvalue

from beam_influence.influence_ops.results.text_arrays import bytes_to_texts, texts_to_bytes
from beam_influence.influence_ops.scoring.group_sums import GroupSums
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.elements import Bucket, GroupBlock
from beam_influence.transforms.files import join
from beam_influence.transforms.statistic_parts import FILE_BYTES
from beam_influence.transforms.typed import collection

GROUP_SUMS = "group_sums"
"""The tag of what `send_groups` gives."""
INLINE_LIMIT = 10 << 20
"""What a bundle sends by value; it is added up where it arrives, so that it costs less than what is broadcast."""
_BUCKETS = 64
_SUMS = "sums-"


def send_groups(output: str, parts: Mapping[str, GroupSums], work: str) -> list[tuple[Bucket, GroupBlock]]:
    """The blocks of one bundle's sums.

    Args:
      output: the name of the output that they are of.
      parts: its parts by key, of the same groups.
      work: a folder for temporary files that all workers reach.
    """
    names = [*dict.fromkeys(name for part in parts.values() for name in part.names)]
    if not names:
        return []
    buckets = np.array([zlib.crc32(name.encode()) % _BUCKETS for name in names])
    encoded = texts_to_bytes(names)
    total = sum(part.nbytes for part in parts.values())
    limit = INLINE_LIMIT if total <= INLINE_LIMIT else 0
    rows = _groups_in(FILE_BYTES, {key: part.queries for key, part in parts.items()})
    sent: list[tuple[Bucket, GroupBlock]] = []
    for bucket in np.unique(buckets).tolist():
        members = np.flatnonzero(buckets == bucket)
        members = members[np.argsort(encoded[members])]
        for first in range(0, len(members), rows):
            some = members[first : first + rows]
            of = {key: part.of([names[row] for row in some]) for key, part in parts.items()}
            sums = {key: found for key, (found, _) in of.items()}
            counts = np.max([count for _, count in of.values()], axis=0)
            sent.append(((output, bucket), _publish(encoded[some], counts, sums, work, limit)))
    return sent


def merge_groups(blocks: Iterable[GroupBlock], work: str, most: int) -> Iterator[GroupBlock]:
    """The sums of one bucket's blocks, as blocks of at most `most` bytes, or of one group; each group is in one of them.

    A block's groups are in order, so what is not in a range of names is not opened again.
    """
    known = sorted(blocks, key=lambda block: block.saved.digest)
    names, ends, widths = np.zeros(0, dtype="S1"), [], {}
    for block in known:
        own = block.saved.open(lambda name: name == "names")[0]["names"]
        names, widths = np.union1d(names, own), {**widths, **block.widths}
        ends.append((own[0], own[-1]))
    rows = _groups_in(min(most, FILE_BYTES), widths)
    for first in range(0, len(names), rows):
        some = np.asarray(names[first : first + rows])
        sums = {key: np.zeros((len(some), width)) for key, width in sorted(widths.items())}
        counts = {key: np.zeros(len(some), dtype=np.int64) for key in sums}
        for block, (low, high) in zip(known, ends, strict=True):
            if high >= some[0] and low <= some[-1]:
                _add(block, some, sums, counts)
        limit = INLINE_LIMIT // _BUCKETS if len(some) == len(names) else 0
        yield _publish(some, np.max(list(counts.values()), axis=0), sums, work, limit)


def open_groups(blocks: Iterable[GroupBlock], parts: Mapping[str, GroupSums]) -> dict[str, GroupSums]:
    """The blocks' sums by part, whose groups differ; of `parts`, which are empty, those that no block has."""
    known = [(block.widths, block.saved.open()[0]) for block in blocks]
    names = [bytes_to_texts(arrays["names"]).tolist() for _, arrays in known]
    opened = dict(parts)
    for key, width in {key: width for widths, _ in known for key, width in widths.items()}.items():
        own = [(arrays[_SUMS + key], arrays["counts"], some) for (widths, arrays), some in zip(known, names, strict=True) if key in widths]
        sums, counts, of_key = zip(*own, strict=True)
        opened[key] = GroupSums(width, list(itertools.chain(*of_key)), np.concatenate(sums), np.concatenate(counts))
    return opened


def _add(block: GroupBlock, names: np.ndarray, sums: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> None:
    """Adds those of the block's groups that are among the `names`, in place."""
    arrays = block.saved.open()[0]
    own = arrays["names"]
    start, stop = np.searchsorted(own, names[0]), np.searchsorted(own, names[-1], side="right")
    rows = np.searchsorted(names, own[start:stop])
    for key in block.widths:
        sums[key][rows] += arrays[_SUMS + key][start:stop]
        counts[key][rows] += arrays["counts"][start:stop]


def _groups_in(most: int, widths: Mapping[str, int]) -> int:
    return max(1, most // (8 * max(1, sum(widths.values()))))


def _publish(names: np.ndarray, counts: np.ndarray, sums: Mapping[str, np.ndarray], work: str, limit: int) -> GroupBlock:
    arrays = {"names": names, "counts": counts, **{_SUMS + key: found for key, found in sums.items()}}
    widths = tuple((key, found.shape[1]) for key, found in sums.items())
    folder = join(work, GROUP_SUMS, uuid.uuid4().hex)
    return GroupBlock(widths, sum(found.nbytes for found in sums.values()), Broadcast.publish(arrays, {}, folder, limit))


def _merged(element: tuple[Bucket, Iterable[GroupBlock]], work: str, most: int) -> Iterator[tuple[Bucket, GroupBlock]]:
    bucket, blocks = element
    return ((bucket, block) for block in merge_groups(blocks, work, most))


@dataclasses.dataclass
class MergeGroups(beam.PTransform):
    """Adds up the sums of all workers.

    Args:
      work: a folder for temporary files that all workers reach.
      most: how many bytes of sums a worker may hold.

    In: (`Bucket`, `GroupBlock`). Out: the same; each group is in one block.
    """

    work: str
    most: int

    def expand(self, sent: pvalue.PCollection[tuple[Bucket, GroupBlock]]) -> pvalue.PCollection[tuple[Bucket, GroupBlock]]:
        merge = beam.FlatMap(_merged, self.work, self.most).with_output_types(tuple[Bucket, GroupBlock])
        return collection(sent | "Bucket" >> beam.GroupByKey() | "Merge" >> merge)
