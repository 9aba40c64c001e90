"""Shared settings of all tests: which are slow, and how they are shared out among processes."""

from __future__ import annotations

import gc
import os
import pathlib
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
gc.disable()  # until all tests are imported

FOLDER = pathlib.Path(__file__).parent
SLOW = FOLDER / "slow.txt"
# Their tests share a server, so one process runs them all; they last longest, so they come first.
SHARING = ("engines", "stores")


class ByFile(LoadScopeScheduling):
    """The tests of a file in one process, so that they share what its fixtures made."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::")[0]
        return next((folder for folder in SHARING if f"/{folder}/" in path), path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are cores, since some tests wait for servers; no more than eight, each of which takes 2 GiB."""
    return min(len(os.sched_getaffinity(0)) + 2, 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `slow.txt` lists, and puts the tests first that take longest."""
    slow = set(SLOW.read_text(encoding="utf-8").split("\n"))
    for item in items:
        if item.nodeid in slow:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.parent.name not in SHARING)
    gc.freeze()  # what is imported by now stays; a full collection need not go through it again and again
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.freeze()  # the process ends
