"""What must not take long beside the model: by turns, medians; `-s` prints the figures."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_features import reference_windows

import minibert
from minibert.reader import BUNDLED
from minibert.spans import WindowLogits

pytestmark = pytest.mark.slow


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def test_search_over_all_of_dev(squad, monkeypatch):
    """From logits to the 20 best answers of each of 10,570 questions: 3 s. The values of the logits
    don't matter to the search, so they are random."""
    examples = minibert.load_squad(squad, "validation")
    tokenizer = minibert.Tokenizer.from_pretrained(BUNDLED)
    windows = minibert.prepare_features(examples, tokenizer, 384, 128, 64)
    assert len(windows) == 10_784
    generator = np.random.default_rng(0)
    logits = []
    for window in windows:
        tokens = window.token_end - window.token_start + 1
        start, end = generator.normal(size=(2, tokens)).astype(np.float32)
        logits.append(WindowLogits(window.token_start, start, end))
    model = minibert.BertForQuestionAnswering.from_pretrained(BUNDLED)
    qa = minibert.QuestionAnswerer(model, tokenizer)
    made = iter(logits)
    monkeypatch.setattr(qa, "logits", lambda features, on_batch: [next(made) for _ in features])
    chunks = list(qa._windows(examples))
    spent = seconds(lambda: [list(qa._answers(c, 20, 30, False, int, False)) for c in chunks])
    print(f"\nsearch over dev, 20 best: {spent:.2f} s")
    assert next(made, None) is None and spent < 3


def scan(offsets: list[tuple[int, int]], segments: list[int | None], gold: Any) -> tuple[int, int]:
    """Labels as the post makes them: from both ends of the context, token by token."""
    first = segments.index(1)
    last = len(segments) - 1 - segments[::-1].index(1)
    if offsets[first][0] > gold.char_start or offsets[last][1] < gold.char_end:
        return 0, 0
    start, end = first, last
    while start <= last and offsets[start][0] <= gold.char_start:
        start += 1
    while end >= first and offsets[end][1] >= gold.char_end:
        end -= 1
    return start - 1, end + 1


def test_windows_beside_the_reference(transformers, squad):
    """A third of the time of its fast tokenizer and the label loop of its examples, or less."""
    examples = minibert.load_squad(squad, "train")[:6000]
    ours = minibert.Tokenizer.from_pretrained(BUNDLED)
    theirs = transformers.AutoTokenizer.from_pretrained(BUNDLED)

    def reference() -> None:
        found = reference_windows(theirs, examples, 384, 128)
        places, owners = found["offset_mapping"], found["overflow_to_sample_mapping"]
        for k, owner in enumerate(owners):
            scan(places[k], found.sequence_ids(k), examples[owner].answers[0])

    turns = [
        (seconds(reference), seconds(lambda: minibert.prepare_train_features(examples, ours)))
        for _ in range(5)
    ]
    ratio = statistics.median(a / b for a, b in turns)
    print(f"\nwindows of 6,000 questions: {ratio:.1f} times as fast; (theirs, ours) {turns}")
    assert ratio >= 3


def test_cold_start():
    """`minibert answer` in at most 1.8 times the time that importing torch takes."""
    answer = [sys.executable, "-m", "minibert", "answer", "--question", "Who lit the lamp?"]
    answer += ["--context", "At dusk the keeper, Ada, lit the lamp."]
    turns = [
        tuple(
            seconds(
                lambda command=command: subprocess.run(command, capture_output=True, check=True)
            )
            for command in ([sys.executable, "-c", "import torch"], answer)
        )
        for _ in range(6)
    ][1:]  # the first warms up
    ratio = statistics.median(ours / torch for torch, ours in turns)
    print(f"\ncold start: {ratio:.2f} times importing torch; (torch, minibert) {turns}")
    assert ratio <= 1.8
