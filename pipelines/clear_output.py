"""The output folder before and after a run: no file of an earlier or killed run stays among the results."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

from apache_beam.io.filesystems import FileSystems

from beam_influence.influence_ops.results.listed_files import LIST_BEGINNING, is_list_name
from beam_influence.influence_ops.results.result_files import read_manifest, written_files
from beam_influence.influence_ops.scoring.index import INDEX
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.transforms.clear_work import ClearWork, clear_work
from beam_influence.transforms.files import BeamFiles, iterate_matches, join
from beam_influence.transforms.folders import delete_files, list_folder, list_temporary, quoted


def clear_output(config: InfluenceConfig, tables: tuple[str, ...], manifest: str, kept: tuple[str, ...] = ()) -> None:
    """Makes the output folder ready: a finished run is kept unless `overwrite`; what a killed run left is removed, but for the files
    and folders that are `kept`.

    An index that is added to stays as it is, but for files that its manifest does not list.

    Raises:
      ValueError: the folder is a file, or holds a finished run.
    """
    refuse_output(config, manifest)
    files = BeamFiles()
    path = join(config.output, manifest)
    unfinished = (file for name in (f"{manifest}.", LIST_BEGINNING) for file in list_temporary(config.output, name))
    if config.update:
        index = read_manifest(config.output, files)
        listed = {join(config.output, file.path) for file in written_files(config.output, index, files)}
        listed.add(join(config.output, str(index.get("file_list"))))
        found = _files_in([join(config.output, INDEX), join(config.output, "rejected"), config.work_folder])
        delete_files(file for file in itertools.chain(found, unfinished, _lists(config.output)) if file not in listed)
        return
    delete_files([path])  # first: from here on the folder holds no run
    folders = [join(config.output, name) for name in _written(tables)] + [config.work_folder]
    curvature = join(config.output, "curvature")
    if (config.curvature_path or "").rstrip("/") == curvature:
        folders.remove(curvature)  # this run reads it
    inside = tuple(f"{folder}/" for folder in kept)
    found = itertools.chain(_files_in(folders), unfinished, _lists(config.output))
    delete_files(file for file in found if file not in kept and not file.startswith(inside))


def refuse_output(config: InfluenceConfig, manifest: str) -> None:
    """Refuses an output folder that a run may not write to; changes nothing.

    Raises:
      ValueError: as of `clear_output`.
    """
    if os.path.isfile(config.output):
        raise ValueError(f"--output {config.output!r} is a file; name a folder")
    if not config.update and not config.overwrite and BeamFiles().exists(join(config.output, manifest)):
        raise ValueError(f"{config.output!r} already holds a finished run; give another --output, or --overwrite")


def clear_unfinished(config: InfluenceConfig, tables: tuple[str, ...]) -> None:
    """Removes what a finished run needs no more; see `clear_work`."""
    clear_work(config.output, _written(tables), config.work_folder)


def clear_at_the_end(config: InfluenceConfig, tables: tuple[str, ...]) -> ClearWork:
    """The same as the last step of the job itself."""
    return ClearWork(config.output, _written(tables), config.work_folder)


def _written(tables: tuple[str, ...]) -> tuple[str, ...]:
    """The folders in the output folder that a run writes to."""
    return (*tables, INDEX, "curvature")


def _files_in(folders: list[str]) -> Iterator[str]:
    return itertools.chain.from_iterable(list_folder(folder) for folder in folders)


def _lists(output: str) -> Iterator[str]:
    """The lists of files of earlier runs, and of those that were killed just before their manifest."""
    if FileSystems.get_filesystem(output).has_dirs() and not FileSystems.exists(output):
        return
    for match in iterate_matches(f"{quoted(output.rstrip('/'))}/{LIST_BEGINNING}*.parquet"):
        if is_list_name(match.path.rpartition("/")[2]):
            yield match.path
