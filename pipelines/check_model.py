"""The model as a run will compute it, compared with the user's own on the first examples of the run's files."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.guard import Disagreement
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.reading.features import FeatureSpec
from beam_influence.influence_ops.reason import reason_of
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.progress import Progress
from beam_influence.transforms.read_shards import ShardReader

_LOG = logging.getLogger(__name__)
_EXAMPLES_READ = 100  # so that some of them are good


def check_model(
    model: ExplainedModel, spec: ModelSpec, config: InfluenceConfig, splits: Sequence[tuple[FeatureSpec, Sequence[Shard]]]
) -> tuple[ExplainedModel, ModelSpec]:
    """The model, compared with the user's own on the first examples of each split, and the recipe for just that one.

    Where the precision is left open and a float64 copy does not agree, it is the model itself; see `ExplainedModel.check`.

    Raises:
      ValueError: it does not agree, or can't evaluate the examples; the message says what differs and the mend.
    """
    _check(model, config, splits)
    is_left_open = spec.precision in ("auto", "float64") and not model.network.is_copy
    precision = "native" if is_left_open else spec.precision
    return model, dataclasses.replace(spec, agreement=model.agreement, precision=precision)


def _check(model: ExplainedModel, config: InfluenceConfig, splits: Sequence[tuple[FeatureSpec, Sequence[Shard]]]) -> None:
    for features, shards in reversed(splits):  # the training examples last: what is recorded is of them
        batch = first_batch(features, shards)
        if batch is None:
            _refuse_none(features, shards, config)
            continue  # all of them are bad: the run will say so, example by example
        try:
            found = model.check(batch)
        except Disagreement as error:
            raise ValueError(f"{shards[0].split} examples: {error}") from error
        except Exception as error:
            raise ValueError(_cannot(features, shards, config, error)) from error
        _LOG.info(
            "%s: on %d examples the outputs are within %.1g of the model's own, losses %.1g and the gradient %.1g of Keras's, a batch "
            "%.1g of its examples one by one, and the same batch again %.1g",
            shards[0].split, found.examples, found.outputs, found.losses, found.gradient, found.batches, found.again,
        )  # fmt: skip


def first_batch(features: FeatureSpec, shards: Sequence[Shard]) -> ExampleBatch | None:
    """Some of the first examples that can be read; None where there are none."""
    reader = ShardReader("prepare", features, _EXAMPLES_READ, Progress(None))
    return next((batch for shard in shards for batch, _ in reader.read(shard) if len(batch)), None)


def _refuse_none(features: FeatureSpec, shards: Sequence[Shard], config: InfluenceConfig) -> None:
    if shards[0].split != "train" or config.curvature_path or not config.make_curvature().passes:
        return
    reader = ShardReader("prepare", features, _EXAMPLES_READ, Progress(None))
    first = next((rejected for shard in shards for _, some in reader.read(shard) for rejected in some), None)
    if first is not None:
        raise ValueError(
            f"there is nothing to make a curvature from: every training example would be rejected, the first, {first.file}:{first.index}, "
            f"since {first.message}"
        )


def _cannot(features: FeatureSpec, shards: Sequence[Shard], config: InfluenceConfig, error: Exception) -> str:
    return (
        f"the model and the loss {config.loss!r} can't evaluate {shards[0].split} examples (inputs "
        f"{[(feature.name, list(feature.shape)) for _, feature in features.inputs]}, label "
        f"{', '.join(f'{label.name} {list(label.shape)}' for label in features.labels)}): {reason_of(error)}"
    )
