"""What an unrolled run says on the terminal: what a user must know before its scores are used, and the training that was repeated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from beam_influence.influence_ops.replay.smoothness import ENOUGH


def warnings_of(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What a user must know before these scores are used."""
    facts = manifest["curvature"]
    smoothness, off = facts.get("smoothness"), facts.get("off_trained")
    known = _number(None if smoothness is None else smoothness["correlation"])
    if smoothness is None:
        yield "it was not measured whether the derivative predicts what a change of the training set does (--smoothness 8)"
    elif smoothness["correlation"] is None or smoothness["correlation"] < ENOUGH:
        yield (
            f"the derivative does not predict what a change does: over {smoothness['trainings']} trainings with {smoothness['examples']} "
            f"examples changed, predicted and actual changes of the test losses have the correlation {known} "
            f"(below {ENOUGH}), and the error is {_share(smoothness['relative_error'])} of the change. This training is not smooth: the "
            "scores are its exact derivative, and tell little about taking examples out. A smaller learning rate, a larger batch, smooth "
            "activations (tanh, gelu in place of relu) help; so does --smoothness_step 0.1, to see whether smaller changes are predicted"
        )
    if off is not None and not off <= 1e-2:
        yield (
            f"the repeated training ends {_share(off)} of its whole change of the weights away from --trained: it is another training "
            "(another order of the batches, other initial weights, callbacks), and the scores are of this one"
        )


def _share(part: float | None) -> str:
    return "unknown" if part is None else f"{100 * part:.3g} %"


def training_lines(manifest: Mapping[str, Any]) -> Iterator[str]:
    """The training that was repeated, and how well its derivative predicts, in some lines."""
    facts, smoothness = manifest["curvature"], manifest["curvature"]["smoothness"]
    yield (
        f"training    {facts['steps']:,} steps of {facts['optimizer']} on {facts['examples']:,} examples; the first are within "
        f"{manifest['unrolled']['off_keras']:.1g} of Keras's own"
    )
    if facts["off_trained"] is not None:
        yield f"            ends {_share(facts['off_trained'])} of its change of the weights away from --trained"
    if smoothness is not None:
        yield (
            f"smoothness  correlation {_number(smoothness['correlation'])}, error {_share(smoothness['relative_error'])} of the change, "
            f"over {smoothness['trainings']} trainings with {smoothness['examples']:,} weights lowered by {smoothness['step']:g}"
        )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
