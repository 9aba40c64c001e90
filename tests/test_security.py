"""What SECURITY.md promises, promise by promise; those about files have a fuzzer beside (tests/influence_ops/test_fuzz.py)."""

from __future__ import annotations

import ast
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from beam_influence.influence_ops.curvature import load_preconditioner
from beam_influence.influence_ops.redact import HIDDEN, without_secrets
from beam_influence.influence_ops.results.array_folder import from_npy, load_arrays, save_arrays, to_npy
from beam_influence.influence_ops.results.result_files import read_manifest
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.run_pipeline import reason
from beam_influence.transforms.clean_shards import below_of
from beam_influence.transforms.files import BeamFiles, FoundFile

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("influence_ops", "transforms", "report", "pipelines", "dataflow_templates")
SOURCES = [ROOT / "__init__.py", *sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))]

# Modules whose files run code when they are read.
_PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
_RUNNING = {"eval", "exec", "compile", "__import__"}
# Who imports a module by a name that is not in the call: what the user names, what was named before, and the public list.
_IMPORTING = {"__init__.py", "influence_ops/import_path.py", "transforms/open_model.py", "influence_ops/evaluation/retraining.py"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_no_file_is_unpickled_and_no_text_is_run(path: pathlib.Path) -> None:
    name, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & _PICKLING
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in _PICKLING | {"yaml"}
    for function, call in calls(tree):
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert function not in _RUNNING and not function.startswith("os.system")
        if function in ("np.load", "numpy.load"):
            assert options.get("allow_pickle") == "False"
        if function.endswith("load_model") and function.startswith("keras."):
            assert options.get("safe_mode") == "True"
        assert not function.startswith("yaml.") or function == "yaml.safe_load"  # plain values alone
        assert "enable_unsafe_deserialization" not in function
        assert options.get("shell", "False") == "False"
        if function == "importlib.import_module" and not isinstance(call.args[0], ast.Constant):
            assert name in _IMPORTING


def test_an_array_that_needs_pickle_is_refused(tmp_path: pathlib.Path) -> None:
    objects = np.array([{"a": 1}], dtype=object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        from_npy((tmp_path / "objects.npy").read_bytes())
    with pytest.raises(ValueError):
        to_npy(objects)
    with pytest.raises(ValueError):
        save_arrays(str(tmp_path / "saved"), {"objects": objects}, {})


def test_names_in_files_are_not_imported(tmp_path: pathlib.Path) -> None:
    """A saved curvature or a manifest names no code: a module named there is not looked for."""
    (tmp_path / "named_by_a_file.py").write_text("raise SystemExit('run')")
    sys.path.insert(0, str(tmp_path))
    try:
        meta = {"curvature": "named_by_a_file:Own", "damping": 0.1, "examples": 1, "size": 1, "fingerprint": "f"}
        save_arrays(str(tmp_path / "saved"), {"a": np.zeros(1)}, {**meta, "kind": "named_by_a_file:Own"})
        with pytest.raises(ValueError, match="its kind is"):
            load_preconditioner(str(tmp_path / "saved"))
        content = {"manifest_version": 1, "files": [], "config": {"preprocess": "named_by_a_file:run", "loss": "named_by_a_file:run"}}
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        read_manifest(str(tmp_path))
    finally:
        sys.path.remove(str(tmp_path))
    assert "named_by_a_file" not in sys.modules


# Every file that reads the options in a manifest, and the function that does; none of them may import what these name.
READERS_OF_OPTIONS = {
    "pipelines/clean.py": "compares two options",
    "pipelines/clean_run.py": "the training files' names",
    "pipelines/damping_sweep.py": "_check, check_code",
    "pipelines/ensemble.py": "compares options",
    "pipelines/exports/duckdb_file.py": "tells options",
    "pipelines/exports/export.py": "compares one option",
    "pipelines/exports/frame.py": "a label's name",
    "pipelines/exports/run_examples.py": "the files' names",
    "pipelines/grow_index.py": "compares two options",
    "pipelines/inspect_folder.py": "tells options",
    "pipelines/measures/choose.py": "compares options",
    "pipelines/option_file.py": "names_code",
    "pipelines/load_influence.py": "tells two options",
    "pipelines/report_sources.py": "check_code",
    "pipelines/scored_data.py": "check_code",
    "report/missing.py": "tells options",
    "report/tables.py": "compares options",
    "report/words.py": "tells options",
    "pipelines/tfx/influence_executor.py": "compares one option",
    "influence_ops/evaluation/score_table.py": "compares options",
}


def test_every_reader_of_options_in_a_manifest_is_known() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in SOURCES if 'manifest["config"]' in path.read_text()}
    assert found == set(READERS_OF_OPTIONS)


@pytest.mark.parametrize("measure", ["lds", "leave_one_out", "mislabelled", "brittleness", "tail_patch", "sweep"])
@pytest.mark.parametrize("option", ["model", "loss", "preprocess", "curvature"])
def test_a_manifest_names_no_code(tmp_path: pathlib.Path, measure: str, option: str) -> None:
    """Each measure on a run whose manifest names a module: it is not imported, and the message tells the option to give."""
    from beam_influence.pipelines.evaluate import evaluate
    from beam_influence.pipelines.evaluate_config import EvaluateConfig

    if option == "curvature" and measure != "sweep":
        return  # only the sweep needs the run's own
    (tmp_path / "named_by_a_manifest.py").write_text("raise SystemExit('run')")
    (tmp_path / "wrong.txt").write_text("a:0")
    config = {"model": "m.keras", "train": "t", "loss": "compiled", "curvature": "exact", option: "named_by_a_manifest:thing"}
    fitted = {"curvature": "exact", "damping": 0.1, "fingerprint": "f"}
    content = {"manifest_version": 1, "files": [], "config": config, "curvature": fitted}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    more: dict[str, Any] = {"train_fn": "tests.pipelines.convex_job:train"} if measure not in ("mislabelled", "tail_patch") else {}
    if measure == "mislabelled":
        more["mislabelled"] = str(tmp_path / "wrong.txt")
    if measure in ("sweep", "lds", "leave_one_out"):
        more |= {"damping_sweep": "0.1"}
    named = "lds" if measure == "sweep" else measure
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ValueError, match=rf"code is taken from the command line alone.*give --{option} named_by_a_manifest:thing"):
            evaluate(EvaluateConfig(named, str(tmp_path), str(tmp_path / "out"), **more))
        with pytest.raises(ValueError, match=f"--{option} other:thing: the run in .* had 'named_by_a_manifest:thing'"):
            other: dict[str, Any] = {option: "other:thing", **more}
            evaluate(EvaluateConfig(named, str(tmp_path), str(tmp_path / "out"), **other))
    finally:
        sys.path.remove(str(tmp_path))
    assert "named_by_a_manifest" not in sys.modules


@pytest.mark.parametrize(
    ("table", "path"),
    [
        ("top_k", "top_k/../../secret.parquet"),
        ("top_k", "/etc/passwd"),
        ("/etc", "/etc/passwd"),
        ("..", "../other/top_k.parquet"),
        ("top_k", "scores/a.parquet"),
        ("gs:", "gs://bucket/a"),
        ("top_k", "top_k/./a.parquet"),
        ("top_k", "top_k"),
        ("top_k", "top_k/..\\a"),
    ],
)
def test_a_manifest_can_not_point_elsewhere(tmp_path: pathlib.Path, table: str, path: str) -> None:
    entry = {"table": table, "path": path, "rows": 1, "bytes": 1}
    (tmp_path / "manifest.json").write_text(json.dumps({"manifest_version": 1, "files": [entry]}))
    with pytest.raises(ValueError, match="outside its table's folder"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize("name", ["../inverse", "/tmp/inverse", "a/b", ".hidden", "..", ""])
def test_an_array_s_name_can_not_point_elsewhere(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain file name"):
        save_arrays(str(tmp_path), {name: np.zeros(1)}, {})
    save_arrays(str(tmp_path), {"a": np.zeros(1)}, {})
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["arrays"][name] = meta["arrays"].pop("a")
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="plain file name"):
        load_arrays(str(tmp_path))


def test_names_of_an_object_store_can_not_leave_the_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from beam_influence.transforms import load_model

    assert below_of("gs://bucket/in/a/b.tfrecord", "gs://bucket/in/") == "a/b.tfrecord"
    with pytest.raises(ValueError, match="outside of the output folder"):
        below_of("gs://bucket/in/../../b", "gs://bucket/in/")
    monkeypatch.setattr(BeamFiles, "exists", lambda self, path: True)
    monkeypatch.setattr(load_model, "match_files", lambda patterns: [FoundFile("gs://bucket/model/../../evil", 1)])
    monkeypatch.setattr(load_model, "_copy", lambda source, target: pytest.fail("nothing may be written"))
    with pytest.raises(ValueError, match="outside of its folder"):
        load_model.load_model("gs://bucket/model")


def test_names_of_files_come_from_numbers(tmp_path: pathlib.Path) -> None:
    """Ids and groups that are paths end up in rows, not in names of files."""
    from tests.pipelines.digits_job import DigitsJob, files_below, framed, read, run_quietly, strings

    job = DigitsJob(tmp_path)
    for split in ("train", "test"):
        data = job.splits[split]
        changes = {"name": strings(["../../../evil"]), "digit": strings(["/etc/../evil"])}
        records = [data.example(row, {**changes, "name": strings([f"../../../evil-{row}"])}) for row in range(20)]
        (tmp_path / f"{split}.tfrecord").write_bytes(framed(records))
    paths: dict[str, Any] = {split: str(tmp_path / f"{split}.tfrecord") for split in ("train", "test")}
    config = job.config(tmp_path / "deep" / "out", **paths, id_feature="name")
    before = files_below(tmp_path)
    run_quietly(config)
    assert set(read(config.output, "self_influence")["train_id"].to_pylist()) == {f"../../../evil-{row}" for row in range(20)}
    assert all(path.startswith("deep/out/") and "evil" not in path for path in files_below(tmp_path) - before)


SECRETS = [
    "s3://user:hunter2@bucket/a",
    "https://hunter2@host/a",
    "https://host/a?X-Goog-Signature=hunter2&x=1",
    "https://account.blob/a?sv=1&sig=hunter2",
    "--api_key=hunter2",
    "password: hunter2",
    "{'aws_secret_access_key': 'hunter2'}",
    'token="hunter2"',
    "auth_token=hunter2",
    "token.value=hunter2",
    "https://host/a?x=1&token=hunter2",
    "azure_credentials: hunter2",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_left_out(text: str) -> None:
    assert "hunter2" not in without_secrets(text) and HIDDEN in without_secrets(text)
    assert "hunter2" not in reason(OSError(f"can't read train file {text}"))


FOLDERS = ["gs://b/tokenizer=bert/part-0", "tokenizer=bert", "gs://b/token=5/part-0", "max_tokens=5", "passwords_of=3", "secretary: a"]
PLAIN = ["gs://bucket/train-*.gz", "signals=5", "top_k=3", "the key: of a block", "a@b", "tokens/part-0", "C:/a"]


@pytest.mark.parametrize("text", [*PLAIN, *FOLDERS])
def test_other_text_is_left_alone(text: str) -> None:
    assert without_secrets(text) == text


def test_the_manifest_s_options_hold_no_secret() -> None:
    address = "https://user:hunter2@host/model.keras?token=hunter2"
    paths: dict[str, Any] = dict.fromkeys(("model", "train", "output", "curvature_path"), address)
    config = InfluenceConfig(**paths, outputs="influence_vectors")
    assert "hunter2" not in json.dumps(config.as_json()) and config.model == address


def test_each_promise_names_its_tests() -> None:
    """SECURITY.md refers to tests, and all of them are there."""
    import re

    text = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) >= 8
    for file, test in named:
        assert f"def {test}" in (ROOT / file).read_text(), (file, test)
