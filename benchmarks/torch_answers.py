"""What kronfluence and dattri answer, run by a Python that has them; see `torch_side`."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

from benchmarks import networks

DATTRI_DAMPING = 1e-3


def answer_of(python: str, folder: pathlib.Path, examples: int, system: str, strategy: str, network: str) -> dict[str, Any]:
    """What it took, and the first training examples of each test point.

    Args:
      python: the interpreter of an environment with torch.
      folder: with the network's data.
      examples: how many training examples.
      system: `kronfluence` or `dattri`.
      strategy: `ekfac` or `kfac`.
      network: one of `networks.BATCH`.
    """
    arrays, answer = networks.arrays(network, folder, examples), folder / f"{system}.json"
    program = str(pathlib.Path(__file__).with_name("torch_side.py"))
    words = [system, strategy, str(DATTRI_DAMPING), network, str(arrays), str(networks.TOP_K), str(answer)]
    subprocess.run([python, "-P", program, *words], check=True, stdout=sys.stderr, env={})  # -P: it must not find operator.py beside it
    return json.loads(answer.read_text())
