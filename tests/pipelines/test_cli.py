"""The command line: every option of the configuration, exit codes, and messages without stacks."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import subprocess
import sys

import pytest

from beam_influence.pipelines.cli import main, parser
from beam_influence.pipelines.command_help import COMMAND_HELP
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.options.option import COMMANDS
from beam_influence.pipelines.run_summary import summary_text
from tests.documented_commands import of_text
from tests.pipelines.conftest import FinishedRun
from tests.pipelines.digits_job import FN_API, DigitsJob


def arguments(job: DigitsJob, output: pathlib.Path, *more: str) -> list[str]:
    train, test = job.shards("train", 3).pattern, job.shards("test", 1).pattern
    return ["run", "--model", str(job.model), "--train", train, "--test", test, "--output", str(output), *FN_API, *more]


def test_help_has_every_option_and_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--help-all"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    flat = " ".join(text.split())
    for field in dataclasses.fields(InfluenceConfig):
        assert f"--{field.name}" in text
        first_words = " ".join(field.metadata["help"].split()[:4])
        assert first_words in flat, field.name
    assert "positive influence means that removing" in flat


def test_help_shows_the_way_in_one_screen_and_a_dozen_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    helps = {}
    for words in ([], *([command] for command in COMMAND_HELP)):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--help"])
        assert ended.value.code == 0
        helps[" ".join(words)] = capsys.readouterr().out
    top = helps.pop("")
    assert len(top.splitlines()) <= 40
    assert all(f"\n  {command} " in top for command in COMMAND_HELP) and "130 interrupted" in top
    for command, text in helps.items():
        assert len(of_text(text.partition("Examples:")[2])) >= 2, command
    shown = set(re.findall(r"^  --(\w+)", helps["run"], re.MULTILINE))
    assert {"model", "train", "test", "output", "top_k", "curvature", "config"} <= shown and 10 <= len(shown) <= 15
    assert "\x1b" not in top  # no colour but on a terminal


def test_completion_knows_the_commands_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", "bash"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and "complete " in text.splitlines()[-1] and "--damping" in text


def test_options_become_the_configuration() -> None:
    """Each option, given as text, arrives in its field with its type."""
    given = {"model": "m", "train": "a", "test": "b", "output": "o", "top_k": "3", "rcond": "0.5", "overwrite": None}
    words = [word for name, value in given.items() for word in (f"--{name}", value) if word is not None]
    known, rest = parser().parse_known_args(["run", *words, "--direct_num_workers=2"])
    assert rest == ["--direct_num_workers=2"]  # Beam's own
    assert (known.top_k, known.rcond, known.overwrite) == (3, 0.5, True)
    for field in dataclasses.fields(InfluenceConfig):
        if field.name not in given:
            assert getattr(known, field.name) == field.default


def test_a_run_ends_with_a_table(job: DigitsJob, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(job, tmp_path / "out", "--top_k", "3", "--batch_size", "64")) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["score"][1:4] == ["3", "300", "0"] and rows["embed"][1:4] == ["1", "20", "0"]
    assert rows["top_k"][1:3] == ["60", "rows"]
    assert f"results in {tmp_path / 'out'}" in text
    assert (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--top_k", "0"], "beam-influence: --top_k 0 must be at least 1"),
        (["--damping", "-1"], "beam-influence: --damping=-1.0 must be a number of at least 0 or 'auto'"),
        (["--train", "/nowhere/*"], "beam-influence: no file matches '/nowhere/*'; check the path"),
        (["--label_feature", "target"], "beam-influence: the data has no feature 'target'"),
    ],
)
def test_wrong_options_end_with_2_and_one_message(
    job: DigitsJob, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(arguments(job, tmp_path / "out", *more)) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith(message)
    assert "Traceback" not in captured.err and captured.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "the following arguments are required: --model, --output"),
        ([], "the following arguments are required: COMMAND"),
        (["run", "--order", "up"], "--order: invalid choice: 'up'"),
        (["run", "--top_k", "many"], "--top_k: invalid int value: 'many'"),
    ],
)
def test_words_that_can_not_be_parsed(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_failed_run_ends_with_1(job: DigitsJob, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--loss", "tests.pipelines.test_launch:fails_in_the_run", "--train", job.shards("train", 1).pattern]
    assert main(arguments(job, tmp_path / "out", *options)) == 1
    error = capsys.readouterr().err
    assert "beam-influence: the run failed: " in error and "the loss has broken" in error
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_the_closing_table(finished: FinishedRun) -> None:
    lines = summary_text(finished.summary).splitlines()
    assert lines[0].split() == ["stage", "shards", "examples", "rejected", "seconds", "examples/s"]
    score = next(line for line in lines if line.startswith("score")).split()
    assert score[:4] == ["score", "3", "300", "0"]
    # Seconds and rate are of the metrics of the run.
    assert float(score[4]) > 0 and float(score[5].replace(",", "")) == pytest.approx(300 / float(score[4]), rel=0.5)
    without = dataclasses.replace(finished.summary, milliseconds={})
    assert next(line for line in summary_text(without).splitlines() if line.startswith("score")).split()[4:] == ["–", "–"]


ALL = ["", *COMMANDS, "plan", "evaluate", "report", "inspect", "clean", "export", "ensemble", "unrolled"]


@pytest.mark.parametrize("command", ALL)
def test_help_does_not_wait_for_beam_nor_tensorflow(command: str) -> None:
    """`--help` answers before seconds of imports."""
    code = f"""
import sys
from beam_influence.pipelines.cli import main
try:
    main("{command} --help".split())
except SystemExit:
    sys.exit(bool({{"apache_beam", "tensorflow", "keras"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120, stdout=subprocess.DEVNULL).returncode == 0
