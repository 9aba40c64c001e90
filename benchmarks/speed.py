"""How fast, beside what a user would have otherwise: named cases, the sides of each in turn, in processes of their own.

    last      the job over a last layer (P = 330) of 100,000 examples | NumPy in memory
    wide      the whole Gauss-Newton matrix of softmax regression, P = 7,850 | NumPy in memory
    ekfac     EK-FAC of an MLP, all 50,890 weights | kronfluence, in a Python of its own (--torch_python)
    kfac      K-FAC of the MLP | kronfluence
    dattri    EK-FAC of the MLP with a damping of 0.001 | dattri, in the same Python as kronfluence
    cnn       EK-FAC of a CNN, all 121,930 weights | kronfluence
    transformer  EK-FAC of a transformer's dense layers and attention, 32 tokens an example | kronfluence
    products  the job of `cnn` | itself with --score_tolerance 0
    stage     the scoring stage of `ekfac` | the bare loop: read, decode, forward, backward, one product, no Beam
    processes EK-FAC and self-influence of 600,000 PNG images by a small CNN, two processes of one thread | one process of one thread
    start     the command over 2,500 examples, imports and all | `--help`
    index     an index of the MLP's examples by EK-FAC, 200 numbers for each | the job of `ekfac`
    query     its test points by that index | the job of `ekfac`
    images    K-FAC of 60,000 of these images, two passes | two epochs of `model.fit` on the same files
    passes    five passes over 10,000 of these images, decoded once | decoded in each pass

A ratio is the first side's seconds over the second's in one repeat; `--against FOLDER` adds the job as another checkout has it.

    python -m benchmarks.speed CASE... [--examples 20000] [--repeats 5] [--folder out/speed] [--results benchmarks/results/speed.json]
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
from typing import Any

Measured = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
      sides: the names of two programs of `speed_sides`; the ratio is the first's over the second's.
      seconds: which number is compared: `cpu` (after imports) or `wall`.
      target: the largest ratio that is wished for; None: none is.
    """

    sides: tuple[str, str]
    seconds: str = "cpu"
    target: float | None = None


CASES = {
    "last": Case(("last_job", "last_numpy"), target=1.5),
    "wide": Case(("wide_job", "wide_numpy"), target=1.5),
    "ekfac": Case(("ekfac_job", "ekfac_kronfluence"), target=1 / 8),
    "kfac": Case(("kfac_job", "kfac_kronfluence")),
    "dattri": Case(("damped_job", "damped_dattri")),
    "cnn": Case(("cnn_job", "cnn_kronfluence"), target=1 / 4),
    "transformer": Case(("transformer_job", "transformer_kronfluence"), target=1 / 4),
    "products": Case(("cnn_job", "cnn_one_product")),
    "stage": Case(("stage_job", "stage_bare"), "wall", 1 / 0.8),
    "processes": Case(("two_processes", "one_process"), "wall", 1 / 1.7),
    "start": Case(("start_job", "start_help"), "wall"),
    "index": Case(("index_build", "ekfac_job")),
    "query": Case(("index_query", "ekfac_job")),
    "images": Case(("images_job", "images_fit"), target=1.5),
    "passes": Case(("passes_job", "passes_anew")),
}


def main() -> int:
    """Measures the cases in turn, prints a line for each side and ratio, and adds them to the file of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=tuple(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--examples", type=int, default=20_000, help="training examples of a network, up to 60,000 in steps of 2,500")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each side")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/speed"), help="where the data goes")
    parser.add_argument("--results", type=pathlib.Path, help="a JSON file to which the measurements are added")
    parser.add_argument("--torch_python", help="the Python of an environment with torch, kronfluence and dattri")
    parser.add_argument("--against", type=pathlib.Path, help="another checkout of this project, measured beside this one")
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    for name in options.cases:
        case = CASES[name]
        sides = {side: (side, pathlib.Path.cwd()) for side in case.sides}
        if options.against is not None:
            sides["against"] = (case.sides[0], options.against.resolve())
        if case.sides[1].endswith(("_kronfluence", "_dattri")) and not options.torch_python:
            print(f"{name}: without {case.sides[1]}, since --torch_python names no Python with torch, kronfluence and dattri")
            del sides[case.sides[1]]
        found: dict[str, list[Measured]] = {side: [] for side in sides}
        for _ in range(options.repeats):  # in turn, so that the machine's other work meets all alike
            for side, (program, checkout) in sides.items():
                found[side].append(measure(program, checkout, options))
        report(name, case, found, options)
    return 0


def measure(program: str, checkout: pathlib.Path, options: argparse.Namespace) -> Measured:
    """One run of a program in a process of its own, with the package as it is in `checkout`."""
    links = options.folder / f"package-{checkout.name}"
    links.mkdir(parents=True, exist_ok=True)
    if not (links / "beam_influence").is_symlink():
        (links / "beam_influence").symlink_to(checkout)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(links), str(pathlib.Path.cwd())])}
    words = [program, str(options.folder), str(options.examples), str(options.torch_python or "")]
    command = [sys.executable, "-m", "benchmarks.speed_sides", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def report(name: str, case: Case, found: dict[str, list[Measured]], options: argparse.Namespace) -> None:
    """Prints a case, and adds it to the file."""
    kept: Measured = {"case": name, "examples": options.examples, "date": datetime.date.today().isoformat()}
    kept |= {"python": platform.python_version(), "cores": os.cpu_count()}
    for side, runs in found.items():
        numbers = {key: [round(run[key], 3) for run in runs] for key in runs[0] if isinstance(runs[0][key], (int, float))}
        kept[side] = numbers
        told = "  ".join(f"{key} {min(values):,.2f} (median {statistics.median(values):,.2f})" for key, values in numbers.items())
        print(f"{name:<10} {side:<18} {told}")
    first = found[case.sides[0]]
    for other in [side for side in found if side != case.sides[0]]:
        ratios = [a[case.seconds] / b[case.seconds] for a, b in zip(first, found[other], strict=True)]
        kept[f"ratio to {other}"] = [round(ratio, 3) for ratio in ratios]
        wished = f", wished for: {case.target:.3g} at most" if case.target is not None and other == case.sides[1] else ""
        least, middle = min(ratios), statistics.median(ratios)
        print(f"{name:<10} {case.seconds} of {case.sides[0]} / {other}: {least:.3g} at least, {middle:.3g} in the median{wished}")
        tops = [(a["top"], b["top"]) for a, b in zip(first, found[other], strict=True) if a.get("top") and b.get("top")]
        if tops:
            shared = statistics.mean(len(set(mine) & set(theirs)) / len(mine) for a, b in tops for mine, theirs in zip(a, b, strict=True))
            kept[f"top-k shared with {other}"] = round(shared, 4)
            print(f"{name:<10} {shared:.2%} of the top {len(tops[0][0][0])} are the same", flush=True)
    results = options.results
    if results is not None:
        results.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(results.read_text()) if results.exists() else []
        results.write_text(json.dumps([*before, kept], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
