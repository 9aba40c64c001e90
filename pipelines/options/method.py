"""How influence is computed: the curvature and its settings, and what is made of it."""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any

from beam_influence.influence_ops.settings import (
    ArnoldiSettings,
    CurvatureSettings,
    IterativeSettings,
    KroneckerSettings,
    ProjectionSettings,
    SegmentSettings,
    refuse_unknown_settings,
    setting_fields,
)
from beam_influence.pipelines.options.option import FITTING, option, option_type

if typing.TYPE_CHECKING:  # when it is needed, it is imported: --help need not wait for TensorFlow
    from beam_influence.influence_ops.curvature import Curvature, FinishOptions


CURVATURE_OF_INDEX = "arnoldi"  # the default of the command `index`
_option = functools.partial(option, group="method")


def _of(settings: type[CurvatureSettings], name: str, **changed: Any) -> Any:
    """The option that is a setting of some curvatures alone, as one of them describes it."""
    field = setting_fields(settings)[name]
    described = {"default": field.default, "commands": FITTING, **field.metadata, **changed}
    return _option(**described, is_setting=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """How influence is computed."""

    curvature: str = _option(
        "gauss_newton",
        "The approximation of the Hessian: identity, exact, gauss_newton (P × P matrices), kfac, ekfac, gauss_newton_cg (whole networks), "
        "conjugate_gradient, lissa, arnoldi, random_projection, source, source_gauss_newton, source_gauss_newton_cg (a training run "
        "unrolled in segments, with --checkpoints), or your own as module:Class; or auto: chosen before the run from the model, some "
        "training examples and the other options, with its reasons (docs/curvatures.md).",
        commands=FITTING,
    )
    budget_seconds: float | None = _option(
        None,
        "With --curvature auto: take the best that a run of at most this many seconds has time for, by a plan of each candidate (a minute "
        "each, on this machine). Default: whatever it takes.",
        commands=FITTING,
        least=1,
    )
    n_samples: int | None = _option(
        None,
        "Make the curvature from this many training examples, chosen by --seed and their ids. Default: all; for "
        "conjugate_gradient and lissa, which keep a sample, 1024; for arnoldi 4096.",
        commands=FITTING,
        fits=True,
        is_setting=True,
    )
    seed: int = _option(
        0,
        "Which examples --n_samples chooses, which labels --fisher draws, which directions a random start or projection takes.",
        commands=FITTING,
        fits=True,
        is_setting=True,
    )
    passes: int | None = _option(
        None,
        "With gauss_newton_cg and conjugate_gradient: solve the test points over the whole training set in at most this many passes "
        "over it (0: the answer of EK-FAC, or of the sample; default: 5 for gauss_newton_cg, 0 for conjugate_gradient). With "
        "source_gauss_newton_cg: the same for each of its segments (0: the answer of source; default: 5). With arnoldi: "
        "find the eigenpairs over the whole training set in exactly this many, 2 or more (default: over a sample).",
        commands=FITTING,
        least=0,
        is_setting=True,
    )
    fisher: str | None = _of(KroneckerSettings, "fisher", default=None)
    tolerance: float | None = _of(IterativeSettings, "tolerance", default=None, commands=("run", "fit"))
    max_iterations: int | None = _of(IterativeSettings, "max_iterations", default=None, commands=("run", "fit"), least=1)
    curvature_path: str | None = _option(
        None,
        "Use the curvature that an earlier run saved (its OUTPUT/curvature) instead of fitting one.",
        commands=("run", "index"),
    )
    damping: str = _option(
        "auto", "λ added to the curvature's diagonal: a number, or auto (0.1 × the mean eigenvalue; with --curvature auto "
        "what it finds out, where that is more).", commands=FITTING, fits=True
    )
    rcond: float | None = _option(
        None,
        "With --damping 0: eigenvalues up to rcond × the largest are dropped. Default: P × the epsilon of what is computed in.",
        commands=FITTING,
        fits=True,
    )
    rank: int | None = _option(
        None,
        "Use this many of the largest eigenvalues of exact, gauss_newton or arnoldi; the rest are taken as equal to the smallest of "
        "them. Default: all; of arnoldi, 100, and of an index 256.",
        commands=FITTING,
        fits=True,
        is_setting=True,
    )
    spectrum: bool = _option(
        False,
        "Keep the eigenvalues of exact or gauss_newton with more than 1,024 weights too, for evaluate --damping_sweep and the manifest; "
        "without it a Cholesky factor, several times as fast, is in their place wherever it is as right.",
        commands=("run", "fit"),
        fits=True,
    )
    matrix: str = _of(ArnoldiSettings, "matrix")
    projection_dim: int | None = _of(ProjectionSettings, "projection_dim", default=None)
    projection: str = _of(ProjectionSettings, "projection")
    block_size: int | None = _of(ArnoldiSettings, "block_size", default=None)
    segment_rates: str | None = _of(SegmentSettings, "segment_rates", commands=("run", "fit"))
    segment_steps: str | None = _of(SegmentSettings, "segment_steps", commands=("run", "fit"))
    segments: str | None = _of(SegmentSettings, "segments", commands=("run", "fit"))
    curvature_settings: str | None = _option(
        None,
        "The settings of a curvature of your own, module:Class: name=value, separated by commas. On the command line each may also be "
        "given as an option of its name.",
        commands=FITTING,
        fits=True,
    )
    normalize: str = _option(
        "none",
        "Relative influence (RelatIF): divide by ‖v‖ (theta) or by √self-influence (loss).",
        choices=("none", "theta", "loss"),
        commands=("run",),
    )
    removal: str = _option(
        "first_order",
        "How the removal of an example is predicted: to first order, or by its own Newton step (the leverage is in; slower).",
        choices=("first_order", "newton"),
        commands=("run", "fit"),
    )
    score_tolerance: float = _option(
        1e-7,
        "Take test points' solutions as sums of few products where that is cheaper (or shorter, where memory is short) and the "
        "relative error is at most this; 0: never, and every solution is built.",
        commands=("run",),
    )
    query_rank: int | None = _option(
        None,
        "Keep each layer of a solved test point as a sum of at most this many products of two vectors, in float32 (fewer where "
        "--score_tolerance is reached): far less memory than a number for each weight, and approximate. Default: whole, or the fewest that "
        "--score_tolerance allows where whole ones need several rounds.",
        commands=("run",),
        least=1,
    )
    second_order_groups: bool = _option(
        False,
        "Group influence to second order: the group's own curvature is in (one more pass over the training set).",
        commands=("run",),
    )

    def check(self) -> None:
        """Raises `ValueError` where one is wrong, or of another curvature."""
        if self.budget_seconds is not None:
            raise ValueError(f"--budget_seconds {self.budget_seconds:g} is of --curvature auto, not {self.curvature}; leave it out")
        kind = self.curvature_kind
        self._refuse_settings_of_others(kind)
        if self.finish_options().damping not in ("auto", 0.0) and kind.passes == 0:
            raise ValueError(f"--damping {self.damping}: --curvature {self.curvature} is never damped; leave one of them out")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"--tolerance {self.tolerance} must be between 0 and 1")
        if self.rank is not None and "projection_dim" in setting_fields(kind.Settings):
            raise ValueError(f"--rank {self.rank}: of {self.curvature} it is --projection_dim that decides")
        if self.spectrum and not kind.allows_newton:
            raise ValueError(f"--spectrum is of a whole matrix, --curvature gauss_newton or exact, not {self.curvature}; leave it out")
        if self.spectrum and (self.rank is not None or self.finish_options().damping == 0):
            raise ValueError("--spectrum: with --rank or --damping 0 the eigenvalues are kept anyhow; leave --spectrum out")
        if self.removal == "newton" and not kind.allows_newton:
            raise ValueError(f"--removal newton needs the whole matrix; use --curvature gauss_newton or exact, not {self.curvature}")
        if self.removal == "newton" and self.n_samples is not None:
            raise ValueError("--removal newton takes an example out of the whole training set's curvature; leave out --n_samples")
        if self.second_order_groups and kind.passes == 0:
            raise ValueError(f"--second_order_groups needs a curvature of the data; use --curvature exact, not {self.curvature}")
        if self.n_samples is not None and self.passes and self.passes_fit:
            raise ValueError(
                f"--n_samples {self.n_samples} is of {self.curvature} over a sample; with --passes it reads all examples: leave one out"
            )

    def _refuse_settings_of_others(self, kind: type[Curvature]) -> None:
        from beam_influence.influence_ops.curvature import CURVATURES

        owners = {
            field.name: [name for name, other in CURVATURES.items() if field.name in setting_fields(other.Settings)]
            for field in dataclasses.fields(self)
            if field.metadata["of"] is not None
        }
        for field in dataclasses.fields(self):
            if field.name not in owners or field.name in setting_fields(kind.Settings) or getattr(self, field.name) == field.default:
                continue
            names = owners[field.name]
            if len(names) > 1:
                of = f"{field.metadata['of']}: " if field.metadata["of"] else ""
                listed = f"{', '.join(names[:-1])} or {names[-1]}"
                raise ValueError(f"--{field.name} is of {of}--curvature {listed}, not {self.curvature}")
            alone = [f"--{name}" for name in setting_fields(CURVATURES[names[0]].Settings) if owners.get(name) == names]
            raise ValueError(f"{' and '.join(alone)} are of {names[0]}, not of {self.curvature}; leave them out")

    @property
    def curvature_kind(self) -> type[Curvature]:
        """The class of the curvature."""
        from beam_influence.influence_ops.curvature import curvature_class

        return curvature_class(self.curvature)

    @property
    def passes_fit(self) -> bool:
        """Whether `passes` are those in which the curvature is fitted, rather than the test points solved."""
        return self.curvature_kind.systems is None and "passes" in setting_fields(self.curvature_kind.Settings)

    @property
    def settings(self) -> dict[str, Any]:
        """What the curvature's `Settings` are given: the options of their names, and `curvature_settings`."""
        known = setting_fields(self.curvature_kind.Settings)
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.metadata["is_setting"]}
        return {name: value for name, value in shared.items() if name in known} | self.own_settings

    @property
    def own_settings(self) -> dict[str, Any]:
        """The values in `curvature_settings`, each of its type."""
        fields = own_fields(self.curvature_kind.Settings)
        found: dict[str, Any] = {}
        for pair in filter(None, (self.curvature_settings or "").split(",")):
            name, separator, text = (part.strip() for part in pair.partition("="))
            if not separator or name in found:
                raise ValueError(f"--curvature_settings {self.curvature_settings!r}: write name=value,name=value, each name once")
            refuse_unknown_settings(self.curvature, [name], fields)
            found[name] = _value(fields[name], text, self.curvature_kind.Settings)
        return found

    def finish_options(self) -> FinishOptions:
        """The curvature's options."""
        from beam_influence.influence_ops.curvature import FinishOptions

        damping: float | str = self.damping
        try:
            damping = float(self.damping)
        except ValueError:
            pass  # a rule's name, which FinishOptions checks
        try:
            return FinishOptions(damping, self.removal == "newton", self.rcond, self.rank, self.spectrum)
        except ValueError as error:
            raise ValueError(f"--{error}") from error


def own_fields(settings: type[CurvatureSettings]) -> dict[str, dataclasses.Field[Any]]:
    """The settings of a curvature of the user's own that are no options of every run, by name."""
    shared = {field.name for field in dataclasses.fields(MethodOptions) if field.metadata["is_setting"]}
    return {name: field for name, field in setting_fields(settings).items() if name not in shared}


def _value(field: dataclasses.Field[Any], text: str, settings: type[CurvatureSettings]) -> Any:
    kind = option_type(field, settings)
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        raise ValueError(f"--{field.name} {text!r} must be of type {kind.__name__}") from error
