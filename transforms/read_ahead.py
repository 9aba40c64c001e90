"""Work that is done while what it gave before is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def read_ahead(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """The items in their order, made by one thread of its own that is at most `depth` of them ahead; an error comes in its place.

    When it is closed early the thread ends, after the item that it is at.
    """
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="read_ahead")
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)
