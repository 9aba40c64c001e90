"""What a manifest says, in words: what was asked, the run, and how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from beam_influence.influence_ops.redact import without_secrets
from beam_influence.influence_ops.replay.smoothness import ENOUGH
from beam_influence.report.numbers import amount, change, percent, plain


class Fact(NamedTuple):
    """One line of a table: what it is, and its value."""

    name: str
    value: str


class Trust(NamedTuple):
    """One reason to trust the scores or not: whether care is needed, its headline, and what it means."""

    careful: bool
    headline: str
    text: str


def curvature_facts(manifest: Mapping[str, Any], query_error: float | None) -> list[Fact]:
    """The curvature, its damping and spectrum, and how exactly test points were solved."""
    curvature, solver = manifest["curvature"], manifest.get("solver")
    facts = [Fact("Curvature", str(curvature["curvature"]))]
    rule = f" (rule: {curvature['damping_rule']})" if curvature.get("damping_rule") else ""
    facts.append(Fact("Damping λ", f"{curvature['damping']:.4g}{rule}"))
    if "chosen" in manifest:
        facts.append(Fact("Chosen by --curvature auto, because", "; ".join(manifest["chosen"]["why"])))
    if "smallest_eigenvalue" in curvature:
        ends = f"{curvature['smallest_eigenvalue']:.3g} to {curvature['largest_eigenvalue']:.3g}"
        facts.append(Fact("Spectrum", f"eigenvalues {ends}; rank {curvature['rank']:,} of {curvature['size']:,}"))
    if solver is not None:
        residuals = f"{solver['mean_residual']:.2g} in the mean, {solver['largest_residual']:.2g} at most"
        facts.append(Fact("Relative residuals", f"{residuals}; {solver['unsolved']:,} test points above the tolerance"))
    else:
        facts.append(Fact("Relative residuals", "none: the test points were solved directly, not by iterations"))
    if query_error is not None:
        facts.append(Fact("Test points kept as factors", f"largest relative error {query_error:.2g} (query_error)"))
    return facts


def weight_facts(manifest: Mapping[str, Any], others: Sequence[str] | None) -> list[Fact]:
    """Which weights the scores cover, and which not; `others`: the names of the rest, where the model could be opened."""
    model = manifest["model"]
    rest = model["total"] - model["watched"]
    names = f": {', '.join(others)}" if others else ""
    facts = [
        Fact("Covered", f"{model['watched']:,} of {model['total']:,} trainable weights ({percent(model['watched'] / model['total'])})"),
        Fact("Covered, by name", ", ".join(model["weights"])),
        Fact("Not covered", f"{rest:,} weights{names}" if rest else "none: all weights are covered"),
        Fact("Computed in", str(model["dtype"])),
    ]
    if model["without_factors"]:
        facts.append(Fact("Gradients built example by example", ", ".join(model["without_factors"])))
    agreement = model.get("agreement")
    if agreement:
        worst = max(agreement[name] for name in ("outputs", "losses", "gradient"))
        text = f"on {agreement['examples']:,} examples the outputs, losses and gradients are within {worst:.1g} of Keras's own"
        facts.append(Fact("Checked against Keras", text))
    return facts


def count_facts(manifest: Mapping[str, Any]) -> list[Fact]:
    """How many examples each stage used and left out."""
    names = {"curvature": "Training examples, for the curvature", "embed": "Test points", "score": "Training examples, scored"}
    names |= {"replay": "Training examples", "unroll": "Test points"}
    facts = []
    for stage, count in manifest["counts"].items():
        text = f"{count['examples']:,} used, {count['rejected']:,} left out, of {amount(count['shards'], 'shard')}"
        facts.append(Fact(names.get(stage) or str(stage).capitalize(), text))
    return facts


def option_facts(manifest: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[list[Fact], list[Fact]]:
    """The options that are not the default, and all others."""
    given: list[Fact] = []
    rest: list[Fact] = []
    for name, value in sorted(manifest.get("unrolled", manifest["config"]).items()):
        fact = Fact(f"--{name}", without_secrets("none" if value is None else str(value)))
        (rest if name in defaults and value == defaults[name] else given).append(fact)
    return given, rest


def trust(
    manifest: Mapping[str, Any], folder: str, rejected: int, query_error: float | None, measured: Sequence[Mapping[str, Any]]
) -> list[Trust]:
    """How far to trust the scores: those that need care first.

    Args:
      manifest: of the run.
      folder: the run's, for the commands that would measure more.
      rejected: how many examples were left out.
      query_error: see `RunTables.query_error`.
      measured: what `evaluate` found for this run: its rows, each with `measure`.
    """
    found = [_of_weights(manifest), _of_curvature(manifest), *_of_solver(manifest, query_error), _of_order(manifest)]
    found += [_of_measure(row) for row in measured]
    if not any(row["measure"] == "lds" for row in measured):
        text = (
            "Nobody has yet compared these scores with models that were trained again. The linear datamodelling score does so: "
            f"beam-influence evaluate lds --scores {folder} --train_fn module:function --output FOLDER, for a run with "
            "--outputs scores; then beam-influence report with --evaluation FOLDER."
        )
        found.append(Trust(True, "Not measured by retraining", text))
    if rejected:
        text = "They could not be used: no score is theirs, and the curvature has not seen them. The reasons are below."
        found.append(Trust(True, f"{amount(rejected, 'example')} left out", text))
    return sorted(found, key=lambda one: not one.careful)


def _of_weights(manifest: Mapping[str, Any]) -> Trust:
    model = manifest["model"]
    if model["watched"] == model["total"]:
        return Trust(False, "All weights are covered", "Influence through every trainable weight of the model is counted.")
    text = (
        f"{model['watched']:,} of {model['total']:,} ({percent(model['watched'] / model['total'])}): {_first(model['weights'])}. What an "
        "example does through the other weights is not counted; --weights all would count it."
    )
    return Trust(True, "Some weights are covered, not all", text)


def _of_curvature(manifest: Mapping[str, Any]) -> Trust:
    curvature = manifest["curvature"]
    name, damping = curvature["curvature"], curvature["damping"]
    if name == "unrolled":
        return _of_smoothness(curvature)
    if name == "identity":
        text = "Scores are products of gradients: good for finding examples, but their size predicts no change of the loss."
        return Trust(True, "No curvature", text)
    shrinks = f"Damping λ = {damping:.4g} makes it well-conditioned, and shrinks what lies along directions that are flatter than λ."
    damped = shrinks if damping else "It is not damped."
    if name == "exact":
        return Trust(False, "The exact Hessian of the covered weights", f"No approximation of it. {damped}")
    return Trust(False, f"The curvature is approximated: {name}", f"Ranks are more reliable than sizes. {damped}")


def _of_smoothness(facts: Mapping[str, Any]) -> Trust:
    """Whether the derivative through the training predicted what changes of the training set did."""
    exact = f"Scores are the exact derivative through all {facts['steps']:,} steps of the training, in their order."
    found = facts["smoothness"]
    if found is None:
        text = f"{exact} It was not measured whether it predicts what taking examples out does: --smoothness 8 would."
        return Trust(True, "Not measured whether changes are predicted", text)
    known = "unknown" if found["correlation"] is None else f"{found['correlation']:.3f}"
    text = (
        f"{exact} In {found['trainings']} trainings with the weights of {found['examples']:,} examples lowered by {found['step']:g}, "
        f"predicted and actual changes of test losses have the correlation {known}."
    )
    smooth = found["correlation"] is not None and found["correlation"] >= ENOUGH
    headline = "Changes of the training set are predicted" if smooth else "The training is not smooth: little is predicted"
    return Trust(not smooth, headline, text)


def _of_solver(manifest: Mapping[str, Any], query_error: float | None) -> list[Trust]:
    found = []
    solver = manifest.get("solver")
    if solver is not None and solver["unsolved"]:
        text = f"The largest relative residual is {solver['largest_residual']:.2g}; more --passes would solve them further."
        found.append(Trust(True, f"{amount(solver['unsolved'], 'test point')} not solved to the tolerance", text))
    if query_error is not None and query_error > 1e-2:
        text = f"The largest relative error of a test point is {query_error:.2g}; raise --query_rank, or lower --score_tolerance."
        found.append(Trust(True, "Test points were kept as factors of low rank", text))
    return found


def _of_order(manifest: Mapping[str, Any]) -> Trust:
    config = manifest["config"]
    if config["normalize"] != "none":
        text = f"--normalize {config['normalize']}: compare scores within one test point; they predict no change of a loss."
        return Trust(True, "Scores are relative", text)
    if "unrolled" in manifest:
        text = "It is that of this very training, repeated with the same order of the batches; another order gives other changes."
        return Trust(False, "The change of the loss is a prediction", text)
    newton = config["removal"] == "newton"
    step = "by one Newton step without the example" if newton else "to first order: one example at a time, a small change"
    text = (
        f"It is predicted {step}, from this model on. Training again from scratch differs by chance, too: for one example among "
        f"{manifest['curvature'].get('examples') or 0:,} that is often more than the change itself."
    )
    return Trust(False, "The change of the loss is a prediction", text)


def _of_measure(row: Mapping[str, Any]) -> Trust:
    figures = {name: value for name, value in row.items() if name not in ("measure", "method", "curvature", "damping")}
    if row["measure"] == "lds" and row.get("lds") is not None:
        error = f" ± {row['lds_error']:.3f}" if row.get("lds_error") is not None else ""
        text = "By training again on random parts of the data: 1 is perfect, 0 is chance. Training is random, so no score reaches 1."
        return Trust(row["lds"] < 0.2, f"Linear datamodelling score {row['lds']:.3f}{error}", text)
    text = ", ".join(f"{name.replace('_', ' ')} {plain(value)}" for name, value in figures.items() if isinstance(value, (int, float)))
    return Trust(False, f"Measured by evaluate {row['measure']}", text)


def worked_sentence(test: str, train: str, influence: float, loss_change: float | None, n: int, loss: float | None) -> str:
    """What one score means."""
    helps = influence > 0
    role = "it helps" if helps else "it harms"
    if loss_change is None:
        return f"Training example {train} has the score {plain(influence)} at {test}: {role}, by this much relative to the others."
    now = "" if loss is None else f", now {plain(loss)},"
    size = change(abs(loss_change)).lstrip("+")
    return (
        f"Training example {train} has influence {plain(influence)} at {test}; divided by the {n:,} training examples that is {size}. "
        f"So, without this example, the loss at {test}{now} would be {size} {'higher' if helps else 'lower'}: {role}."
    )


def _first(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
