"""The options of `beam-influence unrolled`: those of a run that mean the same there, and those of the training that is repeated."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.machine_memory import parse_bytes
from beam_influence.pipelines.named_code import names_code
from beam_influence.pipelines.options.option import REQUIRED, check_values, option

TABLES = ("top_k", "scores")
TRAINED = "trained.keras"
TRAINED_WEIGHTS = "trained.weights.h5"
"""The model that the training ends in, or of a model of `module:function` its weights, below the output folder."""
_training = functools.partial(option, group="training", commands=("unrolled",))


def _of_run(name: str, **changed: Any) -> Any:
    """An option that means what it means for `run`."""
    field = InfluenceConfig.__dataclass_fields__[name]
    described = {key: field.metadata[key] for key in ("help", "group", "choices", "names", "least", "changes_result")}
    return option(**{"default": field.default, **described, "commands": ("unrolled",), **changed})


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnrolledConfig:
    """Which training is repeated, and what is written.

    Raises:
      ValueError: an option is wrong; the message names it, its value and what to write instead.
    """

    model: str = _of_run(
        "model",
        help="The model as it was before its training, compiled with its optimizer and loss: a .keras file saved between compile and fit, "
        "or your function module:function that returns it.",
    )
    model_weights: str | None = _of_run("model_weights")
    train: str = _of_run("train", default=REQUIRED)
    test: str = _of_run("test", default=REQUIRED, help="The test points to explain: files as for --train.")
    loss: str = _of_run("loss")
    schema: str | None = _of_run("schema")
    default: str | None = _of_run("default")
    input_features: str | None = _of_run("input_features")
    data_format: str = _of_run("data_format")
    preprocess: str | None = _of_run("preprocess")
    label_feature: str = _of_run("label_feature")
    id_feature: str | None = _of_run("id_feature")
    weight_feature: str | None = _of_run("weight_feature")
    max_rejected: int = _of_run("max_rejected")
    precision: str = _of_run(
        "precision",
        choices=("auto", "float64", "native"),
        help="float64, the model's own dtype (native), or auto: float64 where the model can be rebuilt so and draws no random numbers, "
        "which are others in float64.",
    )
    output: str = _of_run("output")
    outputs: str = _of_run("outputs", help="Which tables to write, separated by commas: top_k, scores.")
    top_k: int = _of_run("top_k")
    order: str = _of_run("order")
    overwrite: bool = _of_run("overwrite")
    query_block_size: int = _of_run(
        "query_block_size",
        default=128,
        help="Test points that go backward through the training together, at most: fewer where --max_worker_memory wants it. Does not "
        "change the result.",
    )
    threads: int = _of_run("threads")
    max_worker_memory: str | None = _of_run(
        "max_worker_memory",
        help="Memory of one worker process, such as 8GB: it decides how many steps' states are held, how many test points go together, and "
        "how large a training set can be. Default: this machine's memory (its container's) divided by its cores.",
    )
    work_dir: str | None = _of_run("work_dir")
    batch_size: int = _training(32, "Examples in each step, as of fit.", least=1)
    epochs: int = _training(1, "How often the training goes over the training set, as of fit.", least=1)
    shuffle_seed: int | None = _training(
        None,
        "Each epoch in an order of its own: numpy.random.default_rng([SEED, epoch]).permutation(n) of the examples in the order of the "
        "files. Default: in that order, as fit(shuffle=False).",
        least=0,
    )
    batches: str | None = _training(
        None,
        "Which examples each step has, in place of --batch_size, --epochs and --shuffle_seed: your function module:function, called with "
        "the ids of the training set in the order of the files; it gives for each step the ids of its examples.",
    )
    trained: str | None = _training(
        None, "The model that your training ended in, a .keras file: it is said how far the repeated training ends from it."
    )
    smoothness: int = _training(
        8,
        "Trainings with another weight of 1 % of the examples, by which it is measured whether the derivative predicts changes (2 or more; "
        "0: not measured).",
        least=0,
    )
    smoothness_step: float = _training(1.0, "By how much these weights are lowered from 1; 1 takes the examples out.")

    def __post_init__(self) -> None:
        check_values(self)
        strange = [name for name in self.tables if name not in TABLES]
        if strange or not self.tables:
            raise ValueError(f"--outputs {self.outputs!r} must name some of {', '.join(TABLES)}; separate them by commas")
        if self.batches is not None:
            if ":" not in self.batches:
                raise ValueError(f"--batches {self.batches!r} is not an import path; write it as 'package.module:function'")
            for name in ("batch_size", "epochs", "shuffle_seed"):
                if (value := getattr(self, name)) != type(self).__dataclass_fields__[name].default:
                    raise ValueError(f"--batches takes the place of --{name} {value}; leave that out")
        if self.smoothness == 1:
            raise ValueError("--smoothness 1 has nothing to correlate; give 2 or more, or 0")
        if not 0 < self.smoothness_step <= 1:
            raise ValueError(f"--smoothness_step {self.smoothness_step} must be above 0 and at most 1")
        if self.max_worker_memory is not None:
            try:
                parse_bytes(self.max_worker_memory)
            except ValueError as error:
                raise ValueError(f"--max_worker_memory {error}") from error
        self.as_run()

    @property
    def tables(self) -> tuple[str, ...]:
        """The names in `outputs`."""
        return tuple(dict.fromkeys(name.strip() for name in self.outputs.split(",") if name.strip()))

    @property
    def names_function(self) -> bool:
        """Whether the model is one that the user's function makes."""
        return names_code("model", self.model)

    def as_run(self, **changed: Any) -> InfluenceConfig:
        """The options as of a run that reads the same files and explains all weights of the model; some of them changed.

        Raises:
          ValueError: one is wrong.
        """
        left_out = ("batch_size", "outputs", "max_worker_memory", "query_block_size")
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.metadata["group"] != "training"}
        options = {name: value for name, value in own.items() if name not in left_out}
        tables = {"outputs": ",".join(self.tables), "query_block_size": self.query_block_size}
        return InfluenceConfig(**{**options, **tables, "weights": "all", "curvature": "identity", "resume": False, **changed})

    def as_trained(self) -> dict[str, Any]:
        """What `as_run` changes for the model that the training ends in."""
        if self.names_function:
            return {"model_weights": f"{self.output.rstrip('/')}/{TRAINED_WEIGHTS}"}
        return {"model": f"{self.output.rstrip('/')}/{TRAINED}"}
