"""A model in Keras's older format, an HDF5 file (`.h5`), with the loss that it was compiled with.

Keras itself fails on files compiled with losses or metrics by their short names ("mse"), and on optimizers of Keras 2; neither
metrics nor the optimizer are needed here, so the loss alone is taken from the file.
"""

from __future__ import annotations

import json
from typing import Any

import h5py
import keras


def load_h5_file(path: str) -> keras.Model:
    """The model, compiled with its loss alone; in Keras's safe mode. Its `unread_optimizer` tells of the one in the file, if there is one.

    Raises:
      ValueError: it has weights alone, or a class that Keras does not know.
    """
    with h5py.File(path) as file:
        if "model_config" not in file.attrs:
            raise ValueError("it has weights alone; give it with --model_weights as a .weights.h5 file, and --model module:function")
        training: Any = file.attrs.get("training_config")
    model: Any = keras.models.load_model(path, compile=False, safe_mode=True)
    if training is not None:
        config = json.loads(training)
        model.compile(loss=_losses(config.get("loss")), loss_weights=config.get("loss_weights"))
        if config.get("optimizer_config"):
            model.unread_optimizer = f"was compiled with {config['optimizer_config'].get('class_name')}, which is not read from an .h5 file"
    return model


def _losses(config: Any) -> Any:
    """The losses of a training configuration, of each output where there are several; a name stays one."""
    if isinstance(config, list):
        return [_losses(one) for one in config]
    if not isinstance(config, dict):
        return config
    if "class_name" not in config:
        return {output: _losses(one) for output, one in config.items()}
    return config["config"] if config["class_name"] == "function" else keras.losses.deserialize(config)
