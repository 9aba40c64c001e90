"""Options of the command line by name, as execution properties that are the same for the same run."""

from __future__ import annotations

import json
import pathlib

import pytest

from tests.pipelines.tfx import needs_tfx as needs_tfx  # first: skips without the extra

# isort: split
from tfx.types.channel import Channel

from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.tfx import ExampleCleaner, InfluenceCalculator, InfluenceScores
from beam_influence.pipelines.tfx.artifacts import standard_artifacts
from beam_influence.pipelines.tfx.options import GIVEN, code_digests, encode_options, encode_splits

EXAMPLES, MODEL = Channel(type=standard_artifacts.Examples), Channel(type=standard_artifacts.Model)
SCORES = Channel(type=InfluenceScores)


def properties(**options) -> dict[str, str]:
    return dict(InfluenceCalculator(examples=EXAMPLES, model=MODEL, **options).spec.exec_properties)


def test_all_options_are_in_sorted_json() -> None:
    found = properties(top_k=3)
    options = json.loads(found["options"])
    assert found["options"] == json.dumps(options, sort_keys=True)
    # None lags behind the command line.
    assert set(options) == {name for name in InfluenceConfig.__dataclass_fields__ if name not in GIVEN}
    assert options["top_k"] == 3 and options["outputs"] == "top_k,self_influence,self_influence_top_k"
    assert found["train_splits"] == '["train"]' and found["test_splits"] == '["eval"]'


def test_the_same_run_has_the_same_properties() -> None:
    assert properties(top_k=3, damping=0.01, label_feature="y") == properties(label_feature="y", damping="0.01", top_k=3)
    assert properties() == properties(curvature="gauss_newton", max_rejected=0)  # the defaults
    assert properties(outputs=["top_k", "scores"]) == properties(outputs="top_k,scores")
    assert properties(train_splits=["b", "a"]) == properties(train_splits=("a", "b", "a"))
    assert properties(weight_decay=1) == properties(weight_decay=1.0)
    assert properties(start_layer=2, weights=None) == properties(start_layer="2", weights=None)
    for changed in ({"top_k": 4}, {"curvature": "exact"}, {"order": "ascending"}, {"train_splits": ["train", "more"]}):
        assert properties(**changed) != properties()


def test_without_test_points() -> None:
    found = properties(test_splits=None)
    assert found["test_splits"] == "[]" and json.loads(found["options"])["outputs"] == "self_influence,self_influence_top_k"
    with pytest.raises(ValueError, match="outputs top_k needs test_splits, the test points to explain"):
        properties(test_splits=[], outputs="top_k")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": 3}, "there is no option topk; did you mean top_k?"),
        ({"zzz": 3}, "there is no option zzz; there are default, input_features, preprocess"),
        ({"train": "files"}, "the option train is not given here: it is decided by the inputs examples and train_splits"),
        ({"overwrite": True}, "it is decided by each execution"),
        ({"top_k": "3"}, "the option top_k must be int, not '3'"),
        ({"top_k": True}, "the option top_k must be int, not True"),
        ({"top_k": 0}, "^top_k 0 must be at least 1"),
        ({"second_order_groups": "yes"}, "the option second_order_groups must be bool, not 'yes'"),
        ({"loss": 3j}, "the option loss must be str, not 3j"),
        ({"order": "random"}, "^order 'random' must be one of descending, ascending"),
        ({"outputs": "group_influence"}, "^outputs group_influence needs group_feature"),
        ({"curvature": "none"}, "none"),
        ({"train_splits": "train"}, "train_splits must be a list of names of splits, not 'train'"),
        ({"train_splits": []}, r"train_splits \[\] must name the splits that the model was trained on"),
        ({"test_examples": EXAMPLES, "test_splits": []}, r"test_splits \[\] must name the splits of test_examples"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_the_pipeline_is_made(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        properties(**options)


def test_given_options_exist() -> None:
    assert set(GIVEN) <= set(InfluenceConfig.__dataclass_fields__)


def test_code_of_the_user_is_part_of_the_properties(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_loss_of_test.py").write_text("def loss(labels, outputs):\n    return outputs\n")
    monkeypatch.syspath_prepend(tmp_path)
    options = encode_options({"loss": "my_loss_of_test:loss"}, True, False)
    before = code_digests(options)
    assert set(json.loads(before)) == {"loss", "beam-influence"} and before == code_digests(options)
    (tmp_path / "my_loss_of_test.py").write_text("def loss(labels, outputs):\n    return -outputs\n")
    assert code_digests(options) != before
    unknown = encode_options({"loss": "not_installed_here:loss"}, True, False)
    assert set(json.loads(code_digests(unknown))) == {"beam-influence"}


def test_splits() -> None:
    assert encode_splits(("b", "a"), "x") == '["a", "b"]'
    with pytest.raises(ValueError, match="x must be a list of names"):
        encode_splits([""], "x")


def test_cleaner() -> None:
    cleaner = ExampleCleaner(examples=EXAMPLES, scores=SCORES, share=0.1)
    assert cleaner.spec.exec_properties["options"] == '{"share": 0.1, "weight": null, "weight_feature": "weight"}'
    one, same = (ExampleCleaner(EXAMPLES, SCORES, 0.5, weight).spec.exec_properties for weight in (0, 0.0))
    assert one == same
    for share in (0, 1, 1.5):
        with pytest.raises(ValueError, match=f"share {share} must be above 0 and below 1"):
            ExampleCleaner(EXAMPLES, SCORES, share)
    with pytest.raises(ValueError, match="weight -1 must be from 0 to 1"):
        ExampleCleaner(EXAMPLES, SCORES, 0.1, weight=-1)
