"""The results of a finished run as an object: its tables, and what must be known to use them."""

from __future__ import annotations

import dataclasses
import html
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.results.result_files import (
    WrittenFile,
    iterate_table,
    naming_listed,
    read_manifest,
    table_files,
    written_files,
)
from beam_influence.influence_ops.scoring.outputs.table import TABLES
from beam_influence.pipelines.runners import open_file_systems
from beam_influence.transforms.files import BeamFiles

if typing.TYPE_CHECKING:  # of the extra report
    from matplotlib.figure import Figure

_ROWS = 1 << 17  # some 4 MB of ids and scores


def load_influence(folder: str | os.PathLike[str], beam_arguments: Sequence[str] = ()) -> Influence:
    """Opens the results of a finished run; tables are read when they are asked for.

    Args:
      folder: the run's `--output`, on this machine or on any file system of Beam's.
      beam_arguments: options of such a file system, such as `--s3_endpoint_url=http://HOST:PORT`.

    Raises:
      ValueError: no run has finished there, or the folder's manifest is not one of this package.

    Example:
      influence = load_influence("out/digits/influence")
      influence.explain("test-00000-of-00001.tfrecord.gz:2").to_pandas()
    """
    folder = os.fspath(folder)
    if beam_arguments:
        open_file_systems(beam_arguments)
    try:
        manifest = read_manifest(folder, BeamFiles())
        config = manifest["config"]
        facts = schemas.facts(manifest["curvature"], config["normalize"], config["removal"], config.get("candidates") is not None)
    except ValueError as error:
        raise ValueError(f"there are no results to load: {error}") from error
    except KeyError as error:
        raise ValueError(f"there are no results to load: the manifest in {folder!r} lacks {error}; it is of another program") from error
    return Influence(folder, manifest, facts)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Influence:
    """The results of a finished run. Each table is an attribute, such as `top_k` and `self_influence`.

    Attributes:
      folder: where they are.
      manifest: the content of `manifest.json`: options, counts, tables, model, versions.
      facts: what is in the metadata of each of the run's score files, too.
    """

    folder: str
    manifest: Mapping[str, Any]
    facts: Mapping[str, Any]
    _read_tables: dict[str, pa.Table] = dataclasses.field(default_factory=dict, init=False)

    @property
    def sign(self) -> str:
        """What a positive and a negative `influence` mean."""
        return self.facts["sign"]

    @property
    def unit(self) -> str:
        """What `influence` is measured in, and what makes the predicted change of the loss of it, which is the column `loss_change`."""
        return self.facts["unit"]

    @property
    def n(self) -> int | None:
        """The number of training examples, by which `influence` is divided for the predicted change of the loss; None: it can't be, or
        n is not known."""
        return self.facts["n"] or None if self.facts["normalize"] == "none" else None

    @property
    def curvature(self) -> Mapping[str, Any]:
        """Facts of the curvature: its name, `damping`, `rank`, eigenvalues, the model's `fingerprint`, where it has them."""
        return self.manifest["curvature"]

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the tables that the run wrote."""
        return tuple(sorted(self.manifest["tables"]))

    def files(self) -> Iterator[WrittenFile]:
        """The run's files, by path: table, path below the folder, rows, bytes. Their list is read as you go, however long it is.

        Raises:
          ValueError: it is missing or damaged.
        """
        return written_files(self.folder, self.manifest, BeamFiles())

    def table(self, name: str) -> pa.Table:
        """A whole table, read once and kept.

        Raises:
          ValueError: the run wrote no such table; the message says how to have it.
        """
        if name not in self._read_tables:
            self._read_tables[name] = pa.concat_tables([self._read(path) for path in self.paths(name)])
        return self._read_tables[name]

    def batches(self, name: str, rows: int = _ROWS) -> Iterator[pa.RecordBatch]:
        """A table of any size, at most so many rows at once.

        Raises:
          ValueError: the run wrote no such table; the message says how to have it.
        """
        return (batch for path in self.paths(name) for batch in self._batches(path, rows))

    def explain(self, test_id: str) -> pa.Table:
        """The rows of `top_k` for one test point, by rank: rank, train_id, influence, loss_change (of candidates: rank, candidate_id,
        influence, loss_change_if_added).

        Raises:
          ValueError: the run wrote no `top_k`, or it has no such test point.
        """
        if not isinstance(test_id, str):
            raise ValueError(f"explain({test_id!r}): a test point is named by its id, which is text, such as 'test.tfrecord:{test_id}'")
        found = pa.concat_tables([self._read(path, [("test_id", "==", test_id)]) for path in self.paths("top_k")])
        if not found.num_rows:
            first = next((batch.column("test_id")[0].as_py() for batch in self.batches("top_k", 1)), None)
            raise ValueError(f"the run in {self.folder!r} has no test point {test_id!r}; the first that it has is {first!r}")
        return found.sort_by("rank").drop_columns(["test_id"])

    def plot_groups(self) -> Figure:
        """What the removal of each group does to the loss, as bars; the groups that help and harm most.

        Raises:
          ValueError: the run had no groups.
          ImportError: Matplotlib, of the extra report, is not installed.
        """
        from beam_influence.report import charts
        from beam_influence.report.tables import RunTables

        groups = RunTables(self.folder, self.manifest).groups()
        if groups is None:
            raise ValueError(f"the run in {self.folder!r} had no groups; run it with --group_feature FEATURE --outputs group_influence")
        return charts.plot_groups(groups.shown)

    def plot_concentration(self) -> Figure:
        """The share of the total self-influence that the first training examples have, against how many of them.

        Raises:
          ValueError: the run wrote no `self_influence`.
          ImportError: Matplotlib, of the extra report, is not installed.
        """
        from beam_influence.report import charts
        from beam_influence.report.tables import RunTables

        self.paths("self_influence")  # which says how to have it
        found = RunTables(self.folder, self.manifest).self_influence(1)
        assert found is not None and found.spread is not None
        return charts.plot_concentration([charts.Curve("self-influence", found.spread)])

    def _repr_html_(self) -> str:
        """The report of some test points, in a frame of its own, where a notebook's cell ends with this object."""
        try:
            from beam_influence.pipelines.report import frame
        except ImportError as error:
            return f"<p>{html.escape(repr(self))}</p><p>Its report needs the extra report ({html.escape(str(error))}).</p>"
        try:
            return frame(self.folder)
        except ValueError as error:  # a run without scores has no report
            return f"<p>{html.escape(repr(self))}</p><p>{html.escape(str(error))}</p>"

    def paths(self, name: str) -> Iterator[str]:
        """The files of a table, in order.

        Raises:
          ValueError: the run wrote no such table; the message says how to have it.
        """
        if name not in self.tables and name not in TABLES:
            raise ValueError(f"there is no table {name!r}; the run in {self.folder!r} wrote {', '.join(self.tables)}")
        return table_files(self.folder, name, BeamFiles())

    def _batches(self, path: str, rows: int) -> Iterator[pa.RecordBatch]:
        with naming_listed(path):
            yield from iterate_table(path, BeamFiles(), rows)

    def _read(self, path: str, filters: list[tuple[str, str, str]] | None = None) -> pa.Table:
        with naming_listed(path), BeamFiles().open_read(path) as file:
            return pq.read_table(pa.PythonFile(file, mode="r"), filters=filters)

    def __getattr__(self, name: str) -> pa.Table:
        if name not in TABLES:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        try:
            return self.table(name)
        except ValueError as error:
            raise AttributeError(str(error)) from error

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.tables})

    def __repr__(self) -> str:
        return f"<Influence in {self.folder!r}: {', '.join(self.tables)}>"
