"""Training: minibert beside `transformers`, by turns on the same windows."""

import importlib.util
import random
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..batches import collate, length_batches
from ..config import BertConfig
from ..data.examples import load_squad
from ..errors import InputError
from ..fast.processor import choose_precision
from ..features import Feature, prepare_train_features
from ..qa import BertForQuestionAnswering
from ..tokenization import Tokenizer
from ..training.config import TrainingConfig
from ..training.finetune import train_step
from ..training.job import Job
from ..training.optimizer import make_optimizer
from .turns import (
    CPU,
    MEMORY,
    both_ways,
    by_turns,
    forward_flops,
    in_fresh_process,
    keep_memory,
    measured_on,
    peak_memory_mb,
    times_as_fast,
)

BATCH = 16  # windows a step, for every engine: the blog post's
BATCHES = 4  # that stand for an epoch's; every turn has the same

Train = Callable[[list[list[Feature]]], None]  # one step on each batch


def ours(init: str, pad_id: int) -> Train:
    """minibert's own `train_step`, as `minibert train` runs it."""
    model = BertForQuestionAnswering.from_pretrained(init, new_head=True).train()
    config = TrainingConfig(init, train_file="", output_dir="")
    optimizer = make_optimizer(model, config, CPU)
    job = Job(model, optimizer, Tokenizer.from_pretrained(init), config)

    def run(batches: list[list[Feature]]) -> None:
        for windows in batches:
            train_step(job, windows)

    return run


def reference(init: str, pad_id: int, attention: str, as_blog_post: bool) -> Train:
    """`transformers`' model: as the blog post trains it, or run as well as it can be on a CPU.

    The blog post: float32, every window padded to 384, batches in random order. Run well: batches
    of like length padded to their longest, autocast, the fused optimizer.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(
        init, attn_implementation=attention
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-5, fused=None if as_blog_post else True)
    mixed = not as_blog_post and choose_precision("auto", CPU, float_weights=True) == "bf16"

    def run(batches: list[list[Feature]]) -> None:
        if as_blog_post:
            windows = [window for batch in batches for window in batch]
            random.Random(0).shuffle(windows)
            batches = [windows[i : i + BATCH] for i in range(0, len(windows), BATCH)]
        for windows in batches:
            batch = collate(windows, pad_id, multiple=384 if as_blog_post else 1)
            with torch.autocast("cpu", torch.bfloat16, mixed):
                out = model(**batch._asdict())
            out.loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return run


ENGINES: dict[str, Callable[[str, int], Train]] = {
    "minibert": ours,
    "transformers, the blog post's way": lambda i, p: reference(i, p, "eager", True),
    "transformers, run well, eager": lambda i, p: reference(i, p, "eager", False),
    "transformers, run well, sdpa": lambda i, p: reference(i, p, "sdpa", False),
}


def bench_train(init: str, data: str, turns: int = 5, seed: int = 0) -> dict[str, Any]:
    """Training steps on real batches of a SQuAD training set, engine by engine, in `turns` turns.

    Returns the processor's and the engines' figures, for each way of keeping memory: "untuned" as
    the C library does it, "tuned" as `minibert train` does. `ratio` is minibert's speed over the
    engine's. Without `transformers` only minibert is measured.
    """
    names = [n for n in ENGINES if n == "minibert" or importlib.util.find_spec("transformers")]
    report = measured_on() | {"turns": turns, "seed": seed, "windows_a_turn": BATCH * BATCHES}
    batches, _, config = real_batches(init, data, seed)
    windows = [window for batch in batches for window in batch]
    tokens = sum(map(len, windows))
    # two products in the backward pass for each one in the forward pass
    flops = sum(3 * forward_flops(config, len(window)) for window in windows)
    mixed = choose_precision("auto", CPU, float_weights=True) == "bf16"
    dtypes = {
        name: torch.bfloat16 if mixed and "blog post" not in name else torch.float32
        for name in names
    }
    with both_ways(load_engines, names, init, data, seed) as processes:
        work = {
            (memory, name): lambda m=memory, n=name: processes[m].submit(train_once, n).result()
            for memory in MEMORY
            for name in names
        }
        seconds, peak = by_turns(work, set(dtypes.values()), turns)
    rates = {str(dtype): rate / 1e9 for dtype, rate in peak.items()}
    for memory in MEMORY:
        engines = {}
        for name in names:
            spent = seconds[memory, name]
            typical = statistics.median(spent)
            engines[name] = {
                "precision": str(dtypes[name]),
                "windows_per_second": len(windows) / typical,
                "tokens_per_second": tokens / typical,
                "gflops": flops / typical / 1e9,
                "share_of_peak": flops / typical / peak[dtypes[name]],
                "peak_memory_mb": in_fresh_process(
                    memory_of_training, name, init, data, seed, memory
                ),
                "ratio": times_as_fast(spent, seconds[memory, "minibert"]),
            }
        report[memory] = {"peak_gflops": rates, "engines": engines}
    return report


# of the process that trains, which keeps memory in one of the ways
LOADED: dict[str, Callable[[], None]] = {}


def load_engines(names: Sequence[str], init: str, data: str, seed: int) -> None:
    batches, pad_id, _ = real_batches(init, data, seed)
    LOADED.update({name: partial(ENGINES[name](init, pad_id), batches) for name in names})


def train_once(name: str) -> None:
    """A step on each of the batches."""
    LOADED[name]()


def memory_of_training(name: str, init: str, data: str, seed: int, memory: str) -> float | None:
    """Peak memory of a fresh process that trains with one engine, in MB."""
    keep_memory(memory)
    load_engines([name], init, data, seed)
    train_once(name)
    return peak_memory_mb()


def real_batches(init: str, data: str, seed: int) -> tuple[list[list[Feature]], int, BertConfig]:
    """Batches of an epoch over the data, of like length each; their lengths are evenly spread.

    How much a window holds decides how fast it is read, and by how much less than 384: so few
    batches stand for an epoch only when short, middling and long ones are among them as there.
    """
    tokenizer = Tokenizer.from_pretrained(init)
    examples = load_squad(data, "train")
    examples = random.Random(seed).sample(examples, min(200 * BATCH, len(examples)))
    features = prepare_train_features(examples, tokenizer, 384, 128)
    full = [b for b in length_batches(features, BATCH, seed) if len(b) == BATCH]
    if len(full) < BATCHES:
        raise InputError(f"{data}: too few questions for {BATCHES} batches of {BATCH}")
    full.sort(key=lambda batch: sum(len(features[k]) for k in batch))
    chosen = [full[int((i + 0.5) * len(full) / BATCHES)] for i in range(BATCHES)]
    random.Random(seed).shuffle(chosen)
    config = BertForQuestionAnswering.from_pretrained(init, new_head=True).config
    return [[features[k] for k in batch] for batch in chosen], tokenizer.pad_id, config
