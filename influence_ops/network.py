"""A private copy of a Keras model, at the precision of the computation, ending in pre-activations."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras.src.models import Functional  # not exported, and the class keras.Model(inputs, outputs) makes

from influence_ops.features import ModelInput
from influence_ops.saved_model import SavedModelNetwork

Precision = Literal["auto", "float64", "native"]

_ACTIVATIONS_TAKEN_OFF = ("softmax", "sigmoid")


@dataclasses.dataclass(frozen=True)
class Network:
    """A copy of the user's model, on which everything is computed.

    Attributes:
      model: the copy; its last layer is linear when its activation could be taken off.
      activation: the activation taken off the last layer: `softmax`, `sigmoid` or `linear` (none).
      dtype: `float64`, or the dtype that the model itself has.
      inputs: the original's inputs as it declares them; empty for a subclassed model.
    """

    model: Any
    activation: str
    dtype: str
    inputs: tuple[ModelInput, ...]


def copy_network(model: Any, precision: Precision) -> Network:
    """Copies `model` with its weights as they are now; the original is never changed.

    Sequential and functional models are rebuilt from their layers' configurations: in float64
    (`auto`, `float64`), or in their own dtypes (`native`). A subclassed model can't be rebuilt; it is
    used as it is, in its own dtype, which `float64` refuses; so is a SavedModel.

    Raises:
      ValueError: the model is not built, has several outputs' worth of losses, or can't be rebuilt.
    """
    if isinstance(model, SavedModelNetwork):
        if precision == "float64" and model.dtype != "float64":
            raise ValueError("a SavedModel can't be rebuilt in float64; use precision 'native', or a .keras file")
        return Network(model, "linear", model.dtype, declared_inputs(model))
    if not model.built:
        raise ValueError("the model has no weights yet; call it once on a batch, or load a trained one")
    if not isinstance(model, (keras.Sequential, Functional)):
        dtype = str(model.weights[0].dtype) if model.weights else "float32"
        if precision == "float64" and dtype != "float64":
            raise ValueError(
                f"{type(model).__name__} is a subclassed model and can't be rebuilt in float64; "
                "use precision 'native'"
            )
        return Network(model, "linear", dtype, declared_inputs(model))
    last = model.layers[-1]
    activation = getattr(getattr(last, "activation", None), "__name__", "linear")
    take_off = activation in _ACTIVATIONS_TAKEN_OFF and len(model.outputs) == 1
    # An Activation or Softmax layer of its own is left in place: the layer before it is not the last.
    take_off = take_off and isinstance(last, keras.layers.Dense)

    def copy_layer(layer: Any) -> Any:
        config = layer.get_config()
        if precision != "native" and "dtype" in config:
            config["dtype"] = "float64"
        # A user's own functions and regularisers are not known to Keras by name: the objects themselves are used.
        for key, value in config.items():
            own = getattr(layer, key, None)
            if isinstance(value, dict) and (isinstance(own, keras.regularizers.Regularizer) or inspect.isfunction(own)):
                config[key] = own
        if layer is last and take_off:
            config["activation"] = "linear"
        return type(layer).from_config(config)

    def copy_input(tensor: Any) -> Any:
        wide = precision != "native" and tf.as_dtype(tensor.dtype).is_floating
        return keras.Input(batch_shape=tensor.shape, dtype="float64" if wide else tensor.dtype, name=tensor.name)

    inputs = tf.nest.map_structure(copy_input, model.inputs[0] if isinstance(model, keras.Sequential) else model.input)
    copy = keras.models.clone_model(model, input_tensors=inputs, clone_function=copy_layer)
    if precision != "native" and any(tf.as_dtype(weight.dtype).is_floating and weight.dtype != "float64" for weight in copy.weights):
        # A subclassed layer makes its own layers, in the default dtype.
        if precision == "float64":
            raise ValueError("the model has layers that can't be rebuilt in float64 (subclassed ones); use precision 'native'")
        return copy_network(model, "native")
    copy.set_weights(model.get_weights())
    dtype = "float64" if precision != "native" else str(model.compute_dtype)
    return Network(copy, activation if take_off else "linear", dtype, declared_inputs(model))


def declared_inputs(model: Any) -> tuple[ModelInput, ...]:
    """The inputs that a model declares."""
    tensors = getattr(model, "inputs", None) or []
    return tuple(ModelInput(tensor.name, tuple(tensor.shape[1:]), str(tensor.dtype)) for tensor in tensors)


def feed(model: keras.Model, inputs: Any, dtype: str) -> Any:
    """Inputs in the dtypes the model takes: floats in `dtype`, integers and strings as declared."""
    declared = getattr(model, "inputs", None) or []
    by_name = {tensor.name: tensor.dtype for tensor in declared}

    def cast(array: Any, wanted: str | None) -> Any:
        tensor = tf.convert_to_tensor(array)
        if wanted is None:
            return tf.cast(tensor, dtype) if tensor.dtype.is_floating else tensor
        if wanted == "string" or tensor.dtype == tf.string:
            return tensor
        return tf.cast(tensor, dtype if tf.as_dtype(wanted).is_floating else wanted)

    if isinstance(inputs, dict):
        return {name: cast(array, by_name.get(name)) for name, array in inputs.items()}
    return cast(inputs, declared[0].dtype if len(declared) == 1 else None)


def load_keras_file(path: str) -> keras.Model:
    """The model in a `.keras` file, in Keras's safe mode: no code in the file is run.

    Raises:
      ValueError: not a `.keras` file, or one that Keras can't read or refuses.
    """
    try:
        model: Any = keras.models.load_model(path, safe_mode=True)
        return model
    except Exception as error:
        raise ValueError(
            f"can't load the model {path!r}: {error}. It must be a .keras file written by "
            "model.save(); one with Lambda layers is refused, since loading it would run its code. For one with classes of "
            "your own give --model module:function, a function that imports them and returns the loaded model"
        ) from error


def to_numpy(tensor: Any) -> np.ndarray:
    """The tensor's value in float64."""
    return np.asarray(tensor, dtype=np.float64)
