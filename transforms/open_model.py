"""The model on a worker: a recipe small enough to travel, and the model it makes, once per process."""

from __future__ import annotations

import collections
import dataclasses
import importlib
import threading
from typing import Any

import numpy as np

from beam_influence.influence_ops.device import configure_tensorflow
from beam_influence.influence_ops.model.checkpoints import CheckpointSum
from beam_influence.influence_ops.model.dropout import with_dropped_units
from beam_influence.influence_ops.model.explained_model import ExplainedModel, Regularizer
from beam_influence.influence_ops.model.guard import Agreement
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.model.losses import refuse_unsaved_settings
from beam_influence.influence_ops.model.network import Precision
from beam_influence.influence_ops.model.tensor_float_32 import allow_tensor_float_32
from beam_influence.influence_ops.model.weights import LAST_WITH_WEIGHTS
from beam_influence.transforms.load_model import MODEL_FILES, load_checkpoint, load_model

_OPENING = threading.RLock()
_SESSIONS: collections.OrderedDict[str, ExplainedModel] = collections.OrderedDict()
_KEPT = 2  # a worker process may serve one job after another


def forget_models() -> None:
    """Gives the memory of this process's models back; for a launcher whose workers are other processes."""
    with _OPENING:
        _SESSIONS.clear()


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """How a worker makes the `InfluenceModel`; see there for the options.

    Attributes:
      path: a `.keras` or `.h5` file, a SavedModel folder, or `module:function`.
      digest: SHA-256 of the model when the run was planned; a changed one is refused. Empty: any is taken.
      threads: CPU threads of TensorFlow in each process (0: all).
      model_weights: with a function: a `.weights.h5` file.
      modules: the user's own modules, imported with the model: their curvatures make themselves known.
      checkpoints: where the weights are in place of the model's own; see `CheckpointSum`.
      checkpoint_weights: η of each; None: their mean.
      checkpoint_digests: SHA-256 of each, as `digest`.
      agreement: what its check found when the run was planned, so that no worker does it again.
      signature: of a SavedModel, as of `open_endpoint`.
      dropout_seed: which units are dropped for good, see `with_dropped_units`; None: the model as it is.
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
    model_weights: str | None = None
    modules: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    checkpoint_weights: tuple[float, ...] | None = None
    checkpoint_digests: tuple[str, ...] = ()
    agreement: Agreement | None = None
    signature: str = ""
    dropout_seed: int | None = None

    def open(self) -> ExplainedModel:
        """Loads the model.

        Raises:
          ValueError: it is not what it was, can't be loaded, or an option does not fit it.
        """
        self._set_up()
        if self.checkpoints:
            model: ExplainedModel = self._open_checkpoints()[0]
        else:
            model = self._with_options(load_model(self.path, self.model_weights, self.digest, self.signature)[0])
        model.agreement = self.agreement
        return model

    def session(self) -> ExplainedModel:
        """The model of this process, for all its stages and threads: opened once, and only read from then on.

        Raises:
          ValueError: as `open`.
        """
        allow_tensor_float_32(self.precision == "tf32")  # before the model is called for the first time
        with _OPENING:
            key = repr(self)
            if key in _SESSIONS:
                _SESSIONS.move_to_end(key)
            else:
                self.keep(self.open())
            return _SESSIONS[key]

    def keep(self, model: ExplainedModel) -> None:
        """Makes `model`, which was opened by this recipe, that of this process: what is compiled for it is not compiled again."""
        with _OPENING:
            _SESSIONS.pop(repr(self), None)
            while len(_SESSIONS) >= _KEPT:
                _SESSIONS.popitem(last=False)
            _SESSIONS[repr(self)] = model

    def open_first(self) -> tuple[ExplainedModel, ModelSpec]:
        """The model as it is now, and the recipe for just that one."""
        self._set_up()
        if self.checkpoints:
            model, digests = self._open_checkpoints()
            return model, dataclasses.replace(self, checkpoint_digests=digests)
        model, digest = load_model(self.path, self.model_weights, signature=self.signature)
        return self._with_options(model), dataclasses.replace(self, digest=digest)

    def _open_checkpoints(self) -> tuple[ExplainedModel, tuple[str, ...]]:
        wanted = self.checkpoint_digests or ("",) * len(self.checkpoints)
        loaded = [
            load_checkpoint(checkpoint, self.path, self.model_weights, digest, self.signature)
            for checkpoint, digest in zip(self.checkpoints, wanted, strict=True)
        ]
        parts = [self._with_options(model) for model, _ in loaded]
        return CheckpointSum(parts, self.checkpoint_weights), tuple(digest for _, digest in loaded)

    def _set_up(self) -> None:
        configure_tensorflow(self.threads)
        for module in self.modules:
            importlib.import_module(module)

    def _with_options(self, model: Any) -> InfluenceModel:
        if self.loss == "compiled" and self.path.endswith(MODEL_FILES):
            refuse_unsaved_settings(model)
        return InfluenceModel(
            model if self.dropout_seed is None else with_dropped_units(model, self.dropout_seed),
            start_layer=LAST_WITH_WEIGHTS if self.start_layer is None else self.start_layer,
            last_layer=self.last_layer,
            loss_function=self.loss,
            weights=self.weights if self.start_layer is None and self.last_layer is None else None,
            weight_decay=self.weight_decay,
            regularizer=self.regularizer,
            precision=self.precision,
        )


def refuse_another_model(model: ExplainedModel, spec: ModelSpec) -> None:
    """Refuses checkpoints whose last is not the model that is explained: their curvature says what each has done to the last one.

    Raises:
      ValueError: its weights are not those of the model at `path`.
    """
    explained = dataclasses.replace(spec, checkpoints=(), checkpoint_weights=None, checkpoint_digests=()).open_first()[0]
    if not np.array_equal(explained.parameters(), model.parts[-1].parameters()):
        raise ValueError(
            f"the last checkpoint, {spec.checkpoints[-1]!r}, has other weights than --model {spec.path!r}: SOURCE explains the model at "
            "the end of the last segment; name the checkpoints in the order of training and end with that model"
        )
