"""Which stages of an earlier, unfinished run into the same folder need not be computed again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

from beam_influence.influence_ops.import_path import source_digest
from beam_influence.influence_ops.reading.features import FeatureSpec
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.file_list import FileList
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.record_stage import StageRecord, read_record, record_path

OPERATOR = "operator"
EMBED = "embed"

_VERSIONED = ("beam-influence", "tensorflow", "keras", "numpy")


def stage_of_pass(number: int) -> str:
    """The name of a curvature's pass over the data, from 1."""
    return f"pass_{number:03d}"


@dataclasses.dataclass(frozen=True)
class Resumed:
    """What stages would be made from, and those that are finished.

    Attributes:
      curvature, embed: digests of all that these stages are made from.
      finished: the records of finished stages, by name.
    """

    curvature: str
    embed: str
    finished: dict[str, StageRecord]

    def kept(self, config: InfluenceConfig) -> tuple[str, ...]:
        """The files and folders of the earlier run that this one uses."""
        found = [record_path(config.work_folder, stage) for stage in self.finished]
        for record in self.finished.values():
            found += record.folders
        return (*found, join(config.output, "curvature")) if OPERATOR in self.finished else tuple(found)


def find_finished(
    config: InfluenceConfig,
    model: ModelSpec,
    train: Sequence[Shard],
    test: Sequence[Shard],
    train_features: FeatureSpec | None,
    test_features: FeatureSpec | None,
    curvature_path: str | None,
    embedded: str,
) -> Resumed:
    """The stages that an earlier run finished from the same model, files and options.

    Args:
      embedded: how blocks of test points are made; see `QueryPlan`.

    A file is the same when its path, size and time of change are; a function of the user's when its module's file is, whatever
    that imports.
    """
    own = [getattr(config, name) for name in ("model", "loss", "preprocess", "curvature")]
    saved = "" if curvature_path is None else hashlib.sha256(BeamFiles().read(join(curvature_path, "meta.json"))).hexdigest()
    common: dict[str, Any] = {
        "versions": {name: metadata.version(name) for name in _VERSIONED},
        "model": dataclasses.asdict(dataclasses.replace(model, threads=0, agreement=None)),
        "modules": _modules(own),
        "train": FileList.of(train).digest(),
        "train_features": repr(train_features),
        "options": {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if _decides_curvature(field)},
        "only_index": config.only_index,  # has another default rank
        "saved": saved,
    }
    curvature = _digest(common)
    embed = _digest(
        {
            "of": curvature,
            "test": FileList.of(test).digest(),
            "test_features": repr(test_features),
            "query_arrays": config.query_arrays,
            "embedded": embedded,
        }
    )
    work = config.work_folder
    finished = {}
    if config.resume and curvature_path is None:
        for stage in [OPERATOR, *(stage_of_pass(number) for number in range(1, config.make_curvature().passes))]:
            record = read_record(work, stage, curvature)
            if record is not None:
                finished[stage] = record
        if OPERATOR in finished and not BeamFiles().exists(join(config.output, "curvature", "meta.json")):
            del finished[OPERATOR]
    if config.resume and test and (curvature_path is not None or OPERATOR in finished):
        record = read_record(work, EMBED, embed)
        if record is not None:
            finished[EMBED] = record
    return Resumed(curvature, embed, finished)


def _decides_curvature(field: dataclasses.Field[Any]) -> bool:
    """Whether an option changes the curvature or the embedded test points, beside the files: `fit` or `index` takes it."""
    described = field.metadata
    return described["changes_result"] and described["group"] != "results" and bool({"fit", "index"} & set(described["commands"]))


def _modules(paths: Iterable[str | None]) -> dict[str, str]:
    """The SHA-256 of the file of each module that `module:function` names."""
    found = {}
    for path in paths:
        module, separator, _ = (path or "").partition(":")
        if separator and "/" not in module and (digest := source_digest(module)):
            found[module] = digest
    return found


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
