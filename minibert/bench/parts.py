"""What must not take long beside the model: search, windows, start. Medians of turns."""

import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..data.examples import Example, GoldAnswer, load_squad
from ..features import prepare_features, prepare_train_features
from ..settings import AnswerSettings
from ..spans import WindowLogits, best_spans
from ..tokenization import Tokenizer
from .turns import times_as_fast

N_BEST = 20
TRAINING_QUESTIONS = 6000


def bench_parts(source: str, data: str, turns: int = 5) -> dict[str, float]:
    """Seconds of the search over a whole SQuAD dev set, and how long the rest takes beside others.

    `data` is a folder, or a hub id, with both splits. Without `transformers` there is nothing to
    make windows beside.
    """
    tokenizer = Tokenizer.from_pretrained(source)
    report = {"search_seconds": search(tokenizer, load_squad(data, "validation"), turns)}
    if importlib.util.find_spec("transformers"):
        answered = [example for example in load_squad(data, "train") if example.answers]
        examples = answered[:TRAINING_QUESTIONS]
        report["windows_times_as_fast"] = windows(source, tokenizer, examples, turns)
    report["cold_start_times_import_torch"] = cold_start(source, turns)
    return report


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def search(tokenizer: Tokenizer, examples: list[Example], turns: int) -> float:
    """From logits to the 20 best spans of every question; random logits do as well as a model's."""
    generator = np.random.default_rng(0)
    logits: dict[str, list[WindowLogits]] = {}
    for feature in prepare_features(examples, tokenizer, 384, 128, 64):
        tokens = feature.token_end - feature.token_start + 1
        start, end = generator.normal(size=(2, tokens)).astype(np.float32)
        logits.setdefault(feature.example_id, []).append(
            WindowLogits(feature.token_start, start, end)
        )
    return statistics.median(
        seconds(lambda: [best_spans(of_one, AnswerSettings(N_BEST)) for of_one in logits.values()])
        for _ in range(turns)
    )


def windows(source: str, tokenizer: Tokenizer, examples: list[Example], turns: int) -> float:
    """How many times as fast labelled windows are made as by `transformers` and the blog's loop."""
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(source)

    def reference() -> None:
        encoded = theirs(
            [example.question for example in examples],
            [example.context for example in examples],
            truncation="only_second",
            max_length=384,
            stride=128,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        places, owners = encoded["offset_mapping"], encoded["overflow_to_sample_mapping"]
        for k, owner in enumerate(owners):
            scan(places[k], encoded.sequence_ids(k), examples[owner].answers[0])

    pairs = [
        (seconds(reference), seconds(lambda: prepare_train_features(examples, tokenizer)))
        for _ in range(turns)
    ]
    return times_as_fast(*zip(*pairs, strict=True))


def scan(
    offsets: list[tuple[int, int]], segments: list[int | None], gold: GoldAnswer
) -> tuple[int, int]:
    """Labels as the blog post makes them: from both ends of the context, token by token."""
    first, last = segments.index(1), len(segments) - 1 - segments[::-1].index(1)
    if offsets[first][0] > gold.char_start or offsets[last][1] < gold.char_end:
        return 0, 0
    start, end = first, last
    while start <= last and offsets[start][0] <= gold.char_start:
        start += 1
    while end >= first and offsets[end][1] >= gold.char_end:
        end -= 1
    return start - 1, end + 1


def cold_start(source: str, turns: int) -> float:
    """`minibert answer` with a short context, in times of what importing torch takes."""
    question = ["--question", "Who lit the lamp?", "--context", "Ada lit the lamp."]
    commands = (
        [sys.executable, "-m", "minibert", "answer", "--model", source, *question],
        [sys.executable, "-c", "import torch"],
    )

    def run(command: list[str]) -> Any:
        return subprocess.run(command, capture_output=True, check=True)

    pairs = [[seconds(partial(run, c)) for c in commands] for _ in range(turns + 1)][1:]
    return times_as_fast(*zip(*pairs, strict=True))  # the first turn warms up
