"""Every line that installs something: what it installs is listed whole, and what is released tomorrow can't change or break it."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import itertools
import pathlib
import re
import shlex
import subprocess
import sys
import zipfile

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = pathlib.Path(__file__).parents[1]
TEMPLATES = ROOT / "dataflow_templates"
IMAGES = ("dataflow_templates/Dockerfile", "dataflow_templates/Dockerfile.gpu")
FILES = ("README.md", "docs/get_started.md", "docs/tfx.md", ".ci/audit", ".ci/docs", *IMAGES)
# What TFX pins otherwise (docs/tfx.md).
OVERRIDDEN = {"ml-metadata": {"attrs", "protobuf"}, "ml-pipelines-sdk": {"ml-metadata"}}
# The first release of each without the holes that were known in November 2026; those of Keras are in what reads a `.keras` file.
WITHOUT_KNOWN_HOLES = {
    "keras": "3.15.1",  # CVE-2025-8747, -49655, -12058, -12060, CVE-2026-0897, -1669, -1462, -12480; archive bombs: 3.15.1
    "pyarrow": "23.0.1",  # CVE-2023-47248, CVE-2024-52338 (R), CVE-2026-25087
    "tqdm": "4.66.3",  # CVE-2024-34062
    "scikit-learn": "1.5",  # CVE-2024-5206
    "pytest": "9.0.3",  # CVE-2025-71176
    "setuptools": "78.1.1",  # CVE-2024-6345, CVE-2025-47273
}


def install_lines() -> list[tuple[str, list[str]]]:
    """Each `pip install` and `uv pip install` that README, documents, images and CI have, with the program's options; what is resolved anew
    is not ours to pin."""
    found = []
    for name in FILES:
        text = re.sub(r"\\\n\s*", " ", (ROOT / name).read_text())
        for line in re.findall(r"^[^#\n]*pip\"? install .*$", text, re.MULTILINE):
            for command in line.split("&&"):
                if "pip" in command and " install " in command and "--override" not in command:
                    program, options = command.split(" install ", 1)
                    found.append((name, ["uv" if "uv pip" in program else "pip", *shlex.split(options.strip().strip("`"))]))
    return found


def pins(path: pathlib.Path) -> dict[str, str]:
    entries = re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)", path.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in entries}


def lists(words: list[str]) -> list[pathlib.Path]:
    """The files that follow `-r`; in an image they lie in /template."""
    named = [word for option, word in itertools.pairwise(words) if option == "-r"]
    folders = (ROOT, TEMPLATES)
    return [next(path for folder in folders if (path := folder / name.removeprefix("/template/")).exists()) for name in named]


def with_list() -> list[tuple[str, list[str]]]:
    return [(name, words) for name, words in install_lines() if "-r" in words]


def test_every_install_line_is_found() -> None:
    counted = {name: len([other for other, _ in install_lines() if other == name]) for name in FILES}
    assert counted == {
        "README.md": 6,
        "docs/get_started.md": 2,
        "docs/tfx.md": 3,
        ".ci/audit": 1,
        ".ci/docs": 1,
        "dataflow_templates/Dockerfile": 3,
        "dataflow_templates/Dockerfile.gpu": 3,
    }
    used = {path.name for _, words in install_lines() for path in lists(words)}
    listed = [*ROOT.glob("requirements*.txt"), *TEMPLATES.glob("requirements*.txt"), *(ROOT / ".ci").glob("requirements*.txt")]
    assert used == {path.name for path in listed}
    # What has no list is only this package: in an image, or by the newest of everything (docs/tfx.md).
    without = [words for _, words in install_lines() if "-r" not in words]
    assert all(words[-1] in ("/template/source", ".[tfx]") for words in without) and len(without) == 3


def wheel(folder: pathlib.Path, name: str, version: str, *requires: str) -> str:
    """An empty distribution; returns its SHA-256."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    metadata = "".join([f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", *(f"Requires-Dist: {one}\n" for one in requires)])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{about}/METADATA", metadata)
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def tomorrow(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What is listed, of which one part asks for more than the list has; and what is released tomorrow."""
    folder = tmp_path_factory.mktemp("tomorrow")
    hashes = {"first==1.0": wheel(folder, "first", "1.0", "second>=1", "third>=1"), "second==1.0": wheel(folder, "second", "1.0")}
    for name in ("second", "third"):
        wheel(folder, name, "2.0")
    (folder / "hashed.txt").write_text("".join(f"{pin} --hash=sha256:{digest}\n" for pin, digest in hashes.items()))
    (folder / "pinned.txt").write_text("first==1.0\n")
    return folder


def dry_run(tomorrow: pathlib.Path, name: str, program: str, options: list[str]) -> str:
    """What would be installed, or why nothing."""
    programs = {
        "pip": [sys.executable, "-m", "pip", "install", "--ignore-installed", "--disable-pip-version-check"],
        "uv": [sys.executable, "-m", "uv", "pip", "install", "-p", sys.executable, "--reinstall"],
    }
    command = [*programs[program], "--dry-run", "--no-index", "--find-links", str(tomorrow)]
    options = [option for option in options if option != "--compile"]
    done = subprocess.run([*command, *options, "-r", str(tomorrow / name)], capture_output=True, text=True, timeout=120)
    told = re.findall(r"^Would install (.*-.*)$" if program == "pip" else r"^ \+ (.*)$", done.stdout + done.stderr, re.MULTILINE)
    return " ".join(told).replace("==", "-") if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("line", sorted({(words[0], *(w for w in words if w.startswith("--"))) for _, words in with_list()}), ids=" ".join)
def test_a_release_of_tomorrow_changes_nothing(tomorrow: pathlib.Path, line: tuple[str, ...]) -> None:
    """With the options of each line that has a list: what the list doesn't have is not looked for."""
    program, *options = line
    if not options:  # only what needs nothing
        alone = [path for _, words in with_list() if "--no-deps" not in words for path in lists(words)]
        assert {tuple(pins(path)) for path in alone} == {("setuptools", "uv")}
        return
    assert dry_run(tomorrow, "hashed.txt", program, options) == "first-1.0 second-1.0"
    assert dry_run(tomorrow, "pinned.txt", program, [option for option in options if option != "--require-hashes"]) == "first-1.0"
    # Without --no-deps more is looked for: pip refuses it where there are hashes, and else it gets in.
    others = [option for option in options if option not in ("--no-deps", "--require-hashes")]
    assert program == "uv" or "third" in dry_run(tomorrow, "hashed.txt", program, others)
    assert dry_run(tomorrow, "pinned.txt", program, others) == "first-1.0 second-2.0 third-2.0"


def test_nothing_is_fetched_to_build() -> None:
    for name, words in with_list():
        names = {package for path in lists(words) for package in pins(path)}
        assert "google-apitools" not in names or "--no-build-isolation" in words, (name, words)  # it comes without a wheel
    (built,) = re.findall(r'requires = \["setuptools==(.+)"\]', (ROOT / "pyproject.toml").read_text())
    listed = [path for _, words in with_list() for path in lists(words) if "setuptools" in pins(path)]
    assert listed and {pins(path)["setuptools"] for path in listed} == {built}


def own_requirements(*extras: str) -> list[Requirement]:
    """What setup.py says as it stands, whatever was installed from it."""
    (call,) = re.findall(r"^setup\(.*\)$", (ROOT / "setup.py").read_text(), re.MULTILINE | re.DOTALL)
    given = {one.arg: one.value for one in ast.walk(ast.parse(call)) if isinstance(one, ast.keyword)}
    optional = ast.literal_eval(given["extras_require"])
    texts = [*ast.literal_eval(given["install_requires"]), *(text for extra in extras or optional for text in optional[extra])]
    return [Requirement(text) for text in texts]


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def applies(marker: Marker | None, extras: frozenset[str]) -> bool:
    here = {"python_version": "3.11", "python_full_version": "3.11.0", "sys_platform": "linux", "platform_system": "Linux"}
    return marker is None or any(marker.evaluate({**here, "extra": extra}) for extra in ("", *extras))


def lacking(path: pathlib.Path, wanted: list[Requirement]) -> list[str]:
    """What these requirements, and those of what the list has for them, ask for and the list does not have.

    What a listed release asks for is known where it is the installed one: not of CUDA's wheels and TFX's, which ask for each other only.
    """
    pinned, seen, found = pins(path), set(), []
    queue = [("beam-influence", one) for one in wanted]
    while queue:
        asker, one = queue.pop()
        name, extras = canonicalize_name(one.name), frozenset(one.extras)
        if name in OVERRIDDEN.get(asker, ()):
            continue
        if name not in pinned or not one.specifier.contains(pinned[name], prereleases=True):
            found.append(f"{asker} asks for {one}, and {path.name} has {pinned.get(name)}")
        elif (name, extras) not in seen:
            seen.add((name, extras))
            asked = importlib.metadata.requires(name) if installed(name) == pinned[name] else None
            queue += [(name, other) for other in map(Requirement, asked or ()) if applies(other.marker, extras)]
    return found


@pytest.mark.parametrize(
    ("path", "extras"),
    [
        (ROOT / "requirements.txt", ("test", "report", "cli", "duckdb", "gcp")),
        (ROOT / "requirements-tfx.txt", ("test", "tfx", "report")),
        (TEMPLATES / "requirements.txt", ("gcp",)),
        (TEMPLATES / "requirements-gpu.txt", ("gcp",)),
    ],
    ids=lambda value: value.name if isinstance(value, pathlib.Path) else "",
)
def test_every_list_is_whole(path: pathlib.Path, extras: tuple[str, ...]) -> None:
    other = [name for name, version in pins(ROOT / "requirements.txt").items() if installed(name) not in (version, None)]
    if other:
        pytest.skip(f"what is installed here is not what is listed, so what that asks for is not known: {', '.join(other)}")
    own = own_requirements(*extras)
    if path.name == "requirements-gpu.txt":
        own.append(Requirement("tensorflow[and-cuda]"))
    assert lacking(path, own) == []


def test_a_gap_in_a_list_is_found(tmp_path: pathlib.Path) -> None:
    whole = (ROOT / "requirements.txt").read_text()
    (tmp_path / "gap.txt").write_text(re.sub(r"^h5py==.*\n", "", whole, flags=re.MULTILINE))
    found = lacking(tmp_path / "gap.txt", [Requirement("tensorflow>=2")])
    assert any("h5py" in one for one in found)


def test_no_floor_has_a_known_hole() -> None:
    for one in own_requirements():
        if one.name in WITHOUT_KNOWN_HOLES:
            (floor,) = (part.version for part in one.specifier if part.operator == ">=")
            assert Version(floor) >= Version(WITHOUT_KNOWN_HOLES[one.name]), f"setup.py allows {one}"
    for path in {path for _, words in with_list() for path in lists(words)}:
        for name, version in pins(path).items():
            assert Version(version) >= Version(WITHOUT_KNOWN_HOLES.get(name, "0")), f"{path.name}: {name} {version}"
