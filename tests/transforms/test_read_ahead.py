"""One thread ahead: order, bound, errors, and its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from beam_influence.transforms.read_ahead import read_ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read_ahead")]


def test_items_come_in_order_and_at_most_two_ahead() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(7):
            made.append(number)
            yield number

    used = []
    for item in read_ahead(items(), 2):
        used.append(item)
        time.sleep(0.01)
        assert len(made) <= len(used) + 2
    assert used == made == list(range(7)) and not threads()


def test_work_and_use_take_turns_in_time() -> None:
    """The next item is made while one is used: a thread that only ran when asked would never be at the third."""
    third = threading.Event()

    def items() -> Iterator[int]:
        yield from (0, 1)
        third.set()
        yield 2

    reading = read_ahead(items(), 2)
    assert next(reading) == 0 and third.wait(10)
    assert list(reading) == [1, 2]


def test_an_error_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    reading = read_ahead(items(), 2)
    assert next(reading) == 1
    with pytest.raises(OSError, match="no more"):
        next(reading)
    assert not threads()


def test_it_ends_when_its_user_stops() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    reading = read_ahead(items(), 2)
    next(reading)
    assert len(threads()) == 1
    reading.close()
    assert not threads()
    del reading
    assert closed.wait(10)  # an open file is closed
