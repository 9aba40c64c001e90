"""What is found out and checked before a pipeline starts: files, model, features, and one trial evaluation."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.arrow_compute import pc
from beam_influence.influence_ops.model.guard import Agreement
from beam_influence.influence_ops.model.network import Precision, declared_outputs
from beam_influence.influence_ops.reading.features import FeatureSpec, Schema
from beam_influence.influence_ops.reading.schema import parse_schema
from beam_influence.influence_ops.results.result_files import list_batches, read_facts, read_manifest, table_files
from beam_influence.influence_ops.scoring.index import INDEX
from beam_influence.pipelines.check_model import check_model
from beam_influence.pipelines.check_per_token import plan_tokens
from beam_influence.pipelines.check_saved_curvature import check_saved_curvature
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.find_features import find_features
from beam_influence.pipelines.grow_index import index_to_grow
from beam_influence.pipelines.query_plan import QueryPlan, plan_queries
from beam_influence.pipelines.refuse_memory import refuse_groups, refuse_memory
from beam_influence.pipelines.resume import Resumed, find_finished
from beam_influence.pipelines.rows_at_once import rows_at_once
from beam_influence.transforms.file_list import FileList, list_shards
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.folders import quoted
from beam_influence.transforms.open_model import ModelSpec, refuse_another_model

if TYPE_CHECKING:
    from beam_influence.pipelines.choosing.choose import Choice
    from beam_influence.pipelines.choosing.precision import PrecisionChoice
    from beam_influence.pipelines.plan_decoded import DecodedPlan

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PreparedRun:
    """A run that can start: the files as they were matched, and how their records are read.

    Attributes:
      train, test: the files of each split; those of influence vectors in place of training files, where they are used.
      candidates: the files of examples that are scored in place of the training set.
      train_features, test_features, candidate_features: how their records are decoded; None where there are none.
      curvature_path: the saved curvature that is used, or None.
      indexed: the manifest of the index that is added to, or None.
      choice: what `--curvature auto` chose.
      precision: what `--precision auto` chose, or what the one that was asked for costs.
      decoded: whether passes leave decoded examples to the next; None: that was not asked.
      index_error: the largest relative error of the rows of the index that is read; None: there is none, or it is not told.
      model: the recipe for the model.
      weights: the names of the watched weights.
      watched, total: how many weights are watched, of how many trainable ones.
      dtype: what is computed in.
      without_factors: those of the watched weights whose gradients are built example by example.
      batch_size: how many examples are evaluated at once.
      queries: how test points are embedded, and in how many rounds scored.
      agreement: how far the computation is from Keras's own on the first training examples; None where none was read.
      resumed: what an earlier run has finished; None: this run records nothing.
    """

    train: FileList
    test: FileList
    train_features: FeatureSpec | None
    test_features: FeatureSpec | None
    curvature_path: str | None
    indexed: dict[str, Any] | None
    model: ModelSpec
    weights: list[str]
    watched: int
    total: int
    dtype: str
    without_factors: list[str]
    batch_size: int
    queries: QueryPlan
    agreement: Agreement | None = None
    resumed: Resumed | None = None
    index_error: float | None = None
    candidates: FileList = dataclasses.field(default_factory=lambda: FileList.of([]))
    candidate_features: FeatureSpec | None = None
    choice: Choice | None = None
    decoded: DecodedPlan | None = None
    precision: PrecisionChoice | None = None

    @property
    def choice_facts(self) -> dict[str, Any]:
        """What was chosen and why, for the manifest; empty where nothing was."""
        chosen = {"chosen": self.choice, "precision": self.precision, "decoded_cache": self.decoded}
        return {name: found.as_json() for name, found in chosen.items() if found is not None}

    def kept(self, config: InfluenceConfig) -> tuple[str, ...]:
        """The files and folders of an earlier run that this one uses."""
        if self.resumed is None:
            return ()
        cache = None if self.decoded is None else self.decoded.cache
        return (*self.resumed.kept(config), *([] if cache is None else [cache.folder]))

    @property
    def model_facts(self) -> dict[str, Any]:
        """Which weights the result covers, for the manifest."""
        return {
            "weights": self.weights,
            "watched": self.watched,
            "total": self.total,
            "dtype": self.dtype,
            "without_factors": self.without_factors,
            "agreement": None if self.agreement is None else dataclasses.asdict(self.agreement),
        }


def prepare(config: InfluenceConfig, choice: Choice | None = None) -> PreparedRun:
    """Checks a configuration against the world.

    Args:
      config: the options, with nothing left to `--curvature auto`; see `choose_method`.
      choice: what that gave, for the manifest.

    Raises:
      ValueError: files are missing, the model can't be used, the data does not fit it, or the saved curvature
        is not for it. Nothing has been written by then.
    """
    files = _find_files(config)
    model, spec = model_spec(config).open_first()
    if config.second_order_groups or (config.make_curvature().needs_hessian and not files.curvature_path):
        model.check_second_derivatives()
    if config.make_curvature().weighs_checkpoints:
        refuse_another_model(model, spec)
        config.make_curvature().create(model)  # refuses checkpoints that its segments are not of
    operators = config.make_curvature().operators
    if files.curvature_path:
        operators = (check_saved_curvature(config, model, files.curvature_path),)
    schema = schema_of(config)
    specs: dict[str, FeatureSpec] = {}
    for shards in filter(None, (files.train, files.candidates, files.test)):
        specs[shards[0].split] = find_features(config, shards, model.inputs, declared_outputs(model.network.original), schema)
    of_examples = [(specs[shards[0].split], shards) for shards in (files.train, files.candidates, files.test) if shards]
    model, spec = check_model(model, spec, config, of_examples)
    spec.keep(model)
    for block in model.layout().blocks:
        _LOG.info("gradients of %s: [%d, %d], %s", block.name, block.rows, block.columns, block.kind)
    batch_size = config.batch_size or rows_at_once(model)
    _LOG.info("%d examples at a time", batch_size)
    if files.curvature_path is None:
        refuse_memory(config, model)
    solves_blocks = bool(operators) and all(each.solves_blocks for each in operators)
    plan = plan_queries(config, model, files.test, specs.get("test"), solves_blocks)
    refuse_groups(config, model, plan.points)
    if config.per_token:
        plan = plan_tokens(config, model, plan, of_examples)
    train, features = files.train or files.vectors, (specs.get("train"), specs.get("test"))
    return PreparedRun(
        train,
        files.test,
        *features,
        files.curvature_path,
        files.indexed,
        spec,
        model.weight_names,
        model.size,
        model.total_size,
        model.dtype,
        model.weights_without_factors,
        batch_size,
        plan,
        model.agreement,
        find_finished(config, spec, train, files.test, *features, files.curvature_path, plan.embedded) if config.resume else None,
        None if config.index is None or config.candidates else _index_error(config.index),
        files.candidates,
        specs.get("candidates"),
        choice,
    )


class _Files(NamedTuple):
    """The files that a run reads: examples of the splits, saved influence vectors or an index, a saved curvature, an index to add to."""

    train: FileList
    test: FileList
    vectors: FileList
    curvature_path: str | None
    indexed: dict[str, Any] | None
    candidates: FileList


def _find_files(config: InfluenceConfig) -> _Files:
    none = FileList.of([])
    train = list_shards("train", patterns_of(config.train)) if config.train else none
    test = list_shards("test", patterns_of(config.test)) if config.test else none
    candidates = list_shards("candidates", patterns_of(config.candidates)) if config.candidates else none
    _refuse_trained_on(candidates, train)
    if config.update:
        indexed, train = index_to_grow(config, train)
        return _Files(train, test, none, join(config.output, "curvature"), indexed, none)
    if config.index:
        rows = none if candidates else _result_shards(config.index, INDEX)
        return _Files(train, test, rows, join(config.index, "curvature"), None, candidates)
    if config.influence_vectors_path:
        return _Files(train, test, _vector_shards(config), join(config.influence_vectors_path, "curvature"), None, none)
    return _Files(train, test, none, config.curvature_path, None, candidates)


def _refuse_trained_on(candidates: FileList, train: FileList) -> None:
    both = candidates.table["path"].filter(pc.is_in(candidates.table["path"], train.table["path"].combine_chunks()))
    if len(both):
        path = both[0].as_py()
        raise ValueError(f"{path} is among the files of --candidates and of --train: candidates were not trained on; leave it out of one")


def _index_error(index: str) -> float | None:
    """The largest error that the files of an index tell."""
    files, largest = BeamFiles(), None
    for rows in list_batches(index, read_manifest(index, files), files):
        told = pc.max(rows.filter(pc.equal(rows.column("table"), INDEX)).column("error")).as_py()
        largest = told if largest is None else max(largest, told or 0.0)
    return largest


def model_spec(config: InfluenceConfig) -> ModelSpec:
    """The recipe for a run's model, whatever it is now."""
    return ModelSpec(
        config.model,
        "",
        config.loss,
        config.weights,
        config.start_layer,
        config.last_layer,
        config.weight_decay,
        "loss" if config.regularizer == "loss" else "curvature",
        cast(Precision, config.precision),
        config.threads,
        config.model_weights,
        (config.curvature.partition(":")[0],) if ":" in config.curvature else (),
        config.checkpoint_paths,
        config.checkpoint_rates,
        signature=config.signature or "",
        dropout_seed=config.dropout_seed,
    )


def schema_of(config: InfluenceConfig) -> Schema | None:
    """What `--schema` says; None where there is none.

    Raises:
      ValueError: there is no such file, or it is no schema.
    """
    if not config.schema:
        return None
    if not BeamFiles().exists(config.schema):
        raise ValueError(f"there is no schema at {config.schema!r}")
    return parse_schema(BeamFiles().read(config.schema).decode())


def _vector_shards(config: InfluenceConfig) -> FileList:
    """The files of saved influence vectors, which must have been made as this run would make them."""
    folder = config.influence_vectors_path or ""
    first = next(table_files(folder, "influence_vectors", BeamFiles()))
    normalize = read_facts(first, BeamFiles()).get("normalize")
    if normalize != config.normalize:
        raise ValueError(f"the influence vectors in {folder!r} were made with --normalize {normalize}; use the same")
    return _result_shards(folder, "influence_vectors")


def _result_shards(folder: str, table: str) -> FileList:
    """The files of a finished run's table. That they are there is seen by one listing, not file by file."""
    paths = pa.array(table_files(folder, table, BeamFiles()), pa.large_string())
    found = list_shards("train", [join(quoted(folder.rstrip("/")), table, "*.parquet")])
    names = pc.utf8_slice_codeunits(paths, len(join(folder.rstrip("/"), table)) + 1)
    places = pc.index_in(names, found.table["name"].combine_chunks())
    if places.null_count:
        missing = paths.filter(pc.is_null(places))[0].as_py()
        raise ValueError(f"{missing!r}, which the run's manifest lists, is missing; put it back, or run again with --overwrite")
    rows = found.table.take(places)
    return FileList("train", rows).with_columns(path=paths, ordinal=np.arange(len(rows)))


def patterns_of(text: str) -> list[str]:
    """The patterns in the text of an option."""
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]
