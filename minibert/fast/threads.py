"""Several forward passes at once on a CPU, a thread for each, instead of all threads on each pass.

Threads that share a pass wait for one another after each of its many kernels, and read what another
core has written. A thread with a pass of its own does neither.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`map(work, items)` on as many threads as torch uses, each of which computes by itself.

    Where they would have fewer than two items each, these are worked on one after another by all
    threads together. After an error, or where results are no longer asked for, none is begun.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(items) < 2 * threads:
        yield from map(work, items)
        return
    results = [pool_of(threads, os.getpid()).submit(work, item) for item in items]
    try:
        for result in results:
            yield result.result()
    finally:
        for result in results:
            result.cancel()


@cache
def pool_of(threads: int, process: int) -> ThreadPoolExecutor:
    """So many threads of this process (a forked one has none of its parent's), until it ends.

    A new thread would have to ask the kernel for all its memory anew.
    """
    begun = Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # its first call in a thread undoes what has been set there
        torch.set_num_threads(1)
        begun.wait()

    pool = ThreadPoolExecutor(threads, "minibert", begin)
    for _ in range(threads):
        pool.submit(int)  # begins one more: none has come past the barrier
    begun.wait()
    torch.set_num_threads(threads)  # threads that begin later have what was set last
    return pool
