"""What `export --to spotlight` writes is opened by Renumics Spotlight, in an environment of its own, and asked for as its page does."""

from __future__ import annotations

import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from beam_influence.pipelines.cli import main
from tests.environments import install_command
from tests.pipelines.conftest import FinishedRun

OPEN = """
import json, sys, urllib.request
from renumics import spotlight

viewer = spotlight.show(sys.argv[1], wait=False, no_browser=True, analyze=False)
address = f"http://127.0.0.1:{viewer.port}/api/table/"
table = json.load(urllib.request.urlopen(address))
cell = urllib.request.urlopen(f"{address}picture/7?generation_id={table['generation_id']}").read()
columns = {column["name"]: (column["dtype"]["name"], column["values"]) for column in table["columns"]}
print(json.dumps({"columns": columns, "picture": list(cell)}))
viewer.close()
"""


def test_spotlight_shows_the_examples(finished: FinishedRun, tmp_path: pathlib.Path) -> None:
    frame = tmp_path / "examples.parquet"
    assert main(["export", str(finished.output), "--output", str(frame), "--to", "spotlight"]) == 0
    with tempfile.TemporaryDirectory() as folder:  # 1.1 GB
        python = pathlib.Path(folder) / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=300)
        before, after = install_command(python)
        needed = ["install", "-q", "--no-deps", "-r", str(pathlib.Path(__file__).with_name("spotlight.txt"))]
        subprocess.run([*before, *needed, *after], check=True, timeout=600)
        environment = {**os.environ, "HOME": str(tmp_path), "SPOTLIGHT_OPT_OUT": "1"}
        opened = subprocess.run([str(python), "-c", OPEN, str(frame)], capture_output=True, text=True, timeout=300, env=environment)
        assert opened.returncode == 0, opened.stderr[-2000:]
    shown = json.loads(opened.stdout.splitlines()[-1])
    types = {name: type_ for name, (type_, _) in shown["columns"].items()}
    assert types["picture"] == "Image" and types["label"] == "int" and types["influence"] == "float" and types["train_id"] == "str"
    written = pd.read_parquet(frame)
    for name in ("train_id", "label", "digit"):
        assert shown["columns"][name][1] == list(written[name])
    assert shown["columns"]["influence"][1] == pytest.approx(list(written.influence))
    seen, sent = (np.asarray(Image.open(io.BytesIO(data))) for data in (bytes(shown["picture"]), written.picture[7]))  # encoded anew
    np.testing.assert_array_equal(seen, sent)
