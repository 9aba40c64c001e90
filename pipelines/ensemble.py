"""`beam-influence ensemble`: the mean of several finished runs' scores, and how sure it is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam

from beam_influence.influence_ops.ensemble.intervals import CONFIDENCE
from beam_influence.influence_ops.ensemble.mean_rows import AVERAGED
from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.results.result_files import MANIFEST, list_batches, read_manifest
from beam_influence.pipelines.ensemble_options import EnsembleOptions
from beam_influence.pipelines.run_pipeline import run_pipeline
from beam_influence.pipelines.runners import choose_engine, open_file_systems
from beam_influence.transforms.average_runs import KEPT, AverageRuns, Ranking, WriteEnsembleManifest
from beam_influence.transforms.clear_work import clear_work
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.folders import delete_files, delete_folder, list_temporary
from beam_influence.transforms.write_manifest import versions

MEMBERS = "ensemble"
"""What a manifest of an ensemble has beside those of runs."""

_SAME = ("train", "test", "candidates", "index", "id_feature", "normalize", "removal", "group_feature", "test_group_feature")
_MAKES_NO_MEMBER = ("model", "output", "overwrite", "accelerator", "threads", "verbose", "decoded_cache", "resume", "max_worker_memory")
"""Options that differ between runs whose scores are the same."""
Manifest = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class EnsembleSummary:
    """A finished ensemble.

    Attributes:
      output: the folder of the results.
      members: the folders that it is the mean of.
      tables: the rows of each table.
      left_out: tables of the first member that are not in it, such as vectors, whose mean is of no use.
      interval_factor: a 90 % interval is the mean ± so many standard errors.
    """

    output: str
    members: tuple[str, ...]
    tables: dict[str, int]
    left_out: tuple[str, ...]
    interval_factor: float


def ensemble(options: EnsembleOptions, beam_arguments: Iterable[str] = ()) -> EnsembleSummary:
    """Makes the ensemble of finished runs.

    Args:
      options: the runs, and where the ensemble goes.
      beam_arguments: the engine and its options (`beam_influence.pipelines.runners`), and any of Beam's.

    Raises:
      ValueError: wrong options, or runs that do not go together; nothing was written.
      RunFailedError: the pipeline failed, such as where members have other examples.
    """
    beam_arguments = list(beam_arguments)
    open_file_systems(beam_arguments)
    engine = choose_engine(beam_arguments)
    manifests = [_manifest(folder) for folder in options.results]
    _refuse_same(options, manifests)
    tables = _tables(options, manifests)
    path = join(options.output, MANIFEST)
    if BeamFiles().exists(path) and not options.overwrite:
        raise ValueError(f"{options.output!r} already holds finished results; give another --output, or --overwrite")
    lists = sum(1 for _ in list_batches(options.results[0], manifests[0], BeamFiles()))
    written = (*tables, *(["top_k"] if "scores" in tables else []))
    delete_files([path])  # first: from here on the folder holds no results
    for table in (*AVERAGED, KEPT, "top_k"):
        delete_folder(join(options.output, table))
    pipeline = beam.Pipeline(options=engine.options())
    build_ensemble(pipeline, options, manifests, tables, lists)
    run_pipeline(pipeline, engine)
    clear_work(options.output, written, join(options.output, ".work"))
    delete_files(list_temporary(options.output, f"{MANIFEST}."))
    totals = read_manifest(options.output, BeamFiles())["tables"]
    rows = {table: total["rows"] for table, total in totals.items()}
    left_out = tuple(sorted(set(manifests[0]["tables"]) - set(written)))
    return EnsembleSummary(options.output, options.results, rows, left_out, options.factor)


def build_ensemble(
    pipeline: beam.Pipeline, options: EnsembleOptions, manifests: list[Manifest], tables: tuple[str, ...], lists: int
) -> None:
    """Adds the job to a pipeline.

    Args:
      manifests: of the members.
      tables: those that are written, `top_k` left out.
      lists: how many batches the first member's list of files has.
    """
    factor = options.factor
    facts = {"members": list(options.results), "interval_factor": factor, "confidence": CONFIDENCE}
    config = manifests[0]["config"]
    ranking = None
    if "scores" in tables:
        k = options.top_k or config["top_k"]
        ranking = Ranking(k, config["order"] == "descending", factor, manifests[0]["counts"].get("embed", {}).get("examples", 1))
        config = {**config, "top_k": k}
    curvature = _curvature(manifests)
    shared = schemas.facts(curvature, config["normalize"], config["removal"], config.get("candidates") is not None)
    average = AverageRuns(options.results, options.output, tables, lists, {**shared, **facts}, ranking)
    content = {
        "config": {**config, "output": options.output, "overwrite": False},
        "counts": manifests[0]["counts"],
        "model": manifests[0]["model"],
        "curvature": curvature,
        "versions": versions(),
        MEMBERS: {**facts, "members": [_member(*pair) for pair in zip(options.results, manifests, strict=True)]},
    }
    _ = pipeline | "AverageRuns" >> average | "WriteManifest" >> WriteEnsembleManifest(options.output, content)


def _manifest(folder: str) -> Manifest:
    manifest = read_manifest(folder, BeamFiles())
    if MEMBERS in manifest:
        raise ValueError(f"{folder!r} is an ensemble itself; give its members")
    if "normalize" not in manifest["config"] or "fingerprint" not in manifest["curvature"]:
        raise ValueError(f"the manifest in {folder!r} is of no run with scores")
    return manifest


def _refuse_same(options: EnsembleOptions, manifests: list[Manifest]) -> None:
    """
    Raises:
      ValueError: two runs are of one model, scored in one way.
    """
    told: dict[str, str] = {}
    for folder, manifest in zip(options.results, manifests, strict=True):
        how = {key: value for key, value in manifest["config"].items() if key not in _MAKES_NO_MEMBER}
        key = json.dumps([manifest["curvature"]["fingerprint"], how], sort_keys=True, default=str)
        if key in told:
            raise ValueError(
                f"{told[key]!r} and {folder!r} are runs of the same model with the same options: a run that counts twice makes the "
                "standard error too small; leave one out"
            )
        told[key] = folder


def _tables(options: EnsembleOptions, manifests: list[Manifest]) -> tuple[str, ...]:
    """The tables that all members have, and `rejected`.

    Raises:
      ValueError: the runs do not go together.
    """
    first = manifests[0]
    for folder, manifest in zip(options.results[1:], manifests[1:], strict=True):
        pair = first["config"], manifest["config"]
        for name in _SAME:
            wanted, found = (config.get(name) for config in pair)
            if wanted != found:
                raise ValueError(f"the run in {folder!r} has --{name} {found!r}, that in {options.results[0]!r} {wanted!r}: {_MEND}")
        n, other = first["curvature"]["examples"], manifest["curvature"]["examples"]
        if bool(n) != bool(other):
            kinds = [(each["curvature"]["curvature"], path) for each, path in ((first, options.results[0]), (manifest, folder))]
            (without, its), (kind, of_kind) = kinds if not n else kinds[::-1]
            raise ValueError(
                f"the run in {its!r} has --curvature {without}, whose scores are inner products of gradients, that in {of_kind!r} {kind}, "
                "whose scores are influence: they have no unit in common; give members with a curvature, or all without"
            )
        if n != other:
            raise ValueError(f"the run in {folder!r} is of {other:,} training examples, that in {options.results[0]!r} of {n:,}: {_MEND}")
    common = [table for table in AVERAGED if all(table in manifest["tables"] for manifest in manifests)]
    if not common:
        pairs = zip(options.results, manifests, strict=True)
        have = "; ".join(f"{folder!r}: {', '.join(manifest['tables'])}" for folder, manifest in pairs)
        raise ValueError(f"the runs have none of {', '.join(AVERAGED)} in common ({have}); run each with --outputs scores")
    if options.top_k is not None and "scores" not in common:
        raise ValueError(f"--top_k {options.top_k} is of the mean of scores, which not all runs have; run each with --outputs scores")
    for table in common:
        rows = [manifest["tables"][table]["rows"] for manifest in manifests]
        if len(set(rows)) > 1:
            raise ValueError(f"the runs have {', '.join(f'{count:,}' for count in rows)} rows of {table}: {_MEND}")
    return (*common, *([KEPT] if KEPT in first["tables"] else []))


_MEND = "members are runs over the same examples and test points, with other models, seeds or curvatures"


def _curvature(manifests: list[Manifest]) -> dict[str, Any]:
    """The first member's facts; the names and the mean λ of all."""
    curvatures = [manifest["curvature"] for manifest in manifests]
    names = sorted({curvature["curvature"] for curvature in curvatures})
    damping = sum(curvature["damping"] for curvature in curvatures) / len(curvatures)
    return {**curvatures[0], "curvature": " and ".join(names), "damping": damping}


def _member(folder: str, manifest: Manifest) -> dict[str, Any]:
    curvature, config = manifest["curvature"], manifest["config"]
    return {
        "folder": folder,
        "model": config.get("checkpoints") or config["model"],
        **({"dropout_seed": seed} if (seed := config.get("dropout_seed")) is not None else {}),
        "curvature": curvature["curvature"],
        "damping": curvature["damping"],
        "fingerprint": curvature["fingerprint"],
    }


def ensemble_text(summary: EnsembleSummary) -> str:
    """What is told on the terminal."""
    lines = [f"the mean of {len(summary.members)} runs; 90 % intervals are it ± {summary.interval_factor:.2f} standard errors"]
    lines += [f"{table:<22}{rows:>14,} rows" for table, rows in summary.tables.items() if rows]
    lines += [f"left out: {', '.join(summary.left_out)}"] if summary.left_out else []
    return "\n".join([*lines, f"results in {summary.output}"])
