"""The executor of `InfluenceCalculator`: artifacts to options, the run of the command line, its facts to the artifacts."""

from __future__ import annotations

import heapq
import json
import logging
from typing import Any

from apache_beam.io.filesystems import FileSystems
from tfx.types.artifact import Artifact

from beam_influence.influence_ops.results.result_files import iterate_table, table_files
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.launch import run
from beam_influence.pipelines.report_config import ReportConfig
from beam_influence.pipelines.run_summary import RunSummary, summary_text
from beam_influence.pipelines.tfx.beam_executor import BeamExecutor
from beam_influence.pipelines.tfx.options import to_json
from beam_influence.pipelines.tfx.resolve_artifacts import data_format, model_path, schema_path, single, split_patterns
from beam_influence.transforms.files import BeamFiles, join

_CANDIDATES = 20

Artifacts = dict[str, list[Artifact]]


class InfluenceExecutor(BeamExecutor):
    """Runs what `beam-influence run` runs, on the same `build`."""

    def Do(self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: dict[str, Any]) -> None:
        """Computes the scores into the uri of the output `scores`.

        Raises:
          ValueError: an artifact, option or feature does not fit; nothing was written.
          RunFailedError: the Beam pipeline failed.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        scores, curvature = single(output_dict["scores"], "scores"), single(output_dict["curvature"], "curvature")
        config = make_config(input_dict, scores.uri, exec_properties)
        summary = run(config, self.beam_arguments, make_pipeline=self.make_pipeline)
        logging.info("%s", summary_text(summary))
        _copy_folder(join(scores.uri, "curvature"), curvature.uri)
        _describe(summary, exec_properties, scores, curvature)
        _write_report(config)


def make_config(inputs: Artifacts, output: str, exec_properties: dict[str, Any]) -> InfluenceConfig:
    """The options of a run, as its command line would give them.

    Raises:
      ValueError: an artifact lacks what the run needs.
    """
    examples = inputs["examples"]
    train_splits, test_splits = json.loads(exec_properties["train_splits"]), json.loads(exec_properties["test_splits"])
    tests = inputs.get("test_examples") or examples
    schema, saved = inputs.get("schema"), inputs.get("saved_curvature")
    return InfluenceConfig(
        model=model_path(single(inputs["model"], "model")),
        output=output,
        train=",".join(split_patterns(examples, train_splits)),
        test=",".join(split_patterns(tests, test_splits)) or None,
        data_format=data_format([*examples, *tests]),
        schema=schema_path(single(schema, "schema")) if schema else None,
        curvature_path=single(saved, "saved_curvature").uri if saved else None,
        overwrite=True,  # the folder is this execution's own: what is in it was left by an earlier try
        **json.loads(exec_properties["options"]),
    )


def _write_report(config: InfluenceConfig) -> None:
    """The page of the run, beside its tables, where these hold scores."""
    try:
        from beam_influence.pipelines.report import SHOWN, report_text, write_report
    except ImportError as error:
        logging.info("no report, which needs the extra report: %s", error)
        return
    if not SHOWN & set(config.output_tables):
        return
    loss, preprocess = (name if name and ":" in name else None for name in (config.loss, config.preprocess))
    report = write_report(ReportConfig(config.output, output=join(config.output, "report.html"), loss=loss, preprocess=preprocess))
    logging.info("%s", report_text(report))


def _copy_folder(source: str, target: str) -> None:
    """Copies every file; `meta.json`, which makes a saved curvature complete, last."""
    paths = [match.path for match in FileSystems.match([join(source, "**")])[0].metadata_list]
    for path in sorted(paths, key=lambda path: (path.endswith("meta.json"), path)):
        with BeamFiles().open_read(path) as file, BeamFiles().open_write(join(target, path.rpartition("/")[2])) as copy:
            while data := file.read(1 << 20):
                copy.write(data)


def _describe(summary: RunSummary, exec_properties: dict[str, Any], scores: Artifact, curvature: Artifact) -> None:
    """The run's facts as custom properties."""
    manifest, operator = summary.manifest, summary.manifest["curvature"]
    counts = manifest["counts"]
    seen = counts.get("score") or counts.get("curvature") or {"examples": 0}
    for artifact in (scores, curvature):
        artifact.set_string_custom_property("curvature", operator["curvature"])
        artifact.set_string_custom_property("damping", to_json(operator["damping"]))  # as text: the store rounds to 6 decimals
        artifact.set_int_custom_property("watched_weights", operator["size"])
        artifact.set_string_custom_property("model_fingerprint", operator["fingerprint"])
        artifact.set_int_custom_property("train_examples", seen["examples"])
        artifact.set_string_custom_property("train_splits", exec_properties["train_splits"])
    scores.set_string_custom_property("test_splits", exec_properties["test_splits"])
    scores.set_int_custom_property("test_examples", counts.get("embed", {"examples": 0})["examples"])
    scores.set_int_custom_property("rejected", manifest["tables"].get("rejected", {"rows": 0})["rows"])
    scores.set_string_custom_property("mislabel_candidates", to_json(_candidates(summary)))


def _candidates(summary: RunSummary) -> list[dict[str, Any]]:
    """The examples of the largest self-influence, where it was written: candidates for a wrong label."""
    tables = summary.manifest["tables"]
    of_top = "self_influence_top_k" in tables and summary.manifest["config"]["order"] == "descending"
    table = "self_influence_top_k" if of_top else "self_influence"
    if table not in tables:
        return []
    rows = (
        (row["influence"], row["train_id"])
        for path in table_files(summary.output, table, BeamFiles())
        for batch in iterate_table(path, BeamFiles())
        for row in batch.to_pylist()
    )
    best = heapq.nsmallest(_CANDIDATES, rows, key=lambda row: (-row[0], row[1]))
    return [{"train_id": name, "self_influence": value} for value, name in best]
