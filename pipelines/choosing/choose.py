"""Chooses what `--curvature auto` leaves open, before a run: one look at the model and at some training examples, then the rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from beam_influence.influence_ops.curvature.sample import Sample
from beam_influence.influence_ops.curvature.stopped_early import TrainingEnd, training_end
from beam_influence.influence_ops.model.evaluate import evaluate
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.network import declared_outputs
from beam_influence.influence_ops.reading.features import FeatureSpec
from beam_influence.pipelines.check_model import check_model
from beam_influence.pipelines.choosing.rules import AUTO, WEIGHTS, Rule, Situation, candidates
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.find_features import find_features
from beam_influence.pipelines.plan_decoded import plan_decoded
from beam_influence.pipelines.planning.sample import spread
from beam_influence.pipelines.prepare import PreparedRun, model_spec, patterns_of, prepare, schema_of
from beam_influence.pipelines.refuse_memory import refuse_memory
from beam_influence.transforms.elements import ReadLimit
from beam_influence.transforms.file_list import FileList, list_shards
from beam_influence.transforms.progress import Progress
from beam_influence.transforms.read_shards import ShardReader

if TYPE_CHECKING:
    from beam_influence.pipelines.planning.run_plan import RunPlan

_EXAMPLES = 2048
_BATCH = 32
_NUMBERS = 1 << 31  # examples × weights that are looked at, at most, but for the least
_LEAST = 64
_READ_WHOLE = 64 << 20  # bytes of training files of which every example may be in the sample
_FILES = 64


@dataclasses.dataclass(frozen=True)
class Choice:
    """What `--curvature auto` chose.

    Attributes:
      options: what was chosen, by option.
      why: a reason for each, and what was passed over.
      weights: P.
      training_end: what some training examples told.
      seconds: of a plan of the run, where `--budget_seconds` asked for one.
    """

    options: dict[str, Any]
    why: tuple[str, ...]
    weights: int
    training_end: TrainingEnd
    seconds: float | None = None

    @property
    def text(self) -> str:
        """The options as they would be written, and the reasons."""
        said = " ".join(f"--{name} {value}" for name, value in self.options.items())
        return "\n".join([f"chosen: {said}", *(f"  {reason}" for reason in self.why)])

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {**dataclasses.asdict(self), "training_end": self.training_end._asdict()}


def choose_method(config: InfluenceConfig, beam_arguments: Sequence[str] = ()) -> tuple[InfluenceConfig, Choice | None]:
    """The options of a run with nothing left open, and what was chosen; None where nothing was to be.

    Raises:
      ValueError: the model or the files can't be used, or no rule fits the memory, or `--budget_seconds`.
    """
    if config.curvature != AUTO:
        return config, None
    passed: list[str] = []
    quickest: RunPlan | None = None
    for weights in WEIGHTS if config.weights == AUTO else (None,):
        opened = config if weights is None else dataclasses.replace(config, weights=weights)
        model, end = _look(opened)
        found = Situation(model.size, end.is_early)
        for rule, candidate in candidates(config, weights, found):
            refused = candidate if isinstance(candidate, str) else _refusal(candidate, model)
            if isinstance(candidate, str) or refused:
                passed.append(f"not {rule.curvature}: {refused}")
                continue
            settled, reason = damped(candidate, end)
            planned = None if config.budget_seconds is None else _plan(settled, beam_arguments)
            if planned is not None and config.budget_seconds is not None and planned.worker_seconds > config.budget_seconds:
                passed.append(f"not {rule.curvature} of {model.size:,} weights: it would take {planned.worker_seconds:.0f} s")
                quickest = min(filter(None, (quickest, planned)), key=lambda plan: plan.worker_seconds)
                continue
            options = _options(config, settled, rule)
            seconds = None if planned is None else planned.worker_seconds
            return settled, Choice(options, (f"{rule.curvature}: {rule.because}", reason, *passed), model.size, end, seconds)
    least = "" if quickest is None else f"; the quickest takes {quickest.worker_seconds:.0f} s: give --budget_seconds that"
    raise ValueError(f"--curvature auto finds nothing that fits{least} ({'; '.join(passed)})")


def choose_and_prepare(config: InfluenceConfig, beam_arguments: Sequence[str] = ()) -> tuple[InfluenceConfig, PreparedRun]:
    """What `prepare` gives, and the options with nothing left open.

    Raises:
      ValueError: as of `choose_method`, `prepare` and `plan_decoded`.
    """
    chosen, choice = choose_method(config, beam_arguments)
    from beam_influence.pipelines.choosing.precision import NATIVE, choose_precision  # it needs the graph's module, which needs this one

    prepared = prepare(chosen, choice)
    precision = choose_precision(chosen, prepared)
    if precision is not None and precision.precision == NATIVE:
        chosen = dataclasses.replace(chosen, precision=NATIVE)
        prepared = prepared if prepared.model.precision == NATIVE else prepare(chosen, choice)
    return chosen, dataclasses.replace(prepared, decoded=plan_decoded(chosen, prepared), precision=precision)


def _options(asked: InfluenceConfig, chosen: InfluenceConfig, rule: Rule) -> dict[str, Any]:
    names = dict.fromkeys(("curvature", *rule.options, "damping", "weights"))
    found = {name: getattr(chosen, name) for name in names if getattr(chosen, name) != getattr(asked, name)}
    if chosen.solver_passes:
        found["passes"] = chosen.solver_passes
    return found


def _refusal(candidate: InfluenceConfig, model: ExplainedModel) -> str:
    try:
        refuse_memory(candidate, model)
    except ValueError as error:
        return str(error)
    return ""


def _plan(candidate: InfluenceConfig, beam_arguments: Sequence[str]) -> RunPlan:
    from beam_influence.pipelines.planning.plan import plan

    return plan(candidate, beam_arguments)


def damped(candidate: InfluenceConfig, end: TrainingEnd) -> tuple[InfluenceConfig, str]:
    """The options with their damping, and the reason for it."""
    if candidate.damping != AUTO:
        return candidate, f"damping {candidate.damping}: as it was given"
    told = f"‖∇L‖ / ‖θ − θ₀‖ of {end.examples:,} training examples is {end.damping:.2g}, the rule auto gives about {end.automatic:.2g}"
    if candidate.segment_rates is not None:
        return candidate, "damping auto: the segments say how far training went"
    if end.damping <= end.automatic:
        return candidate, f"damping auto: {told}"
    # Two digits are more than is known, and the same on a machine that adds up in another order.
    return dataclasses.replace(candidate, damping=f"{end.damping:.2g}"), f"damping {end.damping:.2g}: {told} (docs/truth.md, Auto)"


def _look(config: InfluenceConfig) -> tuple[ExplainedModel, TrainingEnd]:
    """The model, and what some of its training examples tell."""
    files = list_shards("train", patterns_of(config.train or ""))
    model, spec = model_spec(config).open_first()
    features = find_features(config, files, model.inputs, declared_outputs(model.network.original), schema_of(config))
    model, _ = check_model(model, spec, config, [(features, files)])
    most = max(_LEAST, min(_EXAMPLES, _NUMBERS // model.size))
    sample = _sample(config, features, files, most)
    batches = [evaluate(model, batch)[0] for batch in sample.batches(_BATCH)]
    batches = [batch for batch in batches if len(batch)]
    if not batches:
        raise ValueError("--curvature auto looked at training examples, and none of them could be used; see them with a named --curvature")
    return model, training_end(model, batches, sample.seen == sum(map(len, batches)), config.seed)


def _sample(config: InfluenceConfig, features: FeatureSpec, files: FileList, most: int) -> Sample:
    """Training examples, drawn at random by their ids: of all where they are few bytes, else of the first ones of some files."""
    reader, sample = ShardReader("choose", features, config.batch_size or _BATCH, Progress(None)), Sample(most, config.seed)
    if files.total_bytes <= _READ_WHOLE:
        shards = list(files)
    else:
        chosen = spread(files, _FILES)
        limit = ReadLimit(-(-2 * most // len(chosen)), 1 << 62, 0.0)
        shards = [dataclasses.replace(shard, limit=limit) for shard in chosen]
    for shard in shards:
        for batch, _ in reader.read(shard):
            if len(batch):
                sample.add(batch)
    return sample
