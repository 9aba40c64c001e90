"""Wrong options are refused before anything starts; the message names the option, its value and what to write instead."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest

from beam_influence.pipelines.config import InfluenceConfig

REQUIRED: dict[str, Any] = {"model": "m.keras", "train": "train-*", "test": "test-*", "output": "out"}

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": ""}, "--model '' must not be empty"),
    ({"train": ""}, "--train '' must not be empty"),
    ({"test": ""}, "--test '' must not be empty"),
    ({"output": ""}, "--output '' must not be empty"),
    ({"train": " , "}, "--train ' , ' must not be empty"),
    ({"regularizer": "none"}, "--regularizer 'none' must be one of curvature, loss"),
    ({"precision": "float32"}, "--precision 'float32' must be one of auto, float64, native"),
    ({"normalize": "l2"}, "--normalize 'l2' must be one of none, theta, loss"),
    ({"removal": "exact"}, "--removal 'exact' must be one of first_order, newton"),
    ({"order": "random"}, "--order 'random' must be one of descending, ascending"),
    ({"top_k": 0}, "--top_k 0 must be at least 1"),
    ({"batch_size": -1}, "--batch_size -1 must be at least 0"),
    ({"query_block_size": -1}, "--query_block_size -1 must be at least 1"),
    ({"max_rejected": -1}, "--max_rejected -1 must be at least 0"),
    ({"threads": -1}, "--threads -1 must be at least 0"),
    ({"outputs": "top_k,shapley"}, "--outputs 'top_k,shapley' must name some of top_k, self_influence"),
    ({"outputs": " , "}, "--outputs ' , ' must name some of top_k"),
    ({"outputs": "rejected"}, "--outputs 'rejected' must name some of top_k"),
    ({"outputs": "group_influence"}, "--outputs group_influence needs --group_feature"),
    (
        {"outputs": "group_influence", "group_feature": "g", "second_order_groups": True, "curvature": "identity"},
        "--second_order_groups needs a curvature of the data",
    ),
    ({"spectrum": True, "curvature": "kfac"}, "--spectrum is of a whole matrix, --curvature gauss_newton or exact, not kfac; leave it out"),
    ({"spectrum": True, "damping": "0"}, "with --rank or --damping 0 the eigenvalues are kept anyhow; leave --spectrum out"),
    ({"spectrum": True, "rank": 5}, "with --rank or --damping 0 the eigenvalues are kept anyhow; leave --spectrum out"),
    ({"weight_decay": -0.1}, "--weight_decay -0.1 must be at least 0"),
    ({"weight_decay": float("nan")}, "--weight_decay nan must be at least 0"),
    ({"curvature": "hessian"}, "no curvature is called 'hessian'; use one of identity, exact, gauss_newton"),
    ({"curvature": "no.such.module:Class"}, "can't import 'no.such.module'"),
    ({"curvature": "json:JSONDecoder"}, "'json:JSONDecoder' is not a class derived from"),
    ({"damping": "-1"}, "--damping=-1.0 must be a number of at least 0 or 'auto'"),
    ({"damping": "inf"}, "--damping=inf must be a number of at least 0 or 'auto'"),
    ({"damping": "small"}, "--damping='small' must be a number of at least 0 or 'auto'"),
    ({"rcond": 1.0}, "--rcond=1.0 must be at least 0 and below 1"),
    ({"rcond": 0.5}, "--rcond=0.5 is of the pseudo-inverse, and damping='auto' needs none; use damping 0"),
    ({"curvature": "identity", "damping": "0.5"}, "--damping 0.5: --curvature identity is never damped; leave one of them out"),
    ({"outputs": "scores", "top_k": 3}, "--top_k 3 is of --outputs top_k and self_influence_top_k; leave it out"),
    ({"outputs": "self_influence", "order": "ascending"}, "--order ascending is of --outputs top_k and self_influence_top_k; leave it"),
    ({"index_dtype": "float16"}, "--index_dtype float16 is of the command index; leave it out"),
    ({"outputs": "curvature", "normalize": "theta"}, "--normalize theta is of scores, which this command does not make; leave it out"),
    ({"outputs": "self_influence", "test": None, "score_tolerance": 0.1}, "--score_tolerance 0.1 is of scores of test points"),
    ({"seed": 3}, "--seed 3 is of curvatures that draw, and of --n_samples; leave it out"),
    ({"last_layer": "1"}, "--last_layer 1 is of --start_layer, the first watched layer; leave it out"),
    ({"weights": "all", "start_layer": "1"}, "--weights all is of a run without --start_layer, which chooses the weights; leave it out"),
    ({"top_k": "3"}, "--top_k '3' must be a number, not str"),
    ({"overwrite": "no"}, "--overwrite 'no' must be True or False, not str"),
    ({"train": ["a", "b"]}, "--train ['a', 'b'] must be text, not list"),
    ({"removal": "newton", "normalize": "loss"}, "can't be normalised"),
    ({"removal": "newton", "curvature": "identity"}, "--removal newton needs"),
    ({"removal": "newton", "curvature": "arnoldi"}, "--removal newton needs"),
    ({"block_size": 8}, "--block_size and --matrix are of arnoldi, not of gauss_newton"),
    ({"matrix": "hessian"}, "--block_size and --matrix are of arnoldi, not of gauss_newton"),
    ({"curvature": "arnoldi", "block_size": 0}, "--block_size=0 must be at least 1"),
    ({"curvature": "arnoldi", "rank": 0}, "--rank=0 must be at least 1"),
    ({"curvature": "arnoldi", "passes": 1}, "--passes=1 must be at least 2"),
    ({"curvature": "arnoldi", "passes": 4, "n_samples": 9}, "--n_samples 9 is of arnoldi over a sample"),
    ({"curvature": "cgd", "passes": 4, "outputs": "curvature"}, "--passes of cgd solves test points, and fit has none"),
    ({"projection_dim": 9}, "--projection_dim and --projection are of random_projection, not of gauss_newton"),
    ({"curvature": "random_projection", "projection_dim": 0}, "--projection_dim=0 must be at least 1"),
    ({"curvature": "random_projection", "rank": 5}, "--rank 5: of random_projection it is --projection_dim"),
    ({"removal": "newton", "curvature": "random_projection"}, "--removal newton needs"),
    ({"input_features": "image="}, "--input_features 'image=': write FEATURE, or input=FEATURE"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[f"{next(iter(o))}-{n}" for n, (o, _) in enumerate(WRONG)])
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        InfluenceConfig(**{**REQUIRED, **options})
    assert message in str(caught.value)


# Options of one method only.
GOES_WITH: dict[str, dict[str, Any]] = {
    "fisher": {"curvature": "ekfac"},
    "matrix": {"curvature": "arnoldi"},
    "projection": {"curvature": "random_projection"},
    "search": {"index": "indexed", "train": None},
    "index_dtype": {"outputs": "index", "curvature": "arnoldi", "test": None},
}


def test_every_choice_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # whether FAISS is installed or not
    for field in dataclasses.fields(InfluenceConfig):
        for choice in field.metadata["choices"] or ():
            options = {**REQUIRED, **GOES_WITH.get(field.name, {}), field.name: choice}
            assert getattr(InfluenceConfig(**options), field.name) == choice


@pytest.mark.parametrize(
    ("text", "mapping"),
    [(None, {}), ("pixels", {"": "pixels"}), ("a=x", {"a": "x"}), (" a=x, b=y ,", {"a": "x", "b": "y"})],
)
def test_input_features(text: str | None, mapping: dict[str, str]) -> None:
    assert InfluenceConfig(**REQUIRED, input_features=text).input_mapping() == mapping


def test_paths_are_kept_as_text() -> None:
    config = InfluenceConfig(**{**REQUIRED, "output": pathlib.Path("a/b")})
    assert config.output == "a/b" and config.as_json()["output"] == "a/b"


def test_temporary_files_have_a_folder_of_their_own() -> None:
    """It is emptied before and after a run, so it can't be a folder that the user keeps other things in."""
    assert InfluenceConfig(**REQUIRED).work_folder == "out/.work"
    one = InfluenceConfig(**REQUIRED, work_dir="/scratch/")
    other = InfluenceConfig(**{**REQUIRED, "output": "out2"}, work_dir="/scratch")
    assert one.work_folder.startswith("/scratch/beam-influence-")
    assert one.work_folder == dataclasses.replace(one, top_k=3).work_folder != other.work_folder
