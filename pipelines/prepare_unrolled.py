"""What is found out and checked before an unrolled run starts: files, model, optimizer, and the first steps beside Keras's own."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.import_path import load_object
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.replay.batch_order import BatchOrder
from beam_influence.influence_ops.replay.keras_training import FIRST_STEPS, compare_first_steps, refuse_other_weights
from beam_influence.influence_ops.replay.training_run import TrainingRun
from beam_influence.pipelines.machine_memory import size_text, worker_memory
from beam_influence.pipelines.prepare import PreparedRun, prepare
from beam_influence.pipelines.rows_at_once import activations
from beam_influence.pipelines.unrolled_config import UnrolledConfig
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.open_replay import TrainingRecipe, first_examples
from beam_influence.transforms.progress import Progress
from beam_influence.transforms.read_shards import ShardReader
from beam_influence.transforms.replay_training import load_trained

_PARTS = 4  # of a worker's memory: the training set, the states of a segment, what goes backward, all else
_BACKWARD = 6  # adjoints and activations on the way back through a step, for each of the way forward


@dataclasses.dataclass(frozen=True)
class PreparedUnrolled:
    """A run that can start.

    Attributes:
      run: its files, features and model, as of any run.
      recipe: how the training is repeated.
      block_size: test points that go backward together.
      off_keras: how far its first steps are from Keras's own; see `compare_first_steps`.
    """

    run: PreparedRun
    recipe: TrainingRecipe
    block_size: int
    off_keras: float


def prepare_unrolled(config: UnrolledConfig) -> PreparedUnrolled:
    """Checks a configuration against the world; nothing has been written by then.

    Raises:
      ValueError: files are missing, the model or its optimizer can't be used, or its first steps are not those of Keras.
    """
    run = _prepared_in_a_precision(config)
    memory = worker_memory(config.max_worker_memory) // _PARTS
    recipe = TrainingRecipe(run.model, config.batch_size, config.epochs, config.shuffle_seed, config.batches, memory)
    step = recipe.step()
    if config.batches is not None:
        load_object(config.batches)
    if config.trained is not None:
        refuse_other_weights(step, load_trained(config.trained))
    if run.train_features is None or not run.train:
        raise ValueError(f"--train {config.train!r}: there are no examples")
    reader = ShardReader("prepare", run.train_features, config.batch_size, Progress(None))
    read = (batch for shard in run.train for batch, _ in reader.read(shard) if len(batch))
    first = first_examples(read, FIRST_STEPS * config.batch_size)
    off = 0.0
    if first is not None:  # else all of them are bad: the run will say so, example by example
        off = compare_first_steps(TrainingRun.of(step, first, BatchOrder.of_fit(len(first), config.batch_size, 1, None), memory))
    of_point = _BACKWARD * (step.state_bytes + config.batch_size * _activation_bytes(step.model))
    most = memory // of_point
    if most < 1:
        raise ValueError(
            f"one test point takes some {size_text(of_point)} on the way back through a step, and a worker has {size_text(memory)} for it; "
            "give --max_worker_memory, a smaller --batch_size, or a smaller model"
        )
    return PreparedUnrolled(run, recipe, min(config.query_block_size, most), off)


def _prepared_in_a_precision(config: UnrolledConfig) -> PreparedRun:
    """The run as any run is prepared; in the model's own dtype where its training draws random numbers."""
    run = prepare(config.as_run())
    model = run.model.session()
    original = model.network.original
    if not isinstance(original, keras.Model) or not isinstance(model, InfluenceModel):
        raise ValueError(f"--model {config.model!r} is a SavedModel, which can't be trained; give the .keras file, or module:function")
    if not _states_of_random_numbers(original):
        return run
    if model.network.is_copy and config.precision == "float64":
        raise ValueError("--precision float64: the training draws random numbers (Dropout), which are others in float64; use native")
    _refuse_unkept_seeds(config.model, original, run.model)
    return prepare(config.as_run(precision="native")) if model.network.is_copy else run


def _states_of_random_numbers(model: keras.Model) -> list[keras.Variable]:
    return [one for one in model.non_trainable_variables if not tf.as_dtype(one.dtype).is_floating]


def _refuse_unkept_seeds(path: str, model: keras.Model, spec: ModelSpec) -> None:
    """Refuses a model that draws other random numbers each time it is opened: they are none of its training's.

    Raises:
      ValueError: one of its seeds is not kept.
    """
    again = spec.open()
    assert isinstance(again, InfluenceModel) and isinstance(again.network.original, keras.Model)
    pairs = zip(_states_of_random_numbers(model), _states_of_random_numbers(again.network.original), strict=True)
    if any(not np.array_equal(np.asarray(one.value), np.asarray(other.value)) for one, other in pairs):
        unkept = (layer.name for layer in model.layers if hasattr(layer, "seed_generator") and getattr(layer, "seed", None) is None)
        named = next((f" (layer {name!r})" for name in unkept), "")
        raise ValueError(
            f"--model {path!r} draws other random numbers each time it is opened{named}, so that its training can't be repeated: give "
            "every layer that draws some a seed, as in Dropout(0.1, seed=1), and train it again"
        )


def _activation_bytes(model: InfluenceModel) -> int:
    """Bytes of what the layers give for one example, as far as their shapes are known."""
    return activations(model)[0] * tf.as_dtype(model.dtype).size
