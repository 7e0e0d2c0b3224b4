"""Several forward passes at once on a CPU: each thread has its own pass.

Threads that share a pass wait for each other after each of its many kernels, and they read data
that another core has written. A thread with its own pass does neither.
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
    """`map(work, items)` on as many threads as torch uses. Each thread works on its own item.

    If there are fewer than two items per thread, all threads together work on one item after
    another. After an error, or when the caller stops early, no further item is started.
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
    """The threads of this process. They live until it ends, because a new thread would have to
    request all its memory from the kernel again. A forked process needs threads of its own.
    """
    begun = Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # its first call in a thread would undo the next line
        torch.set_num_threads(1)
        begun.wait()

    pool = ThreadPoolExecutor(threads, "minibert", begin)
    for _ in range(threads):
        pool.submit(int)  # starts one more thread, because all others wait at the barrier
    begun.wait()
    torch.set_num_threads(threads)  # threads that start later use the value that was set last
    return pool
