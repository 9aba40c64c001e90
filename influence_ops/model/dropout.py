"""The network that is left when some units are dropped for good: a member of an ensemble that needs one trained model.

Dropout trains a sub-network in each step. With the units of one draw switched off for every example, the rest scaled as in training, a
trained model is one of these networks, as good as any other, whose influence is defined like any model's: its own gradients, its own
Hessian. The mean over draws is Deng et al.'s dropout ensemble (2024, 2405.17293), there with other units for each example and gradient.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras.src.models import Functional  # not exported, and the class keras.Model(inputs, outputs) makes

from beam_influence.influence_ops.model.float64_copy import copy_state

_OTHER_KINDS = (keras.layers.GaussianDropout, keras.layers.AlphaDropout)


@keras.saving.register_keras_serializable(package="beam_influence")
class KeptUnits(keras.layers.Layer):
    """Units (places of the last axis) × 1/(1 − rate), or × 0 with the probability `rate`: the same for all examples and positions.

    Args:
      rate: of the dropout layer that it takes the place of.
      seed, place: they decide which units are kept; the layer's place in the model, since its name may be another when it is made again.
    """

    def __init__(self, rate: float, seed: int, place: int, **options: Any):
        super().__init__(**options)
        self.rate, self.seed, self.place = rate, seed, place
        self.supports_masking = True
        self._factors: np.ndarray | None = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        units = input_shape[-1]
        if units is None:
            raise ValueError(f"the layer {self.name!r} drops units of an axis of any length; dropout_seed needs one of a known length")
        kept = np.random.default_rng([self.seed, self.place]).random(units) >= self.rate
        if not kept.any():
            raise ValueError(f"--dropout_seed {self.seed} drops all {units} units of the layer {self.name!r}; use another seed")
        self._factors = kept / (1 - self.rate)

    def call(self, inputs: Any) -> Any:
        return inputs * keras.ops.convert_to_tensor(self._factors, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed, "place": self.place}


_UNITS_LAST = (keras.layers.Dropout, keras.layers.SpatialDropout1D, keras.layers.SpatialDropout2D, keras.layers.SpatialDropout3D)


def _is_special(layer: keras.layers.Layer) -> bool:
    """Whether it is a Dropout layer that does more, or drops something else, than units of the last axis."""
    if not isinstance(layer, keras.layers.Dropout) or not layer.rate:
        return False
    shape = getattr(layer, "noise_shape", None)
    channels_first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return type(layer) not in _UNITS_LAST or shape is not None or channels_first or layer.activity_regularizer is not None


def with_dropped_units(model: Any, seed: int) -> keras.Model:
    """A copy of a Sequential or functional model in which each Dropout layer's units are drawn once.

    Args:
      model: not changed.
      seed: which units.

    Raises:
      ValueError: there is no layer to draw for, one draws in a way that can't be fixed, or the model can't be put together again.
    """
    if not isinstance(model, (keras.Sequential, Functional)):
        raise ValueError(
            f"--dropout_seed {seed} needs a Sequential or functional model, whose layers can be put together again, not "
            f"{type(model).__name__}; leave it out"
        )
    layers = model._flatten_layers(include_self=False)
    drawing = [layer for layer in layers if isinstance(layer, keras.layers.Dropout) and layer.rate > 0]
    for layer in layers:
        inner = max(getattr(layer, "dropout", None) or 0, getattr(layer, "recurrent_dropout", None) or 0)
        if isinstance(layer, _OTHER_KINDS) or (inner and not isinstance(layer, keras.layers.Dropout)) or _is_special(layer):
            raise ValueError(
                f"--dropout_seed {seed}: the layer {layer.name!r} ({type(layer).__name__}) drops in another way than keras.layers.Dropout, "
                "whose units can be drawn once; leave --dropout_seed out, and make an ensemble of several trained models"
            )
    if not drawing:
        raise ValueError(
            f"--dropout_seed {seed}: the model has no layer keras.layers.Dropout with a rate above 0, so that all members would be the "
            "same; leave it out, and make an ensemble of several trained models"
        )

    places = {id(layer): place for place, layer in enumerate(layers)}

    def remake(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.layers.Dropout) and layer.rate > 0:
            return KeptUnits(layer.rate, seed, places[id(layer)], name=layer.name, dtype=layer.dtype_policy)
        return type(layer).from_config(layer.get_config())

    made: Any = keras.models.clone_model(model, clone_function=remake)
    inside = next((layer for layer in made._flatten_layers() if isinstance(layer, keras.layers.Dropout) and layer.rate > 0), None)
    if inside is not None:
        raise ValueError(
            f"--dropout_seed {seed}: {inside.name!r} drops inside of another layer, a nested model or an attention; leave "
            "--dropout_seed out, and make an ensemble of several trained models"
        )
    for own, other in zip(model._flatten_layers(), made._flatten_layers(), strict=True):
        if not isinstance(other, KeptUnits):
            copy_state(own, other)
    for own, other in zip(model.weights, made.weights, strict=True):
        if not np.array_equal(np.asarray(own.value), np.asarray(other.value), equal_nan=True):
            raise ValueError(f"--dropout_seed {seed}: the weight {own.path!r} is not copied; leave --dropout_seed out")
    if type(made) is not type(model):
        raise ValueError(f"--dropout_seed {seed}: {type(model).__name__} can't be put together again from its layers; leave it out")
    if model.compiled:
        made.compile(loss=model.loss, loss_weights=getattr(getattr(model, "_compile_loss", None), "_user_loss_weights", None))
        made.optimizer = model.optimizer  # SOURCE reads how far its steps go
    made.unread_optimizer = getattr(model, "unread_optimizer", None)
    return made
