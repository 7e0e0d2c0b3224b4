"""Training: minibert compared with `transformers` on the same windows."""

import importlib.util
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..batches import collate, length_batches
from ..config import BertConfig
from ..data.examples import load_squad
from ..errors import InputError
from ..fast.probe import fastest_precision
from ..features import Feature, prepare_train_features
from ..pretrained import read_config
from ..qa import BertForQuestionAnswering
from ..tokenization import Tokenizer
from ..training.config import TrainingConfig
from ..training.finetune import train_step
from ..training.job import Job
from ..training.optimizer import make_optimizer
from .engines import transformers_model
from .turns import CPU, Turn, Work, bench_engines, forward_flops, median_seconds

BATCH = 16  # windows per step for every engine, as in the blog post
BATCHES = 4  # they represent an epoch; every turn has the same ones

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
    """The model of `transformers`, trained as in the blog post, or as fast as it can on a CPU.

    The blog post uses float32, pads every window to 384 tokens, and takes batches in random order.
    The fast way uses batches of similar length, padded to their longest window, autocast and the
    fused optimizer.
    """
    model = transformers_model(init, attention).train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-5, fused=None if as_blog_post else True)
    shapes = BertConfig.from_dict(read_config(init))
    mixed = not as_blog_post and fastest_precision(shapes, training=True) == "bf16"

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
    """Train on real batches of a SQuAD training set with every engine, in alternating turns.

    Returns the processor's and the engines' figures for both ways of keeping memory: "untuned" is
    the C library's default, "tuned" is the way of `minibert train`. `ratio` is minibert's speed
    divided by the engine's. Without `transformers` only minibert is measured.
    """
    shapes = BertConfig.from_dict(read_config(init))
    bfloat16 = fastest_precision(shapes, training=True) == "bf16"
    dtypes = {
        name: torch.bfloat16 if bfloat16 and "blog post" not in name else torch.float32
        for name in ENGINES
        if name == "minibert" or importlib.util.find_spec("transformers")
    }
    batches, _ = real_batches(init, data, seed)
    lengths = [len(window) for batch in batches for window in batch]
    config = BertConfig.from_dict(read_config(init))
    # the backward pass has two products for each product of the forward pass
    flops = sum(3 * forward_flops(config, length) for length in lengths)

    def figures(name: str, measured: Sequence[Turn]) -> dict[str, Any]:
        seconds = median_seconds(measured)
        return {
            "precision": str(dtypes[name]),
            "windows_per_second": len(lengths) / seconds,
            "tokens_per_second": sum(lengths) / seconds,
            "gflops": flops / seconds / 1e9,
        }

    load = partial(load_training, init, data, seed)
    report = bench_engines(load, dtypes, turns, "minibert", figures)
    about = {"seed": seed, "windows_a_turn": BATCH * BATCHES}
    return about | report


def load_training(init: str, data: str, seed: int, names: Sequence[str]) -> dict[str, Work]:
    batches, pad_id = real_batches(init, data, seed)
    return {name: partial(ENGINES[name](init, pad_id), batches) for name in names}


def real_batches(init: str, data: str, seed: int) -> tuple[list[list[Feature]], int]:
    """Some batches of an epoch, each with windows of similar length; and the id of padding.

    The speed depends on the lengths of the windows. So a few batches represent an epoch only if
    they are short, medium and long in the same proportion as the epoch's batches.
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
    return [[features[k] for k in batch] for batch in chosen], tokenizer.pad_id
