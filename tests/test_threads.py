"""Several passes at once give the same results in the same order, and change nothing else."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from machine import HANG

import minibert
from minibert import engine
from minibert.fast import threads as fast_threads
from minibert.fast.threads import side_by_side


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_each_item_has_a_thread_of_its_own(three_threads):
    """At least three work at a time, or the barrier breaks. Each computes with one thread."""
    together = threading.Barrier(3)

    def work(item: int) -> tuple[int, int, str]:
        together.wait(timeout=60)
        return item * item, torch.get_num_threads(), threading.current_thread().name

    squares, threads, names = zip(*side_by_side(work, range(9)), strict=True)
    assert squares == tuple(k * k for k in range(9))
    assert set(threads) == {1} and len(set(names)) == 3
    seen: list[int] = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert torch.get_num_threads() == 3 and seen == [3]


def pool_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("minibert")}


def test_starting_the_pool_changes_no_other_thread(three_threads, monkeypatch):
    """Not even for a moment: a thread that starts in this moment would keep the number."""
    torch.set_num_threads(2)
    list(side_by_side(abs, range(9)))
    torch.set_num_threads(3)
    numbers: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    list(side_by_side(abs, range(9)))
    assert not numbers and torch.get_num_threads() == 3


def test_a_pool_of_another_size_ends(three_threads):
    list(side_by_side(abs, range(9)))
    before = pool_threads()
    torch.set_num_threads(4)
    assert list(side_by_side(abs, range(9))) == list(range(9))
    for thread in before:
        thread.join(timeout=HANG)
    assert 1 <= len(pool_threads()) <= 4


def test_two_callers_at_once_share_one_pool(three_threads, monkeypatch):
    """Also if both are the first."""
    together = threading.Barrier(2)

    class Slow(ThreadPoolExecutor):
        def __init__(self, *arguments: Any) -> None:
            pools.append(self)
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(timeout=1)  # time for the other caller to make a pool too
            super().__init__(*arguments)

    pools: list[ThreadPoolExecutor] = []
    monkeypatch.setattr(fast_threads, "ThreadPoolExecutor", Slow)
    torch.set_num_threads(5)  # no earlier pool has this size
    results: list[list[int]] = []

    def call() -> None:
        torch.set_num_threads(5)
        results.append(list(side_by_side(abs, range(-20, 0))))

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=HANG)
    assert results == [list(range(20, 0, -1))] * 2 and len(pools) == 1


def test_ctrl_c_while_the_pool_starts_leaves_no_thread_behind():
    """The interrupted process still works, and it ends."""
    script = """
from concurrent.futures import ThreadPoolExecutor
import torch
from minibert.fast.threads import side_by_side
torch.set_num_threads(3)
submit, calls = ThreadPoolExecutor.submit, []
def interrupted(*arguments):
    calls.append(arguments)
    if len(calls) == 2:
        raise KeyboardInterrupt
    return submit(*arguments)
ThreadPoolExecutor.submit = interrupted
try:
    list(side_by_side(abs, range(-8, 0)))
except KeyboardInterrupt:
    print("interrupted")
assert list(side_by_side(abs, range(-8, 0))) == list(range(8, 0, -1))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=HANG
    )
    assert done.stdout == "interrupted\n"


@pytest.mark.parametrize("direct", [True, False])
def test_every_library_computes_with_one_thread(three_threads, monkeypatch, direct):
    """OpenMP and MKL. Also where their own functions are out of reach, as on Windows."""
    if not direct:
        monkeypatch.setattr(fast_threads, "OWN_THREAD_COUNTS", [])
    torch.set_num_threads(6)  # no earlier pool has this size
    together = threading.Barrier(6)

    def work(item: int) -> list[str]:
        together.wait(timeout=HANG)
        lines = torch.__config__.parallel_info().splitlines()
        return [line.split(" : ")[1] for line in lines if re.search(r"get_(num|max)_threads", line)]

    try:
        for counts in side_by_side(work, range(12)):
            assert counts and set(counts) == {"1"}
        seen: list[int] = []
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert torch.get_num_threads() == 6 and seen == [6]
    finally:
        torch.set_num_threads(3)
        list(side_by_side(abs, range(9)))  # so that the other case gets a pool of its own


@pytest.mark.parametrize(("threads", "items"), [(1, 9), (3, 5), (3, 0)])
def test_few_items_and_one_thread_stay_where_they_are(three_threads, threads, items):
    torch.set_num_threads(threads)
    where = list(side_by_side(lambda _: threading.current_thread(), range(items)))
    assert where == [threading.current_thread()] * items


def test_an_error_ends_it(three_threads):
    """Waiting items are not started: at most the first two and one per thread have started."""
    begun: list[int] = []
    heard = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise ValueError("one")
        if item > 1:
            heard.wait(timeout=60)  # otherwise all could be done before the error arrives
        return item

    with pytest.raises(ValueError, match="one"):
        list(side_by_side(work, range(1000)))
    heard.set()
    assert list(side_by_side(abs, range(-6, 0))) == [6, 5, 4, 3, 2, 1]  # the threads still work
    assert len(begun) <= 5


def test_answers_are_those_of_one_pass_after_another(three_threads, field_notes, monkeypatch):
    """Except for rounding: with another number of threads a kernel may sum in another order."""
    qa = minibert.QuestionAnswerer.from_pretrained(precision="fp32")
    qa.batch_size = 1
    pairs = [(example.question, example.context) for example in field_notes[:40]]
    counts: list[int] = []
    together = list(qa.answer_examples(field_notes[:40], on_batch=counts.append))
    assert sum(counts) >= 40 and len(counts) > 6  # windows; passes
    assert [best[0] for best in together] == list(qa.answer_many(pairs))
    monkeypatch.setattr(engine, "side_by_side", map)
    for [a], b in zip(together, qa.answer_many(pairs), strict=True):
        assert (a.answer, a.start, a.end) == (b.answer, b.start, b.end)
        assert a.score == pytest.approx(b.score, abs=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own():
    script = """
import os, torch
from minibert.fast.threads import side_by_side
torch.set_num_threads(2)
assert list(side_by_side(abs, range(-8, 0)))[0] == 8
child = os.fork()
if child == 0:
    os._exit(list(side_by_side(abs, range(-8, 0)))[0])
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 8
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)
