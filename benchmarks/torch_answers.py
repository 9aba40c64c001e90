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
    arrays, answer = folder / f"arrays-{examples}.npz", folder / f"{system}.json"
    if not arrays.exists():
        _write_arrays(network, folder, examples, arrays)
    program = str(pathlib.Path(__file__).with_name("torch_side.py"))
    words = [system, strategy, str(DATTRI_DAMPING), network, str(arrays), str(networks.TOP_K), str(answer)]
    subprocess.run([python, "-P", program, *words], check=True, stdout=sys.stderr, env={})  # -P: it must not find operator.py beside it
    return json.loads(answer.read_text())


def _write_arrays(network: str, folder: pathlib.Path, examples: int, path: pathlib.Path) -> None:
    from beam_influence.influence_ops import device

    device.configure_tensorflow()
    import keras
    import numpy as np

    networks.make(network, folder)
    draw = networks.draw_sequences if network == "transformer" else networks.draw_images
    x, y = draw(np.random.default_rng(5), networks.TRAIN + networks.TEST)  # as `networks.make` draws them
    model: Any = keras.models.load_model(folder / "model.keras")
    weights = {f"weight-{number}": np.asarray(weight) for number, weight in enumerate(model.get_weights())}
    tested = {"test-x": x[-networks.TEST :], "test-y": y[-networks.TEST :], "logits": np.asarray(model(x[-networks.TEST :]))}
    np.savez(path, **{"train-x": x[:examples], "train-y": y[:examples], **tested, **weights})
