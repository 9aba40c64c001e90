"""The network on which everything is computed: a float64 copy of the user's model, or the model itself."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras.src.models import Functional  # not exported, and the class keras.Model(inputs, outputs) makes

from beam_influence.influence_ops.model.float64_copy import NoCopy, float64_copy
from beam_influence.influence_ops.model.h5_file import load_h5_file
from beam_influence.influence_ops.model.optimizer_state import note_unread_state
from beam_influence.influence_ops.model.own_functions import own_functions_text
from beam_influence.influence_ops.model.saved_model import SavedModelNetwork
from beam_influence.influence_ops.model.tensor_float_32 import has_tensor_float_32
from beam_influence.influence_ops.reading.features import ModelInput
from beam_influence.influence_ops.types import Float64Array, Tensors, TensorSpecs

Precision = Literal["auto", "float64", "native", "tf32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Network:
    """What is computed on.

    Attributes:
      model: a copy in float64, or `original` itself.
      original: the user's model.
      dtype: what `model` computes in.
      inputs: the original's inputs as it declares them; empty for a subclassed model.
      why_native: why `model` is no float64 copy, where that was left open; empty where it was not, or there is a copy.
      tensor_float_32: whether products of float32 may be those of `tensor_float_32`.
    """

    model: Any
    original: Any
    dtype: str
    inputs: tuple[ModelInput, ...]
    why_native: str = ""
    tensor_float_32: bool = False

    @property
    def is_copy(self) -> bool:
        """Whether the two must be compared."""
        return self.model is not self.original

    @property
    def rounds_as(self) -> str:
        """The dtype whose rounding is the coarsest on the way through the user's model: TensorFloat-32 has as many bits as float16."""
        return "float16" if self.tensor_float_32 and has_tensor_float_32() else narrowest_dtype(self.original)


def open_network(model: Any, precision: Precision) -> Network:
    """The network of `model` in a precision; the model is never changed.

    `native` is the model itself. `float64` is a copy by Keras's own serialisation (`float64_copy`), of which a subclassed model
    and a SavedModel have none; `auto` takes the copy where there is one. `bfloat16` is the model itself, and so is `tf32`, with
    TensorFloat-32 allowed.

    Raises:
      ValueError: the model is not built, is quantised or keeps state from batch to batch, has no float64 copy, or for `tf32` does not
        compute in float32.
    """
    inputs = declared_inputs(model)
    of_saved = isinstance(model, SavedModelNetwork)
    if not of_saved:
        if not model.built:
            raise ValueError("the model has no weights yet; call it once on a batch, or load a trained one")
        _refuse_layers(model)
    native = Network(model, model, model.dtype if of_saved else _weights_dtype(model), inputs)
    if precision == "tf32":
        return _with_tensor_float_32(native)
    if precision in ("native", "bfloat16"):
        return native
    if of_saved or not isinstance(model, (keras.Sequential, Functional)):
        what = "a SavedModel" if of_saved else f"{type(model).__name__} is a subclassed model and"
        if precision == "float64" and native.dtype != "float64":
            raise ValueError(f"{what} can't be rebuilt in float64; use precision 'native'{', or a .keras file' * of_saved}")
        return dataclasses.replace(native, why_native=f"{what} can't be rebuilt in float64")
    try:
        return Network(float64_copy(model), model, "float64", inputs)
    except NoCopy as reason:
        if precision == "float64":
            raise ValueError(f"the model can't be rebuilt in float64: {reason}; use precision 'native'") from reason
        return dataclasses.replace(native, why_native=f"the model can't be rebuilt in float64: {reason}")


def _with_tensor_float_32(native: Network) -> Network:
    narrow = narrowest_dtype(native.original)
    if native.dtype != "float32" or narrow != "float32":
        found = native.dtype if native.dtype != "float32" else narrow
        raise ValueError(
            f"precision 'tf32' is of products of float32, and the model computes in {found}; use precision 'native', or 'float64'"
        )
    return dataclasses.replace(native, tensor_float_32=True)


def narrowest_dtype(model: Any) -> str:
    """The narrowest dtype on the way through a model; at least float32, in which Keras computes losses."""
    layers = getattr(model, "_flatten_layers", list)()
    narrow = [layer.compute_dtype for layer in layers if layer.compute_dtype in ("float16", "bfloat16")]
    return narrow[0] if narrow else "float32"


def _weights_dtype(model: Any) -> str:
    """The dtype of a model's first weight: what it computes in."""
    trainable = model.trainable_variables or model.variables
    return str(trainable[0].dtype) if trainable else "float32"


def _refuse_layers(model: Any) -> None:
    """What can't be explained whatever the data."""
    structure = getattr(model, "input", None) if isinstance(model, Functional) else None
    for key, tensor in structure.items() if isinstance(structure, dict) else ():
        if key != getattr(tensor, "name", key):
            raise ValueError(
                f"the model's input {tensor.name!r} has the key {key!r} in its dictionary of inputs; name both alike: "
                f"keras.Input(..., name={key!r})"
            )
    for layer in model._flatten_layers():
        if getattr(layer, "quantization_mode", None) not in (None, "float8"):
            raise ValueError(
                f"the layer {layer.name!r} is quantised ({layer.quantization_mode}): its weights are integers and have no gradient; "
                "give the model as it was before model.quantize()"
            )
        if getattr(layer, "stateful", False) and isinstance(layer, keras.layers.RNN):
            raise ValueError(
                f"the layer {layer.name!r} is stateful: what it says of an example depends on those before it; build the model with "
                "stateful=False and load its weights"
            )


def declared_inputs(model: Any) -> tuple[ModelInput, ...]:
    """The inputs that a model declares."""
    tensors = getattr(model, "inputs", None) or []
    return tuple(ModelInput(tensor.name, tuple(tensor.shape[1:]), str(tensor.dtype), getattr(tensor, "parses", ())) for tensor in tensors)


def declared_outputs(model: Any) -> dict[str, tuple[int | None, ...]]:
    """The shape, without the batch, of each output that a model declares, by its name; empty where it declares none."""
    tensors = getattr(model, "outputs", None) or []
    names = getattr(model, "output_names", None) or [str(place) for place in range(len(tensors))]
    return {name: tuple(tensor.shape[1:]) for name, tensor in zip(names, tensors, strict=True)}


def declared_specs(model: Any, dtype: str) -> TensorSpecs:
    """What `feed` gives for the inputs that a model declares."""
    specs = {}
    for tensor in model.inputs:
        is_float = tensor.dtype != "string" and tf.as_dtype(tensor.dtype).is_floating
        specs[tensor.name] = tf.TensorSpec([None, *tensor.shape[1:]], dtype if is_float else tensor.dtype)
    return next(iter(specs.values())) if len(specs) == 1 else specs


def feed(model: keras.Model, inputs: Tensors, dtype: str) -> Tensors:
    """Inputs in the dtypes the model takes: floats in `dtype`, integers and strings as declared."""
    declared = getattr(model, "inputs", None) or []
    by_name = {tensor.name: tensor.dtype for tensor in declared}
    numpy_dtype = tf.as_dtype(dtype).as_numpy_dtype

    def cast(array: np.ndarray | tf.Tensor, wanted: str | None) -> Any:
        is_floating = wanted is None or tf.as_dtype(wanted).is_floating
        if is_floating and isinstance(array, np.ndarray) and array.dtype.kind == "f":  # NumPy does it in half the time
            return tf.convert_to_tensor(array.astype(numpy_dtype, copy=False))
        tensor = tf.convert_to_tensor(array)
        if wanted is None:
            return tf.cast(tensor, dtype) if tensor.dtype.is_floating else tensor
        if wanted == "string" or tensor.dtype == tf.string:
            return tensor
        return tf.cast(tensor, dtype if tf.as_dtype(wanted).is_floating else wanted)

    if isinstance(inputs, dict):
        return {name: cast(array, by_name.get(name)) for name, array in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        return type(inputs)(cast(array, tensor.dtype) for array, tensor in zip(inputs, declared, strict=True))
    return cast(inputs, declared[0].dtype if len(declared) == 1 else None)


def load_keras_file(path: str) -> keras.Model:
    """The model in a `.keras` or `.h5` file, in Keras's safe mode: no code in the file is run.

    Raises:
      ValueError: not such a file, or one that Keras can't read or refuses.
    """
    try:
        with warnings.catch_warnings():
            # Of a model that was saved before its first step: its optimizer has no slots yet.
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            model: Any = keras.models.load_model(path, safe_mode=True) if path.endswith(".keras") else load_h5_file(path)
        if path.endswith(".keras"):
            note_unread_state(model, path)
        return model
    except Exception as error:
        if own := own_functions_text(path):
            raise ValueError(f"can't load the model {path!r}. {own}") from error
        raise ValueError(
            f"can't load the model {path!r}: {error}. It must be a .keras or .h5 file written by "
            "model.save(); one with Lambda layers is refused, since loading it would run its code. For one with classes of "
            "your own give --model module:function, a function that imports them and returns the loaded model"
        ) from error


def to_numpy(tensor: Any) -> Float64Array:
    """The tensor's value in float64."""
    return np.asarray(tensor, dtype=np.float64)
