"""A user's layer that can't be rebuilt from what it says of itself."""

from __future__ import annotations

from typing import Any

import keras


class Forgetful(keras.layers.Layer):
    """Its configuration leaves out what it was made with, so that a copy of it is another layer."""

    def __init__(self, factor: float = 1.0, **options: Any):
        super().__init__(**options)
        self.factor = factor

    def call(self, x: Any) -> Any:
        return x * self.factor

    def get_config(self) -> dict[str, Any]:
        return {key: value for key, value in super().get_config().items() if key != "factor"}
