"""The end of a run: what only its own stages needed is removed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.transforms.files import join
from beam_influence.transforms.folders import delete_files, delete_folder, list_temporary
from beam_influence.transforms.typed import collection


def clear_work(output: str, tables: tuple[str, ...], work: str) -> None:
    """Removes the work folder of a finished run, and what workers that were killed in it have left in the folders of its tables:
    their files were written again under other names."""
    delete_folder(work)
    delete_files(itertools.chain.from_iterable(list_temporary(join(output, table)) for table in tables))


class _ClearWorkDoFn(beam.DoFn):
    def __init__(self, output: str, tables: tuple[str, ...], work: str):
        self._of = (output, tables, work)

    def process(self, manifest: str) -> Iterator[str]:
        clear_work(*self._of)
        yield manifest


@dataclasses.dataclass
class ClearWork(beam.PTransform):
    """Clears up as the job's last step, for a launcher that does not wait for its end.

    Args:
      output: the folder of the results.
      tables: the folders in it that workers write to.
      work: the work folder.

    In and out: the manifest's path; the run is finished by then.
    """

    output: str
    tables: tuple[str, ...]
    work: str

    def expand(self, manifest: pvalue.PCollection[str]) -> pvalue.PCollection[str]:
        clear = beam.ParDo(_ClearWorkDoFn(self.output, self.tables, self.work)).with_output_types(str)
        return collection(manifest | "Clear" >> clear)
