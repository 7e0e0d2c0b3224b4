"""Several passes at once give the same results in the same order, and change nothing else."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

import minibert
from minibert import engine
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
