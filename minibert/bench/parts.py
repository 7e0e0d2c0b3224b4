"""The speed of the parts around the model: search, windows, start. Figures are medians of turns."""

import importlib.util
import subprocess
import sys
from functools import partial

import numpy as np

from ..data.examples import Example, GoldAnswer, load_squad
from ..features import prepare_features, prepare_train_features
from ..settings import AnswerSettings
from ..spans import WindowLogits, best_spans
from ..tokenization import Tokenizer
from .engines import transformers_tokenizer, transformers_windows
from .turns import by_turns, median_seconds, times_as_fast

N_BEST = 20
TRAINING_QUESTIONS = 6000


def bench_parts(source: str, data: str, turns: int = 5) -> dict[str, float]:
    """Seconds of the search for a whole SQuAD dev set, and two ratios.

    Making windows is compared with `transformers`, if it is installed, and a cold start with
    `import torch`. `data` is a folder, or a hub id, with both splits.
    """
    tokenizer = Tokenizer.from_pretrained(source)
    report = {"search_seconds": search(tokenizer, load_squad(data, "validation"), turns)}
    if importlib.util.find_spec("transformers"):
        answered = [example for example in load_squad(data, "train") if example.answers]
        examples = answered[:TRAINING_QUESTIONS]
        report["windows_times_as_fast"] = windows(source, tokenizer, examples, turns)
    report["cold_start_times_import_torch"] = cold_start(source, turns)
    return report


def search(tokenizer: Tokenizer, examples: list[Example], turns: int) -> float:
    """Seconds from logits to the 20 best spans of every question.

    The logits are random, because the search takes as long with random logits as with a model's.
    """
    generator = np.random.default_rng(0)
    logits: dict[str, list[WindowLogits]] = {}
    for feature in prepare_features(examples, tokenizer, 384, 128, 64):
        tokens = feature.token_end - feature.token_start + 1
        start, end = generator.normal(size=(2, tokens)).astype(np.float32)
        window = WindowLogits(feature.token_start, start, end)
        logits.setdefault(feature.example_id, []).append(window)

    def search_all() -> None:
        for windows_of_one in logits.values():
            best_spans(windows_of_one, AnswerSettings(N_BEST))

    return median_seconds(by_turns({"search": search_all}, turns)[0]["search"])


def windows(source: str, tokenizer: Tokenizer, examples: list[Example], turns: int) -> float:
    """How many times as fast minibert makes labelled windows as the reference.

    The reference is the fast tokenizer of `transformers` and the blog post's loop for labels.
    """
    theirs = transformers_tokenizer(source)

    def reference() -> None:
        encoded = transformers_windows(theirs, examples)
        offsets, owners = encoded["offset_mapping"], encoded["overflow_to_sample_mapping"]
        for k, owner in enumerate(owners):
            scan(offsets[k], encoded.sequence_ids(k), examples[owner].answers[0])

    def ours() -> None:
        prepare_train_features(examples, tokenizer)

    measured, _ = by_turns({"reference": reference, "minibert": ours}, turns)
    return times_as_fast(measured["reference"], measured["minibert"])


def scan(
    offsets: list[tuple[int, int]], segments: list[int | None], gold: GoldAnswer
) -> tuple[int, int]:
    """The blog post's labels: it scans the context from both ends, token by token."""
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
    """How many times as long `minibert answer` with a short context takes as importing torch."""
    question = ["--question", "Who lit the lamp?", "--context", "Ada lit the lamp."]
    commands = {
        "minibert": ["-m", "minibert", "answer", "--model", source, *question],
        "torch": ["-c", "import torch"],
    }
    run = partial(subprocess.run, capture_output=True, check=True)
    work = {name: partial(run, [sys.executable, *words]) for name, words in commands.items()}
    measured, _ = by_turns(work, turns)
    return times_as_fast(measured["minibert"], measured["torch"])
