"""What is explained: the model, its loss and the weights that are watched."""

from __future__ import annotations

import dataclasses
import functools

from beam_influence.pipelines.options.option import REQUIRED, option

_option = functools.partial(option, group="model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is explained."""

    model: str = _option(
        REQUIRED,
        "The trained model: a .keras or .h5 file, a SavedModel folder, or your function module:function that returns a built Keras model.",
        names=True,
    )
    model_weights: str | None = _option(None, "With --model module:function: a .weights.h5 file that is loaded into the model.")
    signature: str | None = _option(
        None,
        "Of a SavedModel: the signature that is explained, or 'call', the model inside of a Keras SavedModel. Default: serving_default. "
        "One that takes serialized tf.Examples, as TFX's trainers write it, gets the records of --train as they are.",
    )
    checkpoints: str | None = _option(
        None,
        "Checkpoints of the training run in place of the model's own weights, separated by commas: .keras or .h5 files, SavedModel "
        "folders, or .weights.h5 files for the network of --model. Influence is summed over them (TracIn, with any --curvature).",
    )
    checkpoint_weights: str | None = _option(
        None,
        "With --checkpoints: what each one's influence is multiplied by, such as its learning rate, separated by commas. Default: 1/C "
        "each, their mean.",
    )
    dropout_seed: int | None = _option(
        None,
        "Explain the network that is left when each Dropout layer drops, for all examples, the units that this seed draws: a member of an "
        "ensemble of one trained model (beam-influence ensemble). Default: the model as it is, which drops none.",
        least=0,
    )
    loss: str = _option(
        "compiled",
        "The loss that the model was trained with: 'compiled' (stored in the model), softmax_cross_entropy (from logits), "
        "sigmoid_cross_entropy (from logits), squared_error, a Keras loss name, or your own as module:function.",
    )
    weights: str | None = _option(
        "last", "The weights that are watched: 'last' (the last layer), 'all', or a regular expression on their names; with --curvature "
        "auto also 'auto': all of them if that can be, else the last layer.",
    )
    start_layer: str | None = _option(
        None,
        "Instead of --weights: the first watched layer, by name or by index among all of the model's layers (negative: from the end); "
        "without --last_layer, the only one.",
    )
    last_layer: str | None = _option(None, "With --start_layer: the last watched layer, named likewise.")
    weight_decay: float = _option(0.0, "w of a regulariser 0.5·w·‖θ‖² that training used but the model file does not carry.", least=0)
    regularizer: str = _option(
        "curvature",
        "Where the regulariser stands: in the curvature only (objective mean(loss) + R), or also in every example's loss.",
        choices=("curvature", "loss"),
    )
    precision: str = _option(
        "auto",
        "float64; the model's own dtype (native); or auto: float64 where the model can be rebuilt so, but for a long run over a network "
        "whose own precision gives the same ranks on a sample of its examples, which is measured and told. tf32: as native, of a float32 "
        "model, with the products that a GPU rounds to TensorFloat-32 where it has it. bfloat16: as native, with solved test points held "
        "in bfloat16 (half the memory) and multiplied in sums of float32. Of both the error on a sample is told.",
        choices=("auto", "float64", "native", "tf32", "bfloat16"),
    )

    def check(self) -> None:
        """Raises `ValueError` where one is wrong."""
        if self.weights == "auto":
            raise ValueError("--weights auto goes with --curvature auto; use last, all, or a regular expression, such as '.*auto.*'")
        rates, count = self.checkpoint_rates, len(self.checkpoint_paths)
        if rates is not None and len(rates) != count:
            raise ValueError(f"--checkpoint_weights {self.checkpoint_weights!r} must be {count} numbers, one for each of --checkpoints")

    @property
    def checkpoint_paths(self) -> tuple[str, ...]:
        """The names in `checkpoints`."""
        return tuple(path.strip() for path in (self.checkpoints or "").split(",") if path.strip())

    @property
    def checkpoint_rates(self) -> tuple[float, ...] | None:
        """The numbers in `checkpoint_weights`."""
        if self.checkpoint_weights is None:
            return None
        try:
            rates = tuple(float(rate) for rate in self.checkpoint_weights.split(","))
        except ValueError:
            rates = ()
        if not rates or not all(0 < rate < float("inf") for rate in rates):
            raise ValueError(f"--checkpoint_weights {self.checkpoint_weights!r} must be numbers above 0, separated by commas")
        return rates
