"""Several forward passes at once on a CPU: each thread has its own pass.

Threads that share a pass wait for each other after each of its many kernels, and they read data
that another core has written. A thread with its own pass does neither.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

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
    results: list[Future[Result]] = []
    try:
        with POOL.lock:  # so that no other caller ends the pool in the meantime
            pool = POOL.of(threads)
            results.extend(pool.submit(work, item) for item in items)
        for result in results:
            yield result.result()
    finally:
        for result in results:
            result.cancel()


class Pool:
    """The threads that work side by side. Each thread computes alone.

    They live until the number of threads changes, because a new thread would have to request all
    its memory from the kernel again.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin without threads. A forked process has none of its parent's threads."""
        self.lock = threading.Lock()  # for `of`, and until all work is submitted
        self.size = 0
        self.executor: ThreadPoolExecutor | None = None

    def of(self, size: int) -> ThreadPoolExecutor:
        """A pool of this many threads. A pool of another size ends after its work."""
        if self.executor is None or self.size != size:
            before = self.executor
            self.executor = ThreadPoolExecutor(size, "minibert", compute_alone, (size,))
            self.size = size
            if before is not None:
                before.shutdown(wait=False)
        return self.executor


def own_thread_counts() -> list[Callable[[int], Any]]:
    """The functions of OpenMP and MKL that set the number of threads for the calling thread.

    Empty if torch's libraries do not give access to them, as on Windows.
    """
    names = ["omp_set_num_threads"]
    if torch._C.has_mkl:
        names.append("MKL_Set_Num_Threads_Local")
    try:
        library = ctypes.CDLL(torch._C.__file__)
        return [getattr(library, name) for name in names]
    except (OSError, AttributeError):
        return []


OWN_THREAD_COUNTS = own_thread_counts()


def compute_alone(threads: int) -> None:
    """Let the calling thread compute with one thread. All other threads use `threads`."""
    torch.get_num_threads()  # its first call in a thread sets the count, so it must come first
    for set_own_count in OWN_THREAD_COUNTS:
        set_own_count(1)
    if not OWN_THREAD_COUNTS:
        # Torch also sets the number for all threads that start later, so a second thread sets it
        # back. A thread that starts in between would compute with one thread.
        torch.set_num_threads(1)
        other = threading.Thread(target=torch.set_num_threads, args=(threads,))
        other.start()
        other.join()


POOL = Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.forget)
