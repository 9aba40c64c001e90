"""What does not fit is found before the pipeline starts: files, the model, the data, the saved curvature, the output folder."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import sys
from typing import Any

import keras
import numpy as np
import pytest

from beam_influence.pipelines.clear_output import clear_output
from beam_influence.pipelines.launch import run
from beam_influence.pipelines.prepare import prepare
from beam_influence.pipelines.runners import choose_engine
from tests.pipelines.conftest import FinishedRun
from tests.pipelines.digits_job import DigitsJob, files_below, listed_files, paths_of_run, read, run_quietly


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "/nowhere/train-*"}, "no file matches '/nowhere/train-\\*'; check the path, and quote patterns"),
        ({"test": "/nowhere/test"}, "no file matches '/nowhere/test'"),
        ({"model": "/nowhere/model.keras"}, "there is no model at '/nowhere/model.keras'; give a .keras or .h5 file with --model"),
        ({"schema": "/nowhere/schema.pbtxt"}, "there is no schema at '/nowhere/schema.pbtxt'"),
        ({"curvature_path": "/nowhere"}, "'/nowhere' holds no meta.json"),
        ({"label_feature": "target"}, "has no feature 'target' \\(the label; name it with --label_feature\\); it has digit, image"),
        ({"label_feature": "digit"}, "the label feature 'digit' holds bytes; labels must be numbers"),
        ({"group_feature": "class"}, "has no feature 'class' \\(--group_feature\\)"),
        ({"group_feature": "image"}, "--group_feature feature 'image' holds float values"),
        ({"id_feature": "uid"}, "has no feature 'uid' \\(--id_feature\\)"),
        ({"weight_feature": "digit"}, "--weight_feature feature 'digit' holds bytes values"),
        ({"input_features": "image=pixels"}, "has no feature 'pixels' \\(the model's input 'image'"),
        ({"input_features": "digit"}, "feature 'digit' holds bytes values, the model's input 'image' takes"),
        ({"input_features": "label"}, "label"),
        ({"loss": "no_such_loss"}, "no loss is called 'no_such_loss'; use one of"),
        ({"loss": "json:no_such"}, "has no attribute 'no_such'"),
        ({"weights": "conv"}, "weights='conv' matches none of the model's weights: hidden/kernel"),
        ({"weights": "("}, "weights='\\(' is not a regular expression"),
        ({"start_layer": "7"}, "no layer '7' among the model's 3; the layers with trainable weights are 1: hidden, 2: digits"),
        ({"start_layer": "0"}, r"layer '0' \(image\) has no trainable weights; .* 1: hidden, 2: digits"),
        ({"loss": "tests.pipelines.test_prepare:wrong_loss"}, "test examples: the loss .* it mixes the examples of a batch"),
    ],
)
def test_what_does_not_fit_is_refused(job: DigitsJob, tmp_path: pathlib.Path, options: dict[str, Any], message: str) -> None:
    output = tmp_path / "out"
    with pytest.raises(ValueError, match=f"(?s){message}"):
        prepare(job.config(output, **options))
    assert not output.exists()  # nothing has been written


def wrong_loss(labels: Any, outputs: Any) -> Any:
    """How far the examples of a batch are from each other: alone, each has none."""
    return keras.ops.mean(keras.ops.square(outputs - keras.ops.mean(outputs, axis=0)))


def _save(model: keras.Model, path: pathlib.Path) -> str:
    model.save(path)
    return str(path)


def test_a_file_that_is_no_model(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    (tmp_path / "model.keras").write_bytes(b"not a zip archive")
    with pytest.raises(ValueError, match=rf"can't load the model '{tmp_path}/model\.keras'.*It must be a \.keras or \.h5 file"):
        prepare(job.config(tmp_path / "out", model=str(tmp_path / "model.keras")))
    shutil.copy(job.model, tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"must be a \.keras or \.h5 file, as model\.save"):
        prepare(job.config(tmp_path / "out", model=str(tmp_path / "model.zip")))


def test_a_model_that_would_run_code_is_refused(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    inputs = keras.Input((64,), name="image")
    marker = tmp_path / "ran"
    path = str(marker)
    outputs = keras.layers.Dense(10)(keras.layers.Lambda(lambda x: (open(path, "w").close(), x)[1], output_shape=(64,))(inputs))
    model = keras.Model(inputs, outputs)
    model.compile(loss="sparse_categorical_crossentropy")
    file = _save(model, tmp_path / "lambda.keras")
    marker.unlink(missing_ok=True)
    with pytest.raises(ValueError, match="(?s)one with Lambda layers is refused, since loading it would run its code"):
        prepare(job.config(tmp_path / "out", model=file))
    assert not marker.exists()


def test_a_compiled_loss_that_a_file_does_not_tell_is_refused(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """Keras reads a Huber loss of any delta as one of 1."""
    model = keras.Sequential([keras.Input((64,), name="image"), keras.layers.Dense(1)])
    model.compile(loss=keras.losses.Huber(delta=0.7))
    config = job.config(tmp_path / "out", model=_save(model, tmp_path / "huber.keras"), loss="compiled")
    with pytest.raises(ValueError, match="compiled with a Huber loss, and Keras saves it without its delta: name the loss, --loss huber"):
        prepare(config)
    prepare(dataclasses.replace(config, loss="huber"))


def test_a_model_of_other_inputs(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    small = keras.Sequential([keras.Input((8, 9), name="image"), keras.layers.Flatten(), keras.layers.Dense(10)])
    small.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="(?s)'image'.*64"):
        prepare(job.config(tmp_path / "out", model=_save(small, tmp_path / "small.keras")))
    other = keras.Sequential([keras.Input((64,), name="pixels"), keras.layers.Dense(10)])
    other.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    path = _save(other, tmp_path / "other.keras")
    with pytest.raises(ValueError, match="the model's input 'pixels'; name its feature with --input_features pixels=FEATURE"):
        prepare(job.config(tmp_path / "out", model=path))
    plan = prepare(job.config(tmp_path / "out", model=path, input_features="pixels=image"))
    assert plan.train_features is not None
    assert [(name, feature.name) for name, feature in plan.train_features.inputs] == [("pixels", "image")]


def test_a_model_without_a_loss(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    path = _save(keras.Sequential([keras.Input((64,), name="image"), keras.layers.Dense(10)]), tmp_path / "m.keras")
    with pytest.raises(ValueError, match="carries no compiled loss; name one: --loss softmax_cross_entropy"):
        prepare(job.config(tmp_path / "out", model=path))
    assert prepare(job.config(tmp_path / "out", model=path, loss="softmax_cross_entropy")).watched == 650


def test_files_that_are_no_tfrecords(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    (tmp_path / "train.bin").write_text("id,label\n" * 100)
    with pytest.raises(ValueError, match=r"no readable example among the first of train files such as '.*train\.bin'"):
        prepare(job.config(tmp_path / "out", train=str(tmp_path / "train.bin")))


def test_a_curvature_of_another_model(job: DigitsJob, finished: FinishedRun, tmp_path: pathlib.Path) -> None:
    saved = str(finished.output / "curvature")
    model: Any = keras.models.load_model(job.model)
    model.layers[-1].kernel.assign(model.layers[-1].kernel.value * np.float32(1.01))
    other = _save(model, tmp_path / "other.keras")
    with pytest.raises(ValueError, match="the curvature was made for another model"):
        prepare(job.config(tmp_path / "out", model=other, curvature_path=saved))
    with pytest.raises(ValueError, match="the curvature is for 90 watched weights, the model has 610"):
        prepare(job.config(tmp_path / "out", weights="all", curvature_path=saved))
    with pytest.raises(ValueError, match="was not fitted for --removal newton"):
        prepare(job.config(tmp_path / "out", removal="newton", curvature_path=saved))
    assert prepare(job.config(tmp_path / "out", curvature_path=saved)).watched == 90


def test_a_damaged_curvature(job: DigitsJob, finished: FinishedRun, tmp_path: pathlib.Path) -> None:
    saved = tmp_path / "curvature"
    shutil.copytree(finished.output / "curvature", saved)
    (vectors,) = saved.glob("vectors-*.npy")
    data = bytearray(vectors.read_bytes())
    data[-1] ^= 1
    vectors.write_bytes(data)
    with pytest.raises(ValueError, match="does not match its SHA-256"):
        prepare(job.config(tmp_path / "out", curvature_path=str(saved)))


@pytest.fixture
def copy_of_finished(finished: FinishedRun, tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(finished.output, tmp_path / "out")
    return tmp_path / "out"


def test_an_output_that_is_a_file_is_refused_before_the_run(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="--output '.*out' is a file; name a folder"):
        run_quietly(job.config(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"


def test_run_takes_arguments_as_a_list(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"Beam's arguments as a list, such as \['--runner=prism'\]"):
        run(job.config(tmp_path / "out"), "--runner=local")
    with pytest.raises(ValueError, match="run takes an InfluenceConfig"):
        run(["--model=m"])  # type: ignore[arg-type]


def test_a_finished_run_is_kept(job: DigitsJob, copy_of_finished: pathlib.Path) -> None:
    before = files_below(copy_of_finished)
    with pytest.raises(ValueError, match="already holds a finished run; give another --output, or --overwrite"):
        run_quietly(job.config(copy_of_finished))
    assert files_below(copy_of_finished) == before


def test_overwrite_leaves_only_the_new_run(job: DigitsJob, copy_of_finished: pathlib.Path) -> None:
    (copy_of_finished / "notes.txt").write_text("the user's own")
    run_quietly(job.config(copy_of_finished, files=1, outputs="self_influence", overwrite=True))
    listed = {file.path for file in listed_files(copy_of_finished)}
    assert listed == {"self_influence/shard-00000.parquet", "rejected/part-00000.parquet"}
    kept = {path for path in files_below(copy_of_finished) if not path.startswith("curvature/")}
    assert kept == paths_of_run(copy_of_finished) | {"notes.txt"}


def test_overwrite_with_the_curvature_that_is_there(job: DigitsJob, copy_of_finished: pathlib.Path) -> None:
    saved = str(copy_of_finished / "curvature")
    before = read(copy_of_finished, "top_k")
    run_quietly(
        job.config(copy_of_finished, compressed=True, batch_size=17, query_block_size=7, curvature_path=saved, overwrite=True)
    )
    assert read(copy_of_finished, "top_k").equals(before)


def test_a_work_dir_keeps_what_is_not_ours(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    work = tmp_path / "work"
    (work / "deep").mkdir(parents=True)
    (work / "mine.txt").write_text("the user's own")
    (work / "deep" / "mine.txt").write_text("the user's own")
    config = job.config(tmp_path / "out", outputs="top_k", work_dir=str(work))
    clear_output(config, ("top_k",), "manifest.json")
    run_quietly(config)
    assert files_below(work) == {"mine.txt", "deep/mine.txt"}


def test_a_curvature_named_beside_another_saved_one_is_refused(finished: FinishedRun, tmp_path: pathlib.Path) -> None:
    saved = dataclasses.replace(finished.config, output=str(tmp_path / "out"), curvature_path=str(finished.output / "curvature"))
    name = json.loads((finished.output / "curvature" / "meta.json").read_text())["curvature"]
    with pytest.raises(ValueError, match=f"is '{name}', not --curvature ekfac; leave one of them out"):
        prepare(dataclasses.replace(saved, curvature="ekfac"))


def test_a_preconditioner_is_not_taken_for_the_answer(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    fitted = job.config(tmp_path / "fitted", curvature="gauss_newton_cg", outputs="curvature", test=None, group_feature=None)
    run_quietly(fitted)
    config = job.config(tmp_path / "out", curvature_path=str(tmp_path / "fitted" / "curvature"))
    with pytest.raises(ValueError, match="passes of gauss_newton_cg begin; add --curvature gauss_newton_cg, and --passes 0 where"):
        prepare(config)
    assert prepare(dataclasses.replace(config, curvature="gauss_newton_cg", passes=0)).curvature_path is not None


def test_prism_where_nothing_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="--job_endpoint: nothing answers at localhost:1"):
        choose_engine(["--runner=prism", "--job_endpoint=localhost:1", f"--prism_location={sys.executable}"])
