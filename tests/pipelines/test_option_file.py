"""`--config` and `--set`: a run is repeated from its manifest, one thing is changed, and nothing in a file is ignored."""

from __future__ import annotations

import json
import pathlib
import shlex
import sys

import pytest

from beam_influence.pipelines.cli import main, parse
from beam_influence.pipelines.inspect_folder import inspect_folder, inspection_text
from beam_influence.pipelines.programs import make_config
from tests.pipelines.conftest import FinishedRun
from tests.pipelines.digits_job import FN_API, files_below

NEEDED = ["--model=m", "--output=o"]


@pytest.mark.timeout(120)
def test_a_run_is_repeated_from_its_manifest(finished: FinishedRun, tmp_path: pathlib.Path) -> None:
    """The same bytes in every table; the manifest says what ran."""
    manifest = finished.output / "manifest.json"
    assert main(["run", "--config", str(manifest), "--set", f"output={tmp_path / 'again'}", *FN_API]) == 0
    tables = {name for name in files_below(finished.output) if name.endswith(".parquet") and "/" in name}
    assert len(tables) > 5 and tables <= files_below(tmp_path / "again")
    for name in tables:
        assert (tmp_path / "again" / name).read_bytes() == (finished.output / name).read_bytes(), name
    ran, first = (json.loads(path.read_text())["config"] for path in (tmp_path / "again" / "manifest.json", manifest))
    assert ran == {**first, "output": str(tmp_path / "again"), "overwrite": False}


def test_the_command_line_wins_over_set_and_set_over_the_file(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "run.yaml"
    files = "model: m\ntrain: [a, b]\ntest: t\noutput: o\nid_feature: null\n"
    file.write_text(f"{files}top_k: 3\ndamping: 0.5\nresume: false\nrunner: prism\nweights: all\n")
    known, _ = parse(["run", "--config", str(file), "--set", "top_k=4", "--set", "order=ascending", "--weights", "last", "--verbose"])
    config = make_config(known)
    assert (config.train, config.top_k, config.damping, config.resume) == ("a,b", 4, "0.5", False)
    assert (config.order, config.weights, config.verbose, known.runner) == ("ascending", "last", True, "prism")


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ({"top_kk": 3}, [], "'top_kk' is not an option; did you mean top_k?"),
        ({"top_k": 3}, ["--set", "dampin=1"], "--set: 'dampin' is not an option; did you mean damping?"),
        ({"resume": "perhaps"}, [], "resume 'perhaps' must be true or false"),
        ({"train": {"a": 1}}, [], "train {'a': 1} must be one value"),
        ([1], [], "must hold options by name"),
        ({"top_k": 3}, ["--set", "top_k"], "--set 'top_k' must be NAME=VALUE"),
        ({}, ["--set", "top_k=1", "--top_k=2"], "--set top_k=1 and --top_k say the same"),
        ({"train": "s3://***@host/a"}, [], "a manifest has no passwords and keys; give --train again"),
        ({"manifest_version": 2}, [], "is a manifest without options"),
    ],
)
def test_wrong_files_of_options_are_refused(
    tmp_path: pathlib.Path, content: object, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(content))
    assert main(["run", "--config", str(file), *NEEDED, *words]) == 2
    assert message in capsys.readouterr().err


def test_an_option_of_another_command_in_a_file_is_refused(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But not where it says what the command has anyway, as the manifest of every run does."""
    file = tmp_path / "manifest.json"
    config = {"model": "m", "train": "a", "output": "o", "top_k": 10, "outputs": "curvature", "overwrite": True}
    file.write_text(json.dumps({"manifest_version": 2, "config": config}))
    known, _ = parse(["fit", "--config", str(file)])
    assert make_config(known).only_curvature and not known.overwrite  # what was there before is not of this run
    file.write_text(json.dumps({"manifest_version": 2, "config": {**config, "top_k": 7}}))
    assert main(["fit", "--config", str(file)]) == 2
    assert "top_k 7 is not an option of fit, but of run and query" in capsys.readouterr().err
    assert main(["run", "--config", str(tmp_path / "none.yaml"), *NEEDED]) == 2
    assert "none.yaml' can't be read" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["model", "loss", "preprocess", "curvature"])
def test_a_file_of_options_names_no_code(tmp_path: pathlib.Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "named_by_a_file.py").write_text("raise SystemExit('run')")
    file = tmp_path / "run.yaml"
    file.write_text(f"{option}: named_by_a_file:thing\ntrain: a\noutput: o\n")
    sys.path.insert(0, str(tmp_path))
    try:
        assert main(["run", "--config", str(file), *([] if option == "model" else ["--model=m"])]) == 2
    finally:
        sys.path.remove(str(tmp_path))
    assert f"if you trust it, give --{option} named_by_a_file:thing" in capsys.readouterr().err
    assert "named_by_a_file" not in sys.modules


def test_inspect_tells_what_a_folder_is(finished: FinishedRun, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(finished.output), "--json", "--rows", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "results" and found["facts"]["sign"].startswith("positive = removing")
    tables = {table["name"]: table for table in found["tables"]}
    assert tables["scores"]["rows"] == 300 * 20 and len(tables["scores"]["first"]) == 2
    assert tables["self_influence"]["columns"] == {"train_id": "string", "influence": "double", "loss_change": "double"}
    assert tables["self_influence"]["first"][0]["train_id"] == finished.train_ids[0]
    # The command that it tells gives the options that ran.
    known, rest = parse(shlex.split(found["command"])[1:])
    assert not rest and make_config(known) == finished.config
    text = inspection_text(inspect_folder(str(finished.output / "manifest.json")))
    assert "table top_k: 140 rows" in text and "--config" in text
    assert inspect_folder(str(finished.output / "curvature"), 0).kind == "operator"
    assert main(["inspect", str(tmp_path)]) == 2
    assert "is no folder of this program" in capsys.readouterr().err
    (tmp_path / "lds.json").write_text("{}")
    assert main(["inspect", str(tmp_path)]) == 2
    assert "is damaged, or of another program" in capsys.readouterr().err
