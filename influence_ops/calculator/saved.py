"""A calculator's tables on disk: the job's formats, with what they were made of, so that the same is known again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.results import result_files
from beam_influence.influence_ops.results.array_folder import LocalFiles, load_arrays, save_arrays
from beam_influence.influence_ops.scoring.outputs.table import TABLES

VECTORS = "influence_vectors"
_MADE_OF = "calculator"  # of the manifest
_EXAMPLES = "examples"  # the folder of the vectors' digests
_DIGESTS = "digests"


@dataclasses.dataclass(frozen=True)
class SavedTable:
    """One table of a finished run in a folder of its own.

    Attributes:
      path: the folder.
      table: the table's name.
      facts: of its files; see `schemas.facts`.
      made_of: what else the same content follows from: digests of the data, k, …
      curvature: the operator's description.
    """

    path: str
    table: str
    facts: Mapping[str, Any]
    made_of: Mapping[str, Any]
    curvature: Mapping[str, Any]

    def is_there(self) -> bool:
        """Whether this very table is there already.

        Raises:
          ValueError: another finished run is.
        """
        if not os.path.exists(os.path.join(self.path, result_files.MANIFEST)):
            return False
        manifest = result_files.read_manifest(self.path)
        before = manifest.get(_MADE_OF)
        if self.table not in manifest["tables"] or before is None:
            differing = ["what it is"]
        else:
            differing = differing_facts(result_files.read_facts(next(result_files.table_files(self.path, self.table))), self.facts)
            differing += [key for key, value in self.made_of.items() if before.get(key) != value]
        if differing:
            raise ValueError(
                f"{self.path!r} holds a finished run already, another one: {', '.join(differing)} differ; give another path, or delete it"
            )
        return True

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[pa.Table], None]]:
        """Writes the table's file, then what ends the run."""
        file = result_files.ParquetFile(self.path, self.table, "part-00000", TABLES[self.table], self.facts, LocalFiles())
        try:
            yield file.write
            written = file.close()
        except BaseException:
            file.abandon()
            raise
        content = {"curvature": dict(self.curvature), _MADE_OF: dict(self.made_of)}
        result_files.write_manifest(self.path, [written], content)


def differing_facts(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The facts in which a table was made otherwise than ours would be, each with both values."""
    differing = [key for key in ("model_fingerprint", "normalize", "curvature") if found.get(key) != wanted[key]]
    if not math.isclose(found.get("damping", math.nan), wanted["damping"], rel_tol=1e-9):  # 'auto' has another batch size's rounding
        differing.append("damping")
    return [f"{key} {found.get(key)!r}, not {wanted[key]!r}" for key in differing]


def digest_of(digests: np.ndarray) -> str:
    """One digest of a whole data set, in its order."""
    return f"{len(digests)} examples {hashlib.blake2b(digests.tobytes(), digest_size=16).hexdigest()}"


def save_digests(path: str, digests: np.ndarray) -> None:
    """Beside saved vectors: which examples they are of."""
    save_arrays(os.path.join(path, _EXAMPLES), {_DIGESTS: digests}, {})


def read_digests(path: str) -> np.ndarray | None:
    """What `save_digests` wrote; None beside a Beam job's vectors."""
    folder = os.path.join(path, _EXAMPLES)
    return load_arrays(folder)[0][_DIGESTS] if os.path.exists(os.path.join(folder, "meta.json")) else None


def vector_files(path: str, facts: Mapping[str, Any]) -> list[str]:
    """The files of saved vectors.

    Raises:
      ValueError: there are none, or they were made otherwise than ours would be.
    """
    paths = list(result_files.table_files(path, VECTORS))
    differing = differing_facts(result_files.read_facts(paths[0]), facts)
    if differing:
        raise ValueError(f"the influence vectors in {path!r} were made with {', '.join(differing)}; compute them again")
    return paths


class VectorReader:
    """Saved vectors, taken in their order: a Beam job's is that of its files and indices.

    Args:
      path, paths: the folder and its files.
      size: numbers in a vector.
    """

    def __init__(self, path: str, paths: Iterable[str], size: int):
        self._path = path
        tables_read = (rows for file in paths for rows in result_files.iterate_table(file))
        self._blocks = (np.asarray(rows.column("vector").flatten()).reshape(rows.num_rows, -1) for rows in tables_read)
        self._waiting = np.zeros((0, size))
        self._digests = read_digests(path)
        self._taken = 0

    def take(self, digests: np.ndarray) -> np.ndarray:
        """The next vectors, those of the examples with `digests`.

        Raises:
          ValueError: there are fewer, or they are of other examples.
        """
        count = len(digests)
        while len(self._waiting) < count:
            more = next(self._blocks, None)
            if more is None:
                raise ValueError(f"{self._path!r} holds fewer influence vectors than the dataset has examples; they are of another dataset")
            if more.shape[1] != self._waiting.shape[1]:
                raise ValueError(f"{self._path!r} holds vectors of {more.shape[1]} numbers, not of {self._waiting.shape[1]}")
            self._waiting = np.concatenate([self._waiting, more])
        if self._digests is not None and not np.array_equal(self._digests[self._taken : self._taken + count], digests):
            raise self.mismatch()
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        self._taken += count
        return taken

    def end(self) -> None:
        """Refuses vectors that are left."""
        if len(self._waiting) or next(self._blocks, None) is not None:
            raise ValueError(f"{self._path!r} holds more influence vectors than the dataset has examples; they are of another dataset")

    def mismatch(self) -> ValueError:
        """That the vectors are not the examples'."""
        return ValueError(
            f"the influence vectors in {self._path!r} are of other examples, or in another order, than the dataset's; a dataset that is "
            "shuffled needs reshuffle_each_iteration=False"
        )
