"""Each command that the help and the documents print is one that works, and is run where that needs no other service."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shutil
from typing import Any

import keras
import pytest

from beam_influence.pipelines.clean_options import CleanOptions
from beam_influence.pipelines.cli import main, parser
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.ensemble_options import EnsembleOptions
from beam_influence.pipelines.evaluate_config import EvaluateConfig
from beam_influence.pipelines.export_config import ExportConfig
from beam_influence.pipelines.report_config import ReportConfig
from beam_influence.pipelines.unknown_options import refuse_misplaced, refuse_unknown
from beam_influence.pipelines.unrolled_config import UnrolledConfig
from tests.documented_commands import ROOT, all_commands, of_document, of_help, of_text
from tests.pipelines.digits_job import DigitsJob

COMMANDS = all_commands()
FEWER = {"--retrainings": "4", "--test_points": "1", "--workers": "1"}
PAGES = (
    "docs/get_started.md",
    "README.md",
    "docs/report.md",
    "docs/index_and_query.md",
    "docs/evaluation.md",
    "docs/scale.md",
)


def test_they_are_found() -> None:
    places = [name.rpartition(" ")[0] for name in COMMANDS]
    wanted = {"README.md": 2, "docs/get_started.md": 12, "run --help": 2, "fit --help": 2, "index --help": 3, "query --help": 2}
    assert {name: places.count(name) for name in wanted} == wanted
    assert len(COMMANDS) >= 28
    assert of_text("a\n  beam-influence run --a 'b c' \\\n      --d\nsee `beam-influence run`") == [["run", "--a", "b c", "--d"]]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_documented_command_is_understood(name: str) -> None:
    """By the real parser, without a word that it or Beam does not know."""
    words = COMMANDS[name]
    if "--help" in words or "--config" in words:  # a file that must be there
        return
    known, rest = parser().parse_known_args(words)
    refuse_misplaced(rest, known.command)
    refuse_unknown(rest)
    if known.command in ("demo", "inspect"):
        return
    kinds = {"evaluate": EvaluateConfig, "report": ReportConfig, "clean": CleanOptions, "export": ExportConfig}
    kinds |= {"ensemble": EnsembleOptions, "unrolled": UnrolledConfig}
    kind = kinds.get(known.command, InfluenceConfig)
    options = {field.name: getattr(known, field.name) for field in dataclasses.fields(kind) if hasattr(known, field.name)}
    alone = {"fit": {"outputs": "curvature"}, "index": {"outputs": "index"}}
    options |= {"results": tuple(known.results)} if known.command == "ensemble" else {}
    kind(**{**options, **alone.get(known.command, {})})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A model and data as the help has them: in the user's own folder."""
    folder = tmp_path_factory.mktemp("user")
    job = DigitsJob(tmp_path_factory.mktemp("digits"))
    shutil.copy(job.model, folder / "model.keras")
    for split, count in (("train", 2), ("test", 1)):
        found = sorted(pathlib.Path(job.shards(split, count, compressed=True).pattern).parent.iterdir())
        for number, path in enumerate(found):
            shutil.copy(path, folder / f"{split}-{number:05d}.tfrecord.gz")
    shutil.copy(folder / "train-00000.tfrecord.gz", folder / "more-00000.tfrecord.gz")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", ["run", "fit", "index"])
def test_the_examples_of_the_help_run(command: str, folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folder where the files are, with patterns that name no folder."""
    for path in folder.iterdir():
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    for words in of_help(command):
        changed = [word.removeprefix("output=") for word in words if word.startswith("output=")]
        output = changed[0] if changed else words[words.index("--output") + 1]
        assert main(words) == 0, words
        assert pathlib.Path(output, "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_the_pages_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, from the folder in which the first of them, the demo of digits, has put its files; with fewer retrainings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in PAGES:
        run_all([with_values(words, FEWER) for words in of_document(name)])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_commands_of_pages_with_own_files_run(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run_all(of_document("docs/migrating.md"))
    (first,) = of_document("docs/migrating.md")
    run_all([[*first, "--outputs", "top_k,self_influence", "--overwrite"]])
    (options,) = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs/command_line.md").read_text(), re.MULTILINE | re.DOTALL)
    pathlib.Path("run.yaml").write_text(options.replace("output: influence", "output: from_file"))
    for member in range(3):
        copied = pathlib.Path(shutil.copytree("influence", f"influence-{member}")) / "manifest.json"
        manifest = json.loads(copied.read_text())
        manifest["curvature"]["fingerprint"] = f"of model {member}"
        copied.write_text(json.dumps(manifest))
    run_all(of_document("docs/command_line.md"))
    model: Any = keras.saving.load_model("model.keras")
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.save("before.keras")
    run_all(of_document("docs/unrolled.md"))


def test_no_page_is_left_out() -> None:
    """Commands for services that are not here are run by their own tests, on other paths: of Flink and of S3; the demos' by `test_demo`."""
    places = {name.rpartition(" ")[0] for name in COMMANDS}
    own_files = {"docs/command_line.md", "docs/migrating.md", "docs/unrolled.md"}
    elsewhere = {"docs/demos.md", "docs/runners.md", "benchmarks/README.md"}
    assert {name for name in places if name.endswith(".md")} == {*PAGES, *own_files, *elsewhere}


def with_values(words: list[str], values: dict[str, str]) -> list[str]:
    return [values.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def run_all(commands: list[list[str]]) -> None:
    for words in commands:
        if "--help" not in words:
            assert main(words) == 0, words
