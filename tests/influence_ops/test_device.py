"""What is set for a GPU, by a faked list of devices: these machines have none."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import keras
import pytest
import tensorflow as tf

from beam_influence.influence_ops import device


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[list[tuple[str, Any]]]:
    """Two GPUs, and what was asked of TensorFlow, in order."""
    asked: list[tuple[str, Any]] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["gpu-a", "gpu-b"] if kind == "GPU" else [])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, kind=None: asked.append(("visible", list(devices))))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, on: asked.append(("growth", (gpu, on))))
    yield asked
    device.release_gpu()


def configure(threads: int = 0) -> str:
    return device.configure_tensorflow.__wrapped__(threads)  # each call as a process of its own would


def test_one_gpu_with_memory_growth(settings: list[tuple[str, Any]]) -> None:
    assert configure() == "GPU:0"
    assert settings == [("visible", ["gpu-a"]), ("growth", ("gpu-a", True))]


def test_each_process_has_its_own(settings: list[tuple[str, Any]], tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another process holds the first GPU, then both; when one ends, its GPU is free."""
    program = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    others = []

    def hold(number: int) -> None:
        path = tmp_path / f"beam-influence-{os.getuid()}-{visible}-gpu-{number}.lock"
        other = subprocess.Popen([sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        others.append(other)
        assert other.stdout is not None and other.stdout.readline() == b"held\n"

    try:
        hold(0)
        assert configure() == "GPU:1"
        assert settings[-2:] == [("visible", ["gpu-b"]), ("growth", ("gpu-b", True))]
        device.release_gpu()
        hold(1)
        assert configure() == "CPU"
        assert settings[-1] == ("visible", [])
        assert "used by another process" in caplog.text
        others[0].communicate(b"\n", timeout=30)
        assert configure() == "GPU:0"
    finally:
        for other in others:
            other.kill()
            other.communicate()


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
    assert configure() == "CPU"


def test_an_initialised_runtime_is_left_alone(settings: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", refuse)
    assert configure() == "GPU:0"


def test_no_lower_precision(settings: list[tuple[str, Any]]) -> None:
    tf.config.experimental.enable_tensor_float_32_execution(True)
    configure()
    assert not tf.config.experimental.tensor_float_32_execution_enabled()
    assert keras.config.dtype_policy().name == "float32"
    assert not tf.config.optimizer.get_experimental_options().get("auto_mixed_precision", False)
