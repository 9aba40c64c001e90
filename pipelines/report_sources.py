"""What a finished run read, opened again for its report: the files of both splits and the model; what is missing is a note."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.guard import Agreement
from beam_influence.influence_ops.model.network import declared_outputs
from beam_influence.influence_ops.reading.features import FeatureSpec
from beam_influence.influence_ops.results.result_files import read_manifest
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.find_features import find_features
from beam_influence.pipelines.prepare import model_spec, patterns_of, schema_of
from beam_influence.pipelines.report_config import ReportConfig
from beam_influence.pipelines.scored_data import check_code, config_of
from beam_influence.report.examples import Source
from beam_influence.report.predictions import Predictor
from beam_influence.report.showing import ShowOptions
from beam_influence.report.tokens import tokenizers
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.file_list import list_shards
from beam_influence.transforms.files import BeamFiles

Found = TypeVar("Found")


@dataclasses.dataclass
class SplitSource:
    """A split's files, its labels' features, how its examples are shown, and the model's answers where it could be opened."""

    source: Source
    labels: tuple[str, ...]
    show: ShowOptions
    predictor: Predictor | None
    classes: tuple[str, ...] = ()


class RunSources:
    """The sources and the model of a finished run.

    Args:
      manifest: of the run.
      config: of the report.

    Attributes:
      splits: `train` and `test`, those that could be opened.
      notes: what could not, and why.
      has_id_feature: whether an id is a feature's value, which does not say where its example is.
      other_weights: the names of the trainable weights that the run did not watch; None: the model could not be opened.

    Raises:
      ValueError: the report's options name code that the run did not have.
    """

    def __init__(self, manifest: Mapping[str, Any], config: ReportConfig):
        self.notes: list[str] = []
        self.splits: dict[str, SplitSource] = {}
        self.other_weights: list[str] | None = None
        self._manifest = manifest
        stored = with_train(manifest["config"])
        self.has_id_feature = stored.get("id_feature") is not None
        if any(config.code.values()):
            check_code(stored, config.code, config.results)
        self._config = self._trying("The examples are named, not shown", lambda: config_of(stored, config.results))
        shards = {split: self._shards(split, stored) for split in ("train", "test") if stored.get(split)}
        model = self._trying("There are no predictions and no losses", lambda: self._open_model(stored, config))
        self._tokenizers = {} if model is None else tokenizers(model.network.original)
        for split, found in shards.items():
            if found and self._config is not None:
                self._open(split, found, self._config, model, config)

    def _trying(self, effect: str, program: Callable[[], Found]) -> Found | None:
        try:
            return program()
        except (ValueError, OSError) as error:
            self.notes.append(f"{effect}: {error}.")
            return None

    def _shards(self, split: str, stored: Mapping[str, Any]) -> Sequence[Shard] | None:
        what = {"train": "Training examples", "test": "Test points"}[split]
        return self._trying(f"{what} are named, not shown", lambda: list_shards(split, patterns_of(stored[split])))

    def _open_model(self, stored: Mapping[str, Any], config: ReportConfig) -> ExplainedModel | None:
        if self._config is None:
            return None
        check_code(stored, config.code, config.results)
        model, _ = model_spec(self._config).open_first()
        if model.fingerprint() != self._manifest["curvature"]["fingerprint"]:
            raise ValueError(f"the model at {self._config.model!r} is not the one that this run scored")
        if self._config.dropout_seed is not None:  # that is explained; what predicts is the whole network
            model, _ = model_spec(dataclasses.replace(self._config, dropout_seed=None)).open_first()
        agreement = self._manifest["model"].get("agreement")
        model.agreement = Agreement(**agreement) if agreement else None
        names = [name for part in model.parts[-1:] for name in _trainable(part.network.original)]
        watched = set(self._manifest["model"]["weights"])
        self.other_weights = [name for name in names if name not in watched]
        return model

    def _open(
        self, split: str, shards: Sequence[Shard], config: InfluenceConfig, model: ExplainedModel | None, report: ReportConfig
    ) -> None:
        spec = None
        if model is not None:
            effect = f"There are no predictions for the {split} files"
            outputs = declared_outputs(model.network.original)
            spec = self._trying(effect, lambda: find_features(config, shards, model.inputs, outputs, schema_of(config)))
        what = {"train": "Training examples", "test": "Test points"}[split]
        data_format = spec.format if spec is not None else config.data_format
        source = self._trying(f"{what} are named, not shown", lambda: Source(shards, data_format, config.id_feature, spec))
        if source is not None:
            labels = tuple(name for name in dict.fromkeys([config.label_feature, *config.label_features]) if name in source.description)
            predictor = None if model is None or spec is None else Predictor(model, spec, report.classes)
            show = _show_options(config, self._manifest["config"], spec, report.show)
            if model is not None and spec is not None and not spec.preprocess:
                known = self._tokenizers
                show = dataclasses.replace(show, tokenizers={one.name: known[name] for name, one in spec.inputs if name in known})
            self.splits[split] = SplitSource(source, labels, show, predictor, report.classes)


def with_train(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run, with the training files of what it took in their place: an index, or saved influence vectors."""
    for name in ("index", "influence_vectors_path"):
        if stored.get(name) and not stored.get("train"):
            try:
                made = read_manifest(stored[name], BeamFiles())["config"]
            except ValueError:
                continue
            return {**stored, "train": made.get("train"), "id_feature": made.get("id_feature"), name: None}
    return dict(stored)


def _trainable(network: Any) -> list[str]:
    return [str(getattr(weight, "path", getattr(weight, "name", "?"))) for weight in network.trainable_variables]


def _show_options(config: InfluenceConfig, stored: Mapping[str, Any], spec: FeatureSpec | None, function: str | None) -> ShowOptions:
    roles = {stored.get(name) for name in ("id_feature", "group_feature", "test_group_feature", "weight_feature")}
    inputs = () if spec is None or spec.preprocess else spec.inputs
    return ShowOptions(
        roles=frozenset({*config.label_features, *(name for name in roles if name)}),
        shapes={feature.name: feature.shape for _, feature in inputs if not feature.parts},
        combined={feature.name: (tuple(part.name for part in feature.parts), feature.shape) for _, feature in inputs if feature.parts},
        function=function,
        by_position=bool(stored.get("per_token")),
    )
