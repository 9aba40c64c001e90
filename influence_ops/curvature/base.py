"""What every curvature is: a mergeable statistic of the training data, and the operator made from it."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np

from beam_influence.influence_ops.curvature.solved_block import SolvedBlock
from beam_influence.influence_ops.model.evaluate import evaluate
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.gradients import Gradients
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.results.array_folder import FileStore, save_arrays
from beam_influence.influence_ops.settings import CurvatureSettings

Statistic = dict[str, Any]
"""Named parts, arrays or objects that pickle; parts of one name are merged with each other, so in parallel."""

COUNT = "count"
PENDING = "pending"  # what is kept on the device, or back until there is more of it: a part that `complete` takes away
DAMPING_RULES = ("auto",)


@dataclasses.dataclass(frozen=True)
class FinishOptions:
    """How a statistic becomes an operator.

    Attributes:
      damping: λ of (H + λI), at least 0, or `auto`: 0.1 × the mean eigenvalue of H (the rule of Grosse et al. 2023,
        section 3.1, applied to the whole matrix).
      leave_one_out: weigh the data's curvature by n/(n − 1), so that taking one example's part away (`removal="newton"`)
        leaves the mean over the other n − 1.
      rcond: with damping 0, eigenvalues up to rcond × the largest are dropped (a pseudo-inverse); None: P × the machine's
        epsilon, NumPy's rule.
      rank: how many of the largest eigenvalues λ_k are used, the others taken as equal to the smallest of them, so that the
        inverse keeps its residual term 1/(λ_k + λ); None: all of them.
      spectrum: whether a P × P matrix is inverted by its eigenvalues, which `with_damping` needs and `meta` then tells, also
        where it has more than 1,024 rows, damping above 0 and no rank: a Cholesky factor does that several times as fast.
    """

    damping: float | str = "auto"
    leave_one_out: bool = False
    rcond: float | None = None
    rank: int | None = None
    spectrum: bool = False

    def __post_init__(self) -> None:
        if self.damping not in DAMPING_RULES if isinstance(self.damping, str) else not np.isfinite(self.damping) or self.damping < 0:
            raise ValueError(f"damping={self.damping!r} must be a number of at least 0 or 'auto'")
        if self.rcond is not None and not 0 <= self.rcond < 1:
            raise ValueError(f"rcond={self.rcond!r} must be at least 0 and below 1")
        if self.rcond is not None and self.damping != 0:
            raise ValueError(f"rcond={self.rcond!r} is of the pseudo-inverse, and damping={self.damping!r} needs none; use damping 0")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank={self.rank} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Preconditioner(abc.ABC):
    """(H + λI)⁻¹ as an immutable operator.

    Attributes:
      arrays: the named arrays it consists of.
      meta: `curvature`, `damping`, `examples` (n), `size` (P), `fingerprint` of the model, and facts about the spectrum.
      solves_blocks: whether `solve_blocks` holds one block of the layout at a time, not all P numbers.
      is_symmetric: whether what `apply` gives of a training example is its influence vector; else it is of test points.
    """

    arrays: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]
    kind: ClassVar[str]
    solves_blocks: ClassVar[bool] = False
    is_symmetric: ClassVar[bool] = True

    @abc.abstractmethod
    def apply(self, gradients: np.ndarray) -> np.ndarray:
        """(H + λI)⁻¹ g for each row g: [B, P] -> [B, P] float64."""

    def solve_blocks(self, gradients: Gradients) -> Iterator[SolvedBlock]:
        """(H + λI)⁻¹ g of each example's gradient, in the order of the layout's blocks."""
        solved = self.apply(np.asarray(gradients, dtype=np.float64))
        return (SolvedBlock(block.matrices(solved)) for block in gradients.layout.blocks)

    def self_influence(self, gradients: Gradients) -> np.ndarray:
        """gᵀ (H + λI)⁻¹ g of each example: [B] float64."""
        raw = np.asarray(gradients, dtype=np.float64)
        return np.einsum("bp,bp->b", raw, self.apply(raw))

    def with_damping(self, damping: float) -> Preconditioner:
        """The same curvature under another λ, without another look at the data.

        Raises:
          ValueError: this kind of operator does not keep its spectrum, or λ is not above 0.
        """
        raise ValueError(f"a {self.meta['curvature']} curvature keeps no spectrum; fit it again with the other damping")

    def _redamped(self, damping: float, **changed: Any) -> Self:
        """`with_damping` of an operator that keeps its spectrum; `changed` is further meta."""
        if not np.isfinite(damping) or damping <= 0:
            raise ValueError(f"damping={damping!r} must be a number above 0")
        return dataclasses.replace(self, meta={**self.meta, "damping": float(damping), "damping_rule": "fixed", **changed})

    def embed(self, gradients: np.ndarray | Gradients) -> np.ndarray:
        """r numbers for each example's gradient, or each row [B, P], whose inner products are influence, or nearly: [B, r] float64.

        Raises:
          ValueError: this kind of operator has none.
        """
        raise ValueError(f"a {self.meta['curvature']} curvature gives no embedding; use --curvature arnoldi or random_projection")

    def error_vectors(self, gradients: Gradients) -> np.ndarray:
        """What is not known of each example's solution: [T, e, r]. Inner products with another example's `error_features` have the standard
        error of the two's influence as their length.

        Raises:
          ValueError: this kind of operator does not know its error.
        """
        raise ValueError(f"a {self.meta['curvature']} curvature does not know its error")

    def error_features(self, gradients: Gradients) -> np.ndarray:
        """The r numbers of each example that `error_vectors` are multiplied with: [B, r] float64; here its gradient, r = P."""
        return np.asarray(gradients, dtype=np.float64)

    def bind(self, model: ExplainedModel) -> Preconditioner:
        """The operator ready for `apply` with `model`; refuses another one (see `check`)."""
        self.check(model)
        return self

    @property
    def examples(self) -> int:
        """n, the number of training examples that the curvature was made from (0: none were needed)."""
        return int(self.meta["examples"])

    def check(self, model: ExplainedModel) -> None:
        """Refuses a model that this curvature was not made for.

        Raises:
          ValueError: the number of weights or the fingerprint differs.
        """
        if self.meta["size"] != model.size:
            watched = f"the curvature is for {self.meta['size']} watched weights, the model has {model.size}"
            raise ValueError(f"{watched}; watch the same weights, or fit the curvature again")
        if self.meta["fingerprint"] != model.fingerprint():
            what = "the curvature was made for another model (its weights, loss or regulariser differ)"
            raise ValueError(f"{what}; fit it again for this one")

    def save(self, folder: str, files: FileStore | None = None) -> None:
        """Writes the operator to a folder that `load_preconditioner` reads."""
        save_arrays(folder, self.arrays, {**self.meta, "kind": self.kind}, files)


class Curvature(abc.ABC):
    """An approximation of the Hessian: one file, one entry in `CURVATURES`.

    A Beam CombineFn by construction: `create`, `add`, `merge`, `finish`. One of several passes over the data has a statistic for
    each: `advance` makes of it what the next pass must know, and `resume` the curvature at that pass.

    What a class says of itself decides which options of a run go with it; nothing else knows its name.

    Attributes:
      passes: over the training data from this one on: 0 when none is needed.
      operators: its own classes of operators, which `load_preconditioner` finds by their `kind`.
      systems: the matrix that conjugate gradients over all data solve with, this operator their preconditioner or first guess; or None.
      solves: how many such solves a test point takes, one after the other: of `segments`, SOURCE's, one for each.
      needs_hessian: whether it takes second derivatives of the whole network.
      has_embedding: whether an index can be made with it; see `Preconditioner.embed`.
      allows_newton: whether `leave_one_out` is possible: it holds the whole matrix.
      takes_rank: whether `FinishOptions.rank` means something: always, for an index alone, or never.
      index_rank: the rank of an index where none is named; None: as for any other use.
      error_draws: how many independent answers a score's standard error is the spread of, for Student's t; 0: it knows no error.
      weighs_checkpoints: whether it says itself how much each of a model's checkpoints counts.

    Args:
      settings: of the class `Settings`, a frozen dataclass of its options; None: their defaults. The fields of one of your own
        (see `influence_ops/settings.py`) become options of the command line.
    """

    name: ClassVar[str]
    passes: int
    Settings: ClassVar[type[CurvatureSettings]] = CurvatureSettings
    operators: ClassVar[tuple[type[Preconditioner], ...]] = ()
    systems: Literal["hessian", "gauss_newton", "segments"] | None = None
    solves: int = 1
    needs_hessian: bool = False
    has_embedding: ClassVar[bool] = False
    allows_newton: ClassVar[bool] = False
    takes_rank: ClassVar[Literal["always", "index", "never"]] = "never"
    index_rank: ClassVar[int | None] = None
    error_draws: ClassVar[int] = 0
    weighs_checkpoints: ClassVar[bool] = False

    def __init__(self, settings: Any = None):
        self.settings: Any = self.Settings() if settings is None else settings

    @classmethod
    def make(cls, settings: Any) -> Curvature:
        """The curvature with these settings; overridden where they choose between classes."""
        return cls(settings)

    def refuse_errors(self, passes: int) -> None:
        """Refuses what it knows no error of.

        Args:
          passes: over the training data that solve the test points.

        Raises:
          ValueError: as it is set up, or at all, it does not know how far its answers are from the whole matrix's.
        """
        raise ValueError(
            f"the error of --curvature {self.name} is not known from one run; use random_projection or gauss_newton_cg, or the spread of "
            "several runs, beam-influence ensemble"
        )

    def error_numbers(self, size: int) -> int:
        """How many numbers the error of a test point takes, of `size` watched weights."""
        return 0

    @abc.abstractmethod
    def create(self, model: ExplainedModel) -> Statistic:
        """The statistic of no examples."""

    @abc.abstractmethod
    def add(self, model: ExplainedModel, statistic: Statistic, batch: ExampleBatch) -> Statistic:
        """The statistic with a batch added; it may be changed in place, but not before what can raise `ResourceExhaustedError`."""

    def evaluate_and_add(self, model: ExplainedModel, statistic: Statistic, batch: ExampleBatch) -> tuple[Statistic, list[Rejected]]:
        """`add` with those examples of a batch whose loss and gradient are finite, and the others."""
        kept, _, _, rejected = evaluate(model, batch)
        return self.add(model, statistic, kept) if len(kept) else statistic, rejected

    def complete(self, statistic: Statistic) -> Statistic:
        """The statistic with what `add` has kept back: before its parts go different ways."""
        return statistic

    def merge_part(self, name: str, a: Any, b: Any) -> Any:
        """Two parts of one name as one; `a` may be changed in place. Parts are sums unless overridden."""
        a += b
        return a

    def merge(self, a: Statistic, b: Statistic) -> Statistic:
        """Two statistics of disjoint examples as one; `a` may be changed in place."""
        for name, part in b.items():
            a[name] = self.merge_part(name, a[name], part) if name in a else part
        return a

    def pack_part(self, name: str, part: Any) -> dict[str, np.ndarray]:
        """A merged part as arrays that can be saved; overridden where parts are no arrays."""
        return {"part": part}

    def unpack_part(self, name: str, arrays: Mapping[str, np.ndarray]) -> Any:
        """The part that `pack_part` packed."""
        return arrays["part"]

    def finish_part(self, name: str, part: Any) -> Any:
        """What can be done with one merged part alone before `advance` and `finish`; on Beam, parts go in parallel."""
        return part

    def advance(self, model: ExplainedModel, statistic: Statistic) -> dict[str, np.ndarray]:
        """What the next pass needs to know, as arrays that every worker gets; of a curvature with several passes.

        Raises:
          ValueError: the data can't give it; the message says why.
        """
        raise NotImplementedError(f"{self.name} has one pass")

    def resume(self, arrays: Mapping[str, np.ndarray]) -> Curvature:
        """The curvature at the pass that `arrays`, from `advance`, belong to."""
        raise NotImplementedError(f"{self.name} has one pass")

    @abc.abstractmethod
    def finish(self, model: ExplainedModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
        """The operator.

        Raises:
          ValueError: the curvature can't be inverted as it is; the message says what to change.
        """


def fit(
    model: ExplainedModel, curvature: Curvature, batches: Callable[[], Iterable[ExampleBatch]], options: FinishOptions
) -> Preconditioner:
    """The operator, by one loop over the data for each pass.

    Args:
      batches: gives the training examples from the start, at each call.
    """
    while True:
        statistic = curvature.create(model)
        for batch in batches() if curvature.passes else ():
            statistic = curvature.add(model, statistic, batch)
        statistic = {name: curvature.finish_part(name, part) for name, part in curvature.complete(statistic).items()}
        if curvature.passes <= 1:
            return curvature.finish(model, statistic, options)
        curvature = curvature.resume(curvature.advance(model, statistic))
