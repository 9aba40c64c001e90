"""How a split's files are read: their format, and which features feed the model; found from its first examples."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from beam_influence.influence_ops.reading import READERS, detect_format
from beam_influence.influence_ops.reading.decode import RowDecoder
from beam_influence.influence_ops.reading.defaults import Defaults
from beam_influence.influence_ops.reading.features import Description, FeatureSpec, ModelInput, Roles, Schema
from beam_influence.influence_ops.reading.preprocess import Preprocess, with_results
from beam_influence.influence_ops.reading.resolve_features import FeatureResolver, fit_to_output, takes_double
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.in_parallel import in_parallel

_EXAMPLES_TRIED = 100
_PREPROCESSED = 20  # one by one, so fewer


def find_features(
    config: InfluenceConfig,
    shards: Sequence[Shard],
    model_inputs: Sequence[ModelInput],
    model_outputs: Mapping[str, tuple[int | None, ...]],
    schema: Schema | None,
) -> FeatureSpec:
    """What the rows of a split are decoded to.

    Args:
      model_inputs, model_outputs: as the model declares them; see `network`.

    Raises:
      ValueError: nothing can be read, or it does not fit the model.
    """
    name = config.data_format
    if name == "auto":
        with BeamFiles().open_read(shards[0].path) as file:
            name = detect_format(shards[0].path, file)
    reader = READERS[name]
    data = _describe(name, shards)
    roles = _roles(config, shards[0].split, data, model_inputs)
    defaults = Defaults(config.defaults())
    resolver = FeatureResolver(data, schema, reader.converts, reader.ordered, defaults, reader.has_records)
    if config.preprocess is None:
        spec = dataclasses.replace(resolver.resolve(model_inputs, roles), format=name)
        _check_defaults(config, defaults, spec, data)
        return _like_outputs(spec, model_outputs)
    raw = resolver.resolve_raw(config.preprocess_features, roles, config.preprocess, takes_double(model_inputs))
    raw = dataclasses.replace(raw, format=name)
    _check_defaults(config, defaults, raw, data)
    return dataclasses.replace(raw, inputs=with_results(raw, model_inputs, _result_shapes(raw, shards, model_inputs)))


def _check_defaults(config: InfluenceConfig, defaults: Defaults, spec: FeatureSpec, data: Description) -> None:
    """Whether each default is of a feature that this split, or another, reads."""
    of_others = {name for name in (config.group_feature, config.test_group_feature, config.weight_feature) if name is not None}
    defaults.check_used({feature.name for feature in spec.features()} | of_others, data)


def _like_outputs(spec: FeatureSpec, outputs: Mapping[str, tuple[int | None, ...]]) -> FeatureSpec:
    """Labels and weights that are stored flat, in the shape of the outputs that they are compared with."""
    only = next(iter(outputs.values())) if len(outputs) == 1 else ()
    shapes = [only if len(outputs) == 1 else outputs.get(name, ()) for name in spec.label_names]
    labels = tuple(fit_to_output(label, shape) for label, shape in zip(spec.labels, shapes, strict=True))
    weight = None if spec.weight is None else fit_to_output(spec.weight, only[:-1])
    return dataclasses.replace(spec, labels=labels, weight=weight)


def _describe(name: str, shards: Sequence[Shard]) -> Description:
    """The features of the first file that has readable examples; where that is not the first, several are looked at at once."""

    def describe(shard: Shard) -> Description:
        with BeamFiles().open_read(shard.path) as file:
            try:
                return READERS[name].describe(file, _EXAMPLES_TRIED)
            except ValueError as error:
                raise ValueError(f"{shard.split} file {shard.path!r}: {error}") from error

    for data in itertools.chain(map(describe, shards[:1]), in_parallel(describe, shards[1:])):
        if data:
            return data
    others = [other for other in READERS if other != name]
    raise ValueError(
        f"no readable example among the first of {shards[0].split} files such as {shards[0].path!r}; they have none, or are "
        f"damaged, or are not {READERS[name].expects}: then name their format with --data_format ({', '.join(others)})"
    )


def _roles(config: InfluenceConfig, split: str, data: Description, model_inputs: Sequence[ModelInput]) -> Roles:
    """The user's roles; a model of one input that names no feature takes the only feature without another role."""
    scored = "train" if config.candidates is None else "candidates"
    group = {scored: config.group_feature, "test": config.test_group_feature}.get(split)
    weight = None if split == "test" else config.weight_feature  # only training examples, and candidates, have weights
    mapping = {} if config.preprocess else config.input_mapping()
    whole = config.label_feature in data  # such a name may have a comma or an equals sign in it
    labels = (config.label_feature,) if whole else config.label_features
    outputs = ("",) if whole else config.label_outputs
    roles = Roles(mapping, labels, config.id_feature, group, weight, outputs)
    if mapping or config.preprocess or len(model_inputs) > 1 or model_inputs[0].parses or model_inputs[0].name in data:
        return roles
    taken = roles.others() | {config.group_feature, config.test_group_feature, config.weight_feature}
    free = [name for name in data if name not in taken]
    return dataclasses.replace(roles, inputs={"": free[0]}) if len(free) == 1 else roles


def _result_shapes(spec: FeatureSpec, shards: Sequence[Shard], model_inputs: Sequence[ModelInput]) -> dict[str, tuple[int, ...]]:
    """What the preprocess function returns for the first examples that can be read."""
    reader, decoder, preprocess = READERS[spec.format](spec.features()), RowDecoder(spec), Preprocess(spec)
    for shard in shards:
        with BeamFiles().open_read(shard.path) as file:
            for rows in reader.read(file, _EXAMPLES_TRIED):
                reasons: dict[int, tuple[str, str]] = {}
                columns = decoder.raw(rows, reasons)
                good = [int(row) for row in np.arange(len(rows.positions)) if row not in reasons][:_PREPROCESSED]
                if good:
                    raw = {feature.name: columns[feature.name] for feature in spec.raw}
                    return preprocess.shapes(raw, good, model_inputs)
    raise ValueError(f"no {shards[0].split} example has all of {', '.join(feature.name for feature in spec.features())}")
