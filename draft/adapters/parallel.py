"""Work on one module after the other, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

# More would wait for memory, which all cores share.
_MOST = 8

T = TypeVar("T")
R = TypeVar("R")


def each(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Do the same to many things, on as many cores as torch may use.

    A module's tensors are so small that torch's own threads mostly wait for each other; these, each of which computes
    with one thread, do not.

    Args:
        work: What to do; it is called from several threads at once.
        items: What to do it to.

    Yields:
        The results in the order of the items; the first error ends it, and what has not begun is not done.
    """
    items, threads = list(items), torch.get_num_threads()
    workers = min(threads, _MOST, len(items))
    if workers < 2:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        torch.set_num_threads(1)
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
