"""What does the inverse of a P × P matrix cost, by its eigenvalues and by a Cholesky factor? `gauss_newton` of a last layer, 10 classes.

The statistic, of some examples with random features, is made first and not measured. Each operator is made in a process of its own, and
solves for 100 gradients; the two answers are compared.

    python -m benchmarks.operator [--sizes 2000,7850]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import keras
import numpy as np

from beam_influence import FinishOptions, InfluenceModel
from beam_influence.influence_ops.curvature import curvature_by_name
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

CLASSES = 10
EXAMPLES = 512
GRADIENTS = 100


def main() -> int:
    """Measures each size, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="2000,7850", help="numbers of weights, multiples of 10, separated by commas")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(**json.loads(arguments.child))))
        return 0
    print(f"{'P':>7}  {'operator':<10}{'wall s':>8}{'CPU s':>8}{'solving, CPU s':>16}{'peak MiB more':>15}{'differs by':>12}")
    for size in map(int, arguments.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            reference: np.ndarray | None = None
            for spectrum in (True, False):
                path = str(pathlib.Path(folder) / f"{spectrum}.npy")
                child = json.dumps({"size": size, "spectrum": spectrum, "path": path})
                command = [sys.executable, "-m", "benchmarks.operator", "--child", child]
                found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
                solved = np.load(path)
                differs = "" if reference is None else f"{np.abs(solved - reference).max() / np.abs(reference).max():.1e}"
                reference = solved
                times = f"{found['wall']:>8.1f}{found['cpu']:>8.1f}{found['solving']:>16.1f}"
                print(f"{size:>7,}  {found['kind']:<10}{times}{found['peak']:>15,.0f}{differs:>12}", flush=True)
    return 0


def measure(size: int, spectrum: bool, path: str) -> dict[str, Any]:
    """One operator's cost; its answers go to `path`."""
    random = np.random.default_rng(0)
    features = size // CLASSES - 1
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((features,)), keras.layers.Dense(CLASSES)])
    model = InfluenceModel(network, loss_function="softmax_cross_entropy", precision="float64", weight_decay=1e-4)
    ids = np.array([f"a:{row}" for row in range(EXAMPLES)], dtype=object)
    inputs = random.standard_normal((EXAMPLES, features)) * np.geomspace(1, 0.01, features)
    batch = ExampleBatch(ids, inputs, random.integers(0, CLASSES, EXAMPLES))
    curvature = curvature_by_name("gauss_newton")
    statistic = curvature.create(model)
    for rows in np.array_split(np.arange(EXAMPLES), 8):
        statistic = curvature.add(model, statistic, batch.select(rows))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    operator = curvature.finish(model, statistic, FinishOptions("auto", spectrum=spectrum))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    solving = time.process_time()
    np.save(path, operator.apply(random.standard_normal((GRADIENTS, model.size))))
    solving = time.process_time() - solving
    return {"kind": operator.kind, "wall": wall, "cpu": cpu, "solving": solving, "peak": peak / 1024}


if __name__ == "__main__":
    sys.exit(main())
