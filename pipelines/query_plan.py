"""How test points × weights fit into a worker's memory: how each is kept, and in how many rounds over the training set."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.curvature.conjugate_gradients import SOLVER_ERRORS
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.gradients import Factored
from beam_influence.influence_ops.model.gradients.blocks import positions_of
from beam_influence.influence_ops.reading import READERS
from beam_influence.influence_ops.reading.features import FeatureSpec
from beam_influence.influence_ops.scoring.outputs.table import tables_of_test_points
from beam_influence.influence_ops.scoring.query_block import QueryArray
from beam_influence.influence_ops.scoring.stored_form import FLOAT32_ROUNDING, WHOLE, StoredForm
from beam_influence.pipelines.check_model import first_batch
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.machine_memory import size_text, worker_memory
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.file_list import part_bytes
from beam_influence.transforms.in_parallel import in_parallel
from beam_influence.transforms.read_shards import open_shard, split_file
from beam_influence.transforms.rounds import ONE_ROUND, Rounds, in_turn

_LOG = logging.getLogger(__name__)
_SMALL = 1 << 30  # bytes of solutions in float64 up to which they are kept so
_BLOCKS = 4  # at least so many make a round: while one is brought to the device, it is there twice
_SOLVER_ARRAYS = 8  # [T, P] in float64: five of conjugate gradients' state, ∇ℓ(t), the vectors of a pass and their sums
_GRADIENT_BYTES = 1 << 28  # at most: an operator that iterates has as many vectors for each as passes have
_READ_AT_ONCE = 4096
_FILES_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class QueryPlan:
    """How test points are embedded and scored.

    Attributes:
      block_size: test points in a block.
      form: how a block's solutions are kept.
      rounds: of scoring.
      text: the plan in words; empty where there was nothing to decide.
      points: how many test points there are; 0: they were not counted.
      point_bytes: what one takes while it is used.
      solving: rounds of the passes that solve them.
      gradient_bytes: what the gradients of those that are embedded at once may take, in float64.
    """

    block_size: int
    form: StoredForm = WHOLE
    rounds: Rounds = ONE_ROUND
    text: str = ""
    points: int = 0
    point_bytes: int = 0
    solving: Rounds = ONE_ROUND
    gradient_bytes: int = _GRADIENT_BYTES

    def embedded_at_once(self, weights: int, needs: Sequence[QueryArray]) -> int:
        """How many test points one process reads and solves at once. A test point's gradient is a whole row of P numbers, unless its
        solution stays in factors, as a training example's gradient does."""
        if self.form.is_factored and not {"gradients", "placed"} & set(needs):
            return _READ_AT_ONCE
        return max(1, self.gradient_bytes // (8 * weights))

    @property
    def test_readings(self) -> int:
        """How often the files of test points are read: to embed them, and before that to count them where that was needed."""
        return 1 + (self.points > 0)

    @property
    def is_split(self) -> bool:
        """Whether it takes more than one round, or test points are kept as factors."""
        return self.rounds.count > 1 or self.solving.count > 1 or self.form.is_factored

    @property
    def embedded(self) -> str:
        """What embedded blocks depend on."""
        return repr((self.block_size, self.form))


def plan_queries(
    config: InfluenceConfig, model: ExplainedModel, test: Sequence[Shard], features: FeatureSpec | None, solves_blocks: bool
) -> QueryPlan:
    """The plan, from the number of test points. Saved vectors and an index need none: what they are multiplied with is mapped from files.

    Args:
      solves_blocks: whether the operator does: see `Preconditioner`.

    Raises:
      ValueError: one test point alone is too large, to be used or for passes that solve it.
    """
    of_tests = set(config.output_tables) & set(tables_of_test_points())
    if features is None or not of_tests or "solved" not in config.query_arrays:
        return QueryPlan(config.query_block_size)
    size = part_bytes(test, config.shard_size)
    try:
        parts = itertools.chain.from_iterable(in_parallel(lambda shard: split_file(shard, features, size), test, _FILES_AT_ONCE))
        counts = dict(in_parallel(lambda shard: (shard.key, count_rows(shard, features)), parts, _FILES_AT_ONCE))
    except OSError as error:
        raise ValueError(f"the test points can't be counted: {error}") from error
    points, memory = sum(counts.values()), worker_memory(config.max_worker_memory)
    held, share = tf.as_dtype(model.query_dtype), memory // 2
    form = _form(config, points, model.size, share // held.size, solves_blocks)
    at_one_position = _at_one_position(form, model, test, features)
    numbers = form.numbers(model.layout(), at_one_position)
    unknown = 8 * config.make_curvature().error_numbers(model.size) if config.uncertainty else 0
    numbers += -(-unknown // held.size)
    each = numbers * held.size
    if each > share:
        raise ValueError(
            f"--max_worker_memory {size_text(memory)}: half of it is for test points, and one alone takes {size_text(each)}; raise it to "
            f"{2 * each:,} bytes, watch fewer weights (--weights), or keep factors (--query_rank)"
        )
    solving = 0  # numbers of solutions that are solved at once
    to_solve = 8 * _solver_numbers(config, model)
    if config.solver_passes and points * to_solve > memory:
        solving = memory // to_solve * model.size
        if not solving:
            raise ValueError(
                f"--passes: solving a test point over all training examples takes {size_text(to_solve)}, more than "
                f"--max_worker_memory, {size_text(memory)}; use --passes 0, watch fewer weights (--weights), or more memory"
            )
    block_size = min(config.query_block_size, max(1, share // (_BLOCKS * each)), *([max(1, solving // model.size)] if solving else []))
    rounds = _rounds(counts, block_size, numbers, share // held.size)
    solved_in = _rounds(counts, block_size, model.size, solving) if solving else ONE_ROUND
    several = f"{rounds.count:,} round{'s' * (rounds.count > 1)} over the training set"
    take = "take"
    if form.factors and len(at_one_position) < len(model.layout().blocks):
        take = "take at most"
        several += " at most, fewer where layers are kept as factors"
    text = (
        f"{points:,} test points × {model.size:,} weights, {numbers:,} numbers each, {take} {size_text(points * each)} in {held.name} "
        f"while they are used; {size_text(share)} for them in each worker: {several}"
    )
    if solved_in.count > 1:
        text += f"; solved in {solved_in.count:,} rounds of {config.make_curvature().solves * config.solver_passes:,} passes"
    _LOG.info("%s", text)
    return QueryPlan(block_size, form, rounds, text, points, each, solved_in, sums_bytes(config))


def _solver_numbers(config: InfluenceConfig, model: ExplainedModel) -> int:
    """In float64, of a test point that is solved. Of the segments of a training run each is solved with the weights of one checkpoint,
    beside its gradient, the preconditioner's own answer and what is solved so far, of all of them."""
    if config.curvature_kind.systems == "segments":
        return 3 * model.size + _SOLVER_ARRAYS * model.parts[0].size
    return (_SOLVER_ARRAYS + (SOLVER_ERRORS + 1 if config.uncertainty else 0)) * model.size


def sums_bytes(config: InfluenceConfig) -> int:
    """What rows of P or T numbers in float64 may take that a worker makes at once: gradients of test points, sums over groups."""
    return min(_GRADIENT_BYTES, worker_memory(config.max_worker_memory) // (2 * _SOLVER_ARRAYS))


def _form(config: InfluenceConfig, points: int, weights: int, most: int, solves_blocks: bool) -> StoredForm:
    """How solutions are kept: whole where a round has room for all `most` numbers, or where factors are not precise enough."""
    if config.query_rank is not None:
        return StoredForm("float32", config.query_rank, config.score_tolerance)
    may_round = config.score_tolerance >= FLOAT32_ROUNDING and not config.solver_passes and config.removal == "first_order"
    is_large, is_short = 8 * points * weights > _SMALL, points * weights > most
    form = StoredForm("float32" if may_round and is_large else "float64")
    if may_round and (is_large or is_short) and solves_blocks and config.query_arrays == ("solved",):
        form = dataclasses.replace(form, tolerance=config.score_tolerance, points=points, is_short=is_short)
    if may_round and config.score_tolerance > FLOAT32_ROUNDING and is_short:
        return dataclasses.replace(form, tolerance=config.score_tolerance, factors=True)
    return form


def _at_one_position(form: StoredForm, model: ExplainedModel, test: Sequence[Shard], features: FeatureSpec) -> frozenset[int]:
    """The blocks that are used at one position, whatever the example, where solutions are kept by that; found from a test point."""
    is_fixed = all(None not in each.shape for each in model.inputs)
    batch = first_batch(features, test) if form.points and form.is_short and is_fixed else None
    if batch is None:
        return frozenset()
    blocks = model.losses_and_gradients(batch.select(np.arange(1)))[1].blocks
    return frozenset(number for number, block in enumerate(blocks) if isinstance(block, Factored) and positions_of(block) == 1)


def _rounds(counts: dict[str, int], block_size: int, each: int, most: int) -> Rounds:
    """As many as blocks of `block_size` test points take where `most` numbers are held at once; `counts` is by shards."""
    sizes = [min(block_size, count - first) * each for count in counts.values() for first in range(0, count, block_size)]
    return Rounds(max(in_turn(sizes, most), default=0) + 1, most)


def count_rows(shard: Shard, features: FeatureSpec) -> int:
    """How many rows a shard has, rejected ones too."""
    with open_shard(shard) as file:
        read = READERS[features.format](features.features()).read(file, _READ_AT_ONCE, shard.span)
        return sum(rows.table.num_rows + len(rows.rejected) for rows in read)
