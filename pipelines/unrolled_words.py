"""What an unrolled run says on the terminal: what a user must know before its scores are used, and the closing lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from beam_influence.influence_ops.replay.smoothness import ENOUGH
from beam_influence.pipelines.run_summary import RunSummary, table_lines


def warnings_of(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What a user must know before these scores are used."""
    facts = manifest["curvature"]
    smoothness, off = facts.get("smoothness"), facts.get("off_trained")
    if smoothness is None:
        yield "it was not measured whether the derivative predicts what a change of the training set does (--smoothness 8)"
    elif smoothness["correlation"] is None or smoothness["correlation"] < ENOUGH:
        yield (
            f"the derivative does not predict what a change does: over {smoothness['trainings']} trainings with {smoothness['examples']} "
            f"examples changed, predicted and actual changes of the test losses have the correlation {smoothness['correlation']} (below "
            f"{ENOUGH}), and the error is {_share(smoothness['relative_error'])} of the change. This training is not smooth: the scores "
            "are its exact derivative, and tell little about taking examples out. A smaller learning rate, a larger batch, smooth "
            "activations (tanh, gelu in place of relu) help; so does --smoothness_step 0.1, to see whether smaller changes are predicted"
        )
    if off is not None and not off <= 1e-2:
        yield (
            f"the repeated training ends {_share(off)} of its whole change of the weights away from --trained: it is another training "
            "(another order of the batches, other initial weights, callbacks), and the scores are of this one"
        )


def _share(part: float | None) -> str:
    return "unknown" if part is None else f"{100 * part:.3g} %"


def unrolled_text(summary: RunSummary) -> str:
    """The closing lines of a run."""
    manifest = summary.manifest
    facts, smoothness = manifest["curvature"], manifest["curvature"]["smoothness"]
    lines = [
        f"training    {facts['steps']:,} steps of {facts['optimizer']} on {facts['examples']:,} examples, in {manifest['model']['dtype']}; "
        f"the first are within {manifest['unrolled']['off_keras']:.1g} of Keras's own",
    ]
    if facts["off_trained"] is not None:
        lines.append(f"            ends {_share(facts['off_trained'])} of its change of the weights away from --trained")
    if smoothness is not None:
        lines.append(
            f"smoothness  correlation {_number(smoothness['correlation'])}, error {_share(smoothness['relative_error'])} of the change, "
            f"over {smoothness['trainings']} trainings with {smoothness['examples']:,} weights lowered by {smoothness['step']:g}"
        )
    return "\n".join([*lines, *table_lines(manifest), "", f"{summary.seconds:.1f} s in all; results in {summary.output}"])


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
