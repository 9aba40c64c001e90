"""Writes `slow.txt`, the tests that take long, from the times of a run:

    .venv/bin/python -m pytest -n auto --junitxml=out/tests.xml
    .venv/bin/python -m tests.slow_tests out/tests.xml
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree

from tests.conftest import FOLDER, SLOW

SECONDS = 1.0


def slow_tests(report: str) -> list[str]:
    """The node ids of the tests of a JUnit report that took longer than `SECONDS`, fixtures included."""
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if float(case.get("time", "0")) > SECONDS:
            module = (case.get("classname") or "").partition("tests.")[2].replace(".", "/")
            found.append(f"tests/{module}.py::{case.get('name')}")
    return sorted(found)


if __name__ == "__main__":
    listed = slow_tests(sys.argv[1])
    SLOW.write_text("\n".join(listed) + "\n", encoding="utf-8")
    print(f"{len(listed)} tests take more than {SECONDS:g} s; written to {SLOW.relative_to(FOLDER.parent)}")
