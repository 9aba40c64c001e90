"""Finding each feature's kind and shape, and what is refused."""

from __future__ import annotations

import io

import pytest
import tensorflow as tf

from beam_influence.influence_ops.reading import READERS
from beam_influence.influence_ops.reading.features import Declared, Feature, ModelInput, Roles, Stored, most_common
from beam_influence.influence_ops.reading.resolve_features import FeatureResolver, fit_result
from beam_influence.influence_ops.reading.schema import parse_schema
from beam_influence.influence_ops.reading.tfrecord_framing import write_records

DATA = {
    "x": Stored("float", (6,)),
    "image": Stored("float", (12,)),
    "token": Stored("int", (1,)),
    "word": Stored("bytes", (1,)),
    "label": Stored("int", (1,)),
    "probabilities": Stored("float", (3,)),
    "weight": Stored("float", (1,)),
}
SCHEMA = """
feature { name: "x" type: FLOAT shape { dim { size: 2 } dim { size: 3 } } }
feature { name: "token" type: INT }
feature { name: "word" type: BYTES shape {} }
"""


def resolve(tensors: list[ModelInput], data=DATA, schema=None, converts=False, **roles):
    given = {"inputs": {}, "labels": ("label",)} | roles
    return FeatureResolver(data, schema, converts).resolve(tensors, Roles(**given))


def one(name: str = "x", shape: tuple[int | None, ...] = (6,), dtype: str = "float32") -> list[ModelInput]:
    return [ModelInput(name, shape, dtype)]


def test_an_input_is_found_by_the_models_name_for_it():
    spec = resolve(one())
    assert spec.inputs == (("x", Feature("x", "float", (6,))),)
    assert spec.labels == (Feature("label", "int", ()),)
    assert (spec.id, spec.group, spec.weight, spec.double) == (None, None, None, False)
    assert [feature.name for feature in spec.features()] == ["x", "label"]


def test_a_single_input_may_be_named_without_the_models_name():
    spec = resolve(one("input_layer", (2, 3)), inputs={"": "x"})
    assert spec.inputs == (("input_layer", Feature("x", "float", (2, 3))),)


@pytest.mark.parametrize(("shape", "found"), [((None, 4), (3, 4)), ((None,), (12,)), ((2, None, 2), (2, 3, 2)), ((12,), (12,))])
def test_an_open_dimension_is_worked_out(shape, found):
    assert resolve(one("image", shape)).inputs[0][1].shape == found


def test_all_roles():
    spec = resolve(one(), id="word", group="token", weight="weight", labels=("probabilities",))
    assert spec.id == Feature("word", "bytes", ())
    assert spec.group == Feature("token", "int", ())
    assert spec.weight == Feature("weight", "float", ())
    assert spec.labels == (Feature("probabilities", "float", (3,)),)
    assert {feature.name for feature in spec.features()} == {"x", "word", "token", "weight", "probabilities"}


def test_a_feature_of_two_roles_is_read_once():
    assert [feature.name for feature in resolve(one(), group="label").features()] == ["x", "label"]


def test_several_features_are_put_together_in_order():
    spec = resolve(one("both", (9,)), inputs={"both": "probabilities+x"})
    feature = spec.inputs[0][1]
    assert [part.name for part in feature.parts] == ["probabilities", "x"]
    assert (feature.kind, feature.shape) == ("float", (9,))
    assert [part.name for part in spec.features()] == ["probabilities", "x", "label"]


def test_a_pattern_is_sorted_by_numbers():
    data = {f"p{number}": Stored("float", (1,)) for number in (10, 2, 1)} | {"label": Stored("int", (1,))}
    spec = resolve(one("x", (3,)), data, inputs={"": "p*"})
    assert [part.name for part in spec.inputs[0][1].parts] == ["p1", "p2", "p10"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": {"": "y"}}, "the data has no feature 'y'.*name its feature with --input_features x=FEATURE.*image, label"),
        ({"labels": ("y",)}, "no feature 'y'.*--label_feature"),
        ({"labels": ("word",)}, "label feature 'word' holds bytes"),
        ({"id": "weight"}, "--id_feature feature 'weight' holds float values; it must hold bytes or int"),
        ({"group": "y"}, "no feature 'y' .--group_feature"),
        ({"weight": "word"}, "--weight_feature feature 'word' holds bytes values; it must hold float or int"),
        ({"inputs": {"": "image"}}, "'image' has 12 values, which do not fill the model's input 'x' of shape .6."),
        ({"inputs": {"": "word"}}, "'word' holds bytes values.*takes float32; decode it with --preprocess"),
        ({"inputs": {"": "q_*"}}, "no feature matches 'q_.'"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        resolve(one(), **change)


def test_an_open_dimension_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="'image' has 12 values"):
        resolve(one("image", (None, 5)))
    with pytest.raises(ValueError, match="'image' has 12 values"):
        resolve(one("image", (None, None)))


def test_numbers_are_no_strings():
    with pytest.raises(ValueError, match="'token' holds int values, the model's input 'token' takes string; .*a --schema"):
        resolve(one("token", (1,), "string"))


def test_a_schema_decides_kinds_and_shapes():
    schema = parse_schema(SCHEMA)
    assert schema == {"x": Declared("float", (2, 3)), "token": Declared("int"), "word": Declared("bytes", ())}
    spec = resolve(one("x", (None, None)), schema=schema, labels=("token",))
    assert spec.inputs[0][1].shape == (2, 3)
    with pytest.raises(ValueError, match="the schema has no feature 'label'"):
        resolve(one(), schema=schema)
    with pytest.raises(ValueError, match="no fixed shape in the schema and is missing"):
        resolve(one("token", (1,), "int64"), {}, schema, labels=("token",))
    with pytest.raises(ValueError, match="the schema can't be parsed"):
        parse_schema("feature { nonsense }")


def test_float64_inputs_are_read_so():
    assert resolve(one("x", (6,), "float64")).double


def test_whole_numbers_are_floats_where_the_format_converts():
    data = DATA | {"x": Stored("int", (6,))}
    assert resolve(one(), data, converts=True).inputs[0][1].kind == "float"
    assert resolve(one(), data, converts=False).inputs[0][1].kind == "int"


def test_the_majority_decides():
    good, bad = {"x": Stored("float", (2,))}, {"x": Stored("bytes", (1,)), "y": Stored("int", (1,))}
    assert most_common([bad, good, good]) == {"x": Stored("float", (2,)), "y": Stored("int", (1,))}
    assert most_common([]) == {}


def test_the_features_of_a_file():
    example = tf.train.Example()
    example.features.feature["x"].float_list.value.extend([1.0, 2.0])
    example.features.feature["n"].int64_list.value.append(3)
    example.features.feature["s"].bytes_list.value.append(b"a")
    example.features.feature["nothing"].SetInParent()
    file = io.BytesIO()
    write_records(file, [b"\xffgarbage", example.SerializeToString()])
    file.seek(0)
    found = READERS["tfrecord"].describe(file, 10)
    assert found == {"x": Stored("float", (2,)), "n": Stored("int", (1,)), "s": Stored("bytes", (1,))}
    file.seek(0)
    assert READERS["tfrecord"].describe(file, 1) == {}


def test_a_preprocess_result_of_another_shape_is_refused():
    tensor = ModelInput("x", (None, 3), "float32")
    assert fit_result(tensor, (5, 3), "m:f") == Feature("x", "float", (5, 3))
    for shape in ((5, 4), (3,)):
        with pytest.raises(ValueError, match="'m:f' returns 'x' with examples of the shape"):
            fit_result(tensor, shape, "m:f")
