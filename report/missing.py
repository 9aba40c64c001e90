"""What was asked, in words, and what a page does not have, with the option that would add it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from beam_influence.report.numbers import amount
from beam_influence.report.tables import PointScores

OF_TEST_POINTS = {"top_k", "scores", "group_influence"}
OF_TRAINING_EXAMPLES = {"self_influence", "self_influence_top_k", "group_self_influence"}


def asked(manifest: Mapping[str, Any], folder: str, tables: Collection[str]) -> list[str]:
    """What the run was asked, and where its results are."""
    counts, config = manifest["counts"], manifest["config"]
    train = (counts.get("score") or counts.get("curvature") or {}).get("examples") or manifest["curvature"].get("examples") or 0
    tests = _test_points(manifest)
    if tests and OF_TEST_POINTS & set(tables):
        question = f"Which of the {train:,} training examples made the model say what it says at {amount(tests, 'test point')}?"
    else:
        question = f"Which of the {train:,} training examples have the largest influence on the loss at themselves?"
    return [question, f"The model is {config['model']}; the results are in {folder}."]


def _test_points(manifest: Mapping[str, Any]) -> int:
    counts = manifest["counts"]
    return (counts.get("embed") or counts.get("unroll") or {}).get("examples", 0)


def chosen_in_words(manifest: Mapping[str, Any], count: int, named: bool, by_influence: bool) -> str:
    """How the test points of the page were chosen."""
    total = _test_points(manifest) or count
    if named:
        return f"{amount(count, 'test point')} of {total:,}, as named by --test_points."
    if count == total:
        return f"All {amount(count, 'test point')}."
    if by_influence:
        of = "those on which one training example has the largest influence"
        return f"{count:,} of {total:,} test points: {of}. --test_points shows others."
    return f"The first {count:,} of {total:,} test points. --test_points shows others."


def whose_loss(tables: Collection[str]) -> str:
    """Whose loss the removal of a group changes."""
    if "group_influence" in tables:
        return "The change of the loss, summed over all test points, if all training examples of a group are removed at once."
    return "The change of a group's own loss, summed over its examples, if all of them are removed at once."


def missing_parts(
    manifest: Mapping[str, Any], tables: Collection[str], points: Sequence[PointScores], has_groups: bool, of_sources: Sequence[str]
) -> dict[str, list[str]]:
    """What each part of the page lacks: the part, and sentences that say why, and which option would add it."""
    config = manifest["config"]
    notes: dict[str, list[str]] = {"points": list(of_sources)}
    if not points:
        notes["points"].append("This run scored no test points: --test FILES --outputs top_k would.")
    elif "scores" not in tables:
        kept, other, end = ("most helpful", "most harmful", "ascending")
        if config["order"] == "ascending":
            kept, other, end = ("most harmful", "most helpful", "descending")
        notes["points"].append(
            f"The run kept only the {kept} training examples (--order {config['order']}). --outputs top_k,scores adds the {other} beside "
            f"them; --order {end} keeps those alone."
        )
    if "unrolled" in manifest:
        of_run = "The command unrolled gives the influence of single examples on test points; the command run has this part."
        return {**notes, "labels": [of_run], "spread": [of_run], "groups": [of_run]}
    if "self_influence" not in tables:
        first = "self_influence_top_k" in tables
        if not first:
            notes["labels"] = ["This run wrote no self-influence: --outputs top_k,self_influence adds this part."]
        elif config["order"] == "ascending":
            notes["labels"] = ["This run kept the smallest self-influence alone: --order descending adds this part."]
        notes["spread"] = ["--outputs top_k,self_influence adds this part: how concentrated self-influence is."]
    if not has_groups:
        notes["groups"] = ["This run had no groups: --group_feature FEATURE --outputs top_k,group_influence adds this part."]
    return notes
