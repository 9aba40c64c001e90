"""Calls to a file system that wait for an answer most of their time, many at once."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = 32
"""Calls at once: what object stores take from one client without refusing some."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item], threads: int = THREADS) -> Iterator[Result]:
    """`function(item)` for each item, in their order.

    At most 2 × `threads` items and results are held, however many there are. Whoever stops early ends the calls that have not begun.

    Raises:
      What `function` raises, in its item's turn.
    """
    waiting: collections.deque[Future[Result]] = collections.deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="in_parallel") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
