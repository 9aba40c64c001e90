"""`beam-influence clean`: the training set of a finished run without its suspicious examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from beam_influence.influence_ops.reading import detect_format
from beam_influence.influence_ops.reading.clean_files import REWRITTEN
from beam_influence.influence_ops.redact import HIDDEN
from beam_influence.influence_ops.results.result_files import read_manifest
from beam_influence.pipelines.clean import FACTS, CleanConfig, clean
from beam_influence.pipelines.clean_options import CleanOptions
from beam_influence.pipelines.prepare import patterns_of
from beam_influence.pipelines.runners import open_file_systems
from beam_influence.transforms.file_list import list_shards
from beam_influence.transforms.files import BeamFiles, common_folder, join
from beam_influence.transforms.read_shards import open_shard


def clean_run(options: CleanOptions, beam_arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Cleans the training files that a run's manifest names; returns what was done: counts, and the threshold.

    Args:
      options: what is taken out.
      beam_arguments: the engine and its options (`beam_influence.pipelines.runners`), and any of Beam's.

    Raises:
      ValueError: wrong options or input, found before anything was written.
      RunFailedError: the pipeline failed.
    """
    open_file_systems(beam_arguments)
    files = BeamFiles()
    manifest = read_manifest(options.results, files)
    config = manifest["config"]
    train = config.get("train")
    if not train or "self_influence" not in manifest["tables"]:
        raise ValueError(
            f"the run in {options.results!r} has no self-influence of the examples in training files; run it with --train and "
            "--outputs self_influence"
        )
    if HIDDEN in train:
        raise ValueError(f"the manifest in {options.results!r} has no passwords and keys, and so not where its files are: {train!r}")
    if files.exists(join(options.output, FACTS)):
        raise ValueError(f"--output {options.output!r} holds a cleaned training set already; give another folder, or delete that")
    shards = list_shards("train", patterns_of(train))
    data_format = config["data_format"]
    with open_shard(shards[0]) as file:
        found = detect_format(shards[0].path, file) if data_format == "auto" else data_format
    if found not in REWRITTEN:
        raise ValueError(f"{shards[0].path!r} is of the format {found}; only {', '.join(REWRITTEN)} can be rewritten")
    source = common_folder([shards[0].path, shards[len(shards) - 1].path]) if options.source is None else options.source
    return clean(
        CleanConfig(
            scores=options.results,
            source=source,
            train=tuple(patterns_of(train)),
            others=tuple(patterns_of(options.others or "")),
            output=options.output,
            share=options.share,
            data_format=data_format,
            weight=options.weight,
            weight_feature=options.weight_feature,
            ids=options.ids,
        ),
        beam_arguments,
    )


def cleaning_text(facts: Mapping[str, Any], output: str) -> str:
    """What is told on the terminal."""
    threshold = "in the list" if facts["threshold"] is None else f"self-influence of {facts['threshold']:.6g} or more"
    if facts["threshold"] is None and facts["share"] is not None:
        threshold = "none: equal scores at the edge are taken together or not at all"
    done = "dropped" if facts["weight"] is None else f"given {facts['weight']:g} times their weight ({facts['weight_feature']})"
    lines = [
        f"{facts['files']:,} files with {facts['examples']:,} examples, of which {facts['scored']:,} were scored",
        f"{facts['suspicious']:,} {done} ({threshold}); the others stay, scored or not",
    ]
    if facts["damaged"]:
        lines.append(f"{facts['damaged']:,} records too damaged to be read were left out")
    if facts["files_copied"]:
        lines.append(f"{facts['files_copied']:,} other files copied as they were")
    return "\n".join([*lines, f"results in {output}"])
