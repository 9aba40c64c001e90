"""The options that curvatures have of their own, each with its help; without TensorFlow, since the command line is made from them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterable
from typing import Any, Literal, get_args

Fisher = Literal["signed", "true", "expected", "empirical"]
Matrix = Literal["gauss_newton", "hessian"]
ProjectionKind = Literal["hadamard", "two_sided", "sjlt"]
FISHERS: tuple[str, ...] = get_args(Fisher)

_SOURCE = "Of source, source_gauss_newton and source_gauss_newton_cg:"
MAX_DIM = 16_384  # of a projection: 2 GB for the matrix, as much again for its eigenvectors


def setting(default: Any, help: str, choices: tuple[str, ...] | None = None, fits: bool = True, of: str = "") -> Any:
    """A field of a curvature's `Settings`, with what the command line says of it.

    Args:
      default: its value where none is given.
      help: what it means.
      choices: the values that are allowed; None: all of its type.
      fits: whether it decides how the curvature is fitted, and so nothing where a saved one is used.
      of: what the curvatures that have it are called together.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "fits": fits, "of": of})


def _fisher(default: Fisher) -> Any:
    return setting(
        default,
        "Of the curvatures by layers (kfac, ekfac, source and what they precondition) and random_projection: which labels the Fisher "
        "information is taken over. signed: all, with random signs by the example's id and --seed, in one backward pass; true: one label "
        "drawn from the prediction; expected: all, in as many backward passes as the model has outputs; empirical: the data's own. "
        "Default: signed; of random_projection, expected.",
        FISHERS,
    )


def _tolerance(default: float | None) -> Any:
    return setting(
        default,
        "Of conjugate_gradient and lissa: the relative residual at which a solve ends. Default: 1e-8 and 1e-3; with --passes 1e-6.",
        fits=False,
        of="iterative solvers",
    )


def _max_iterations(default: int) -> Any:
    return setting(
        default,
        "Of conjugate_gradient and lissa over their sample: the most steps of a solve. Default: 1000 and 10000.",
        of="iterative solvers",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurvatureSettings:
    """The options of one curvature, with their defaults: of the base, none.

    Those called `n_samples`, `seed`, `passes`, `rank` or as another option of the command line's methods take its value; each other
    is an option of the command line by its own name.
    """


def setting_fields(of: type[CurvatureSettings]) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a curvature's settings, by name."""
    return {field.name: field for field in dataclasses.fields(of)}


def refuse_unknown_settings(curvature: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuses a setting that a curvature does not have, with the nearest name that it has."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"
            raise ValueError(f"the curvature {curvature} has no setting {name}; {hint}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSettings(CurvatureSettings):
    """Of a curvature that keeps a sample.

    Attributes:
      n_samples: how many examples are kept.
      seed: which ones: the sample depends on the seed and the examples' ids alone.
    """

    n_samples: int = 1024
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class KroneckerSettings(CurvatureSettings):
    """Of `kfac` and `ekfac`; see `model/fisher.py`."""

    fisher: Fisher = _fisher("signed")
    seed: int = 0

    def __post_init__(self) -> None:
        _check_fisher(self.fisher)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussNewtonCgSettings(KroneckerSettings):
    """Of `gauss_newton_cg`.

    Attributes:
      passes: over the data, at most, that solve the test points.
      tolerance: relative residual at which they end; None: 1e-6.
    """

    passes: int = 5  # where it is as good as the whole matrix; see benchmarks/README.md
    tolerance: float | None = _tolerance(None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentSettings(CurvatureSettings):
    """The segments of a training run, in their order: of `source_gauss_newton`, and with K-FAC's settings of `source`.

    Attributes:
      segment_rates: the learning rate η of each segment's steps. Momentum and what Adam divides by are read from the checkpoints.
      segment_steps: the number K of each segment's steps.
      segments: how many of the checkpoints are in each segment; None: one.
    """

    segment_rates: str | None = setting(
        None,
        f"{_SOURCE} the learning rate of each segment of the training run, separated by commas. A segment "
        "is a stretch of steps with about one learning rate, in which --checkpoints lie. The rest of a step (momentum, what Adam, AdamW or "
        "RMSprop divides by) is read from their optimizer; those without one are taken as of SGD without momentum.",
        of="SOURCE",
    )
    segment_steps: str | None = setting(
        None, f"{_SOURCE} how many steps of the optimizer each segment has, separated by commas.", of="SOURCE"
    )
    segments: str | None = setting(
        None, f"{_SOURCE} how many of --checkpoints are in each segment, separated by commas. Default: one each.", of="SOURCE"
    )

    def __post_init__(self) -> None:
        if self.segment_rates is None or self.segment_steps is None:
            missing = "segment_rates" if self.segment_rates is None else "segment_steps"
            raise ValueError(f"{missing} is needed: a number for each segment of the training run, separated by commas")
        rates, steps, counts = self.rates, self.steps, self.counts
        for name, other in (("segment_steps", steps), ("segments", counts)):
            if len(other) != len(rates):
                given = self.segments if name == "segments" else self.segment_steps
                raise ValueError(f"{name} {given!r} must be {len(rates)} numbers, one for each of --segment_rates {self.segment_rates!r}")

    @property
    def rates(self) -> tuple[float, ...]:
        """η of each segment."""
        return _each("segment_rates", self.segment_rates or "", float)

    @property
    def steps(self) -> tuple[int, ...]:
        """K of each segment."""
        return tuple(int(steps) for steps in _each("segment_steps", self.segment_steps or "", int))

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of checkpoints of each segment."""
        if self.segments is None:
            return (1,) * len(self.rates)
        return tuple(int(count) for count in _each("segments", self.segments, int))


def _each(name: str, text: str, kind: type[int] | type[float]) -> tuple[float, ...]:
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < value < float("inf") for value in found):
        whole = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{name} {text!r} must be {whole} above 0, one for each segment, separated by commas")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceSettings(SegmentSettings, KroneckerSettings):
    """Of `source`."""

    def __post_init__(self) -> None:
        KroneckerSettings.__post_init__(self)
        SegmentSettings.__post_init__(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceGaussNewtonCgSettings(SourceSettings, GaussNewtonCgSettings):
    """Of `source_gauss_newton_cg`, whose passes are of each segment."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IterativeSettings(SampleSettings):
    """Of iterative solvers over a sample.

    Attributes:
      tolerance: relative residual at which a right-hand side is solved.
      max_iterations: the cap; a warning carries the residual when it is reached.
    """

    tolerance: float = _tolerance(1e-8)
    max_iterations: int = _max_iterations(1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConjugateGradientSettings(IterativeSettings):
    """Of `conjugate_gradient`.

    Attributes:
      passes: over all data, at most, that solve the test points from the sample's answer on.
    """

    passes: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LissaSettings(IterativeSettings):
    """Of `lissa`."""

    tolerance: float = _tolerance(1e-3)
    max_iterations: int = _max_iterations(10_000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArnoldiSettings(SampleSettings):
    """What `arnoldi` iterates.

    Attributes:
      n_samples, seed: the sample; the seed is also of the first block, and of the probes that estimate the trace.
      passes: how many over all data, 2 or more; 0: over a sample.
      rank: how many eigenpairs are kept.
      matrix: the Gauss–Newton matrix, or the exact Hessian (whose negative eigenvalues are then among the rest).
      block_size: vectors multiplied in one pass; None: as many as reach a space of twice the rank.
    """

    n_samples: int = 4096
    passes: int = 0
    rank: int = 100
    block_size: int | None = setting(
        None, "Of arnoldi: vectors multiplied at once. Default: what reaches twice --rank dimensions in --passes; 32 over a sample."
    )
    matrix: Matrix = setting(
        "gauss_newton", "Of arnoldi: whose eigenpairs; the exact Hessian's negative ones are left out.", get_args(Matrix)
    )

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank={self.rank} must be at least 1")
        if self.matrix not in get_args(Matrix):
            raise ValueError(f"matrix={self.matrix!r} must be 'gauss_newton' or 'hessian'")
        if self.block_size is not None and self.block_size < 1:
            raise ValueError(f"block_size={self.block_size} must be at least 1")
        if self.passes and self.passes < 2:
            raise ValueError(
                f"passes={self.passes} must be at least 2 for arnoldi: one finds no direction that its first block does not hold"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectionSettings(CurvatureSettings):
    """How `random_projection` projects gradients, and what is summed.

    Attributes:
      projection_dim: k, the numbers that are left of each gradient; from P on, nothing is projected.
      projection: see `make_projection`.
      fisher: see `model/fisher.py`: `expected` is the Gauss–Newton matrix, at the cost of one projected gradient for each output;
        `true` one draw of it; `empirical` Σ g gᵀ of the examples' own gradients, as TRAK.
      seed: of the projection, and of the draws.
    """

    projection_dim: int = setting(512, "Of random_projection: how many numbers are left of each gradient. Default: 512.")
    projection: ProjectionKind = setting(
        "hadamard",
        "Of random_projection: hadamard, of all weights as one vector; two_sided, of each layer's matrix from two sides (cheaper, and "
        "coarser); sjlt, of all weights, sparse (as good as hadamard nearly, many times as fast).",
        get_args(ProjectionKind),
    )
    fisher: Fisher = _fisher("expected")
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.projection_dim <= MAX_DIM:
            raise ValueError(f"projection_dim={self.projection_dim} must be at least 1 and at most {MAX_DIM:,}")
        if self.projection not in get_args(ProjectionKind):
            raise ValueError(f"projection={self.projection!r} must be one of {', '.join(get_args(ProjectionKind))}")
        _check_fisher(self.fisher)


def _check_fisher(fisher: str) -> None:
    if fisher not in FISHERS:
        raise ValueError(f"fisher={fisher!r} must be one of {', '.join(FISHERS)}")
