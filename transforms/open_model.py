"""The model on a worker: a recipe small enough to travel, and the model it makes, once per process."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile

from influence_ops.device import configure_tensorflow
from influence_ops.model import InfluenceModel, Regularizer
from influence_ops.network import Precision, load_keras_file
from transforms.files import BeamFiles


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """How a worker makes the `InfluenceModel`; see there for the options.

    Attributes:
      path: a `.keras` file.
      digest: SHA-256 of the file when the run was planned; a changed file is refused.
      threads: CPU threads of TensorFlow in each process (0: all).
    """

    path: str
    digest: str
    loss: str
    weights: str | None
    start_layer: str | None
    last_layer: str | None
    weight_decay: float
    regularizer: Regularizer
    precision: Precision
    threads: int

    def open(self) -> InfluenceModel:
        """Loads the model.

        Raises:
          ValueError: the file is not what it was, can't be loaded, or an option does not fit it.
        """
        configure_tensorflow(self.threads)
        data = BeamFiles().read(self.path)
        if self.digest and hashlib.sha256(data).hexdigest() != self.digest:
            raise ValueError(f"the model {self.path!r} has changed since the run began; start the run again")
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, "model.keras")
            with open(local, "wb") as file:
                file.write(data)
            try:
                model = load_keras_file(local)
            except ValueError as error:
                raise ValueError(str(error).replace(local, self.path)) from error
        return InfluenceModel(
            model,
            start_layer=self.start_layer if self.start_layer is not None else -1,
            last_layer=self.last_layer,
            loss_function=self.loss,
            weights=self.weights if self.start_layer is None and self.last_layer is None else None,
            weight_decay=self.weight_decay,
            regularizer=self.regularizer,
            precision=self.precision,
        )


def file_digest(path: str) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(BeamFiles().read(path)).hexdigest()
