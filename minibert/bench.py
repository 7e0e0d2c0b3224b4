"""minibert beside others, by turns on the same windows: how fast, how near the processor's peak.

A machine that others use too is now fast, now slow, so only ratios within a turn mean something;
what is reported are their medians. How the C library keeps memory holds for a whole process: each
way has its own, and so has each measurement of memory.
"""

import importlib.util
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from .errors import InputError
from .features import Feature, collate, length_batches, prepare_train_features
from .model import BertConfig
from .qa import BertForQuestionAnswering
from .reader import choose_precision
from .squad import load_squad
from .tokenization import Tokenizer
from .train import TrainingConfig, decay_groups, train_step
from .tuning import keep_freed_memory

BATCH = 16  # windows a step, for every engine: the seed's
BATCHES = 4  # that stand for an epoch's; every turn has the same
CPU = torch.device("cpu")

Train = Callable[[list[list[Feature]]], None]  # one step on each batch
Result = TypeVar("Result")


def ours(init: str, pad_id: int) -> Train:
    """minibert's own `train_step`, as `minibert train` runs it."""
    model = BertForQuestionAnswering.from_pretrained(init, new_head=True).train()
    config = TrainingConfig(init, train_file="", output_dir="")
    groups = decay_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, config.learning_rate, fused=True)
    precision = choose_precision("auto", CPU)

    def run(batches: list[list[Feature]]) -> None:
        for windows in batches:
            train_step(model, optimizer, windows, pad_id, precision, config)

    return run


def reference(init: str, pad_id: int, attention: str, seed_s_way: bool) -> Train:
    """`transformers`' model: as the seed trains it, or run as well as it can be on a CPU.

    The seed: float32, every window padded to 384, batches in random order. Run well: batches of
    like length padded to their longest, autocast, the fused optimizer.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = transformers.BertForQuestionAnswering.from_pretrained(
        init, attn_implementation=attention
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-5, fused=None if seed_s_way else True)
    mixed = not seed_s_way and choose_precision("auto", CPU) == "bf16"

    def run(batches: list[list[Feature]]) -> None:
        if seed_s_way:
            windows = [window for batch in batches for window in batch]
            random.Random(0).shuffle(windows)
            batches = [windows[i : i + BATCH] for i in range(0, len(windows), BATCH)]
        for windows in batches:
            batch = collate(windows, pad_id, multiple=384 if seed_s_way else 1)
            with torch.autocast("cpu", torch.bfloat16, mixed):
                out = model(**batch._asdict())
            out.loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return run


ENGINES: dict[str, Callable[[str, int], Train]] = {
    "minibert": ours,
    "transformers, the seed's way": lambda i, p: reference(i, p, "eager", True),
    "transformers, run well, eager": lambda i, p: reference(i, p, "eager", False),
    "transformers, run well, sdpa": lambda i, p: reference(i, p, "sdpa", False),
}


def bench_train(init: str, data: str, turns: int = 5, seed: int = 0) -> dict[str, Any]:
    """Training steps on real batches of a SQuAD training set, engine by engine, in `turns` turns.

    Returns the processor's and the engines' figures, for each way of keeping memory; `ratio` is
    minibert's speed over the engine's. Without `transformers` only minibert is measured.
    """
    names = [n for n in ENGINES if n == "minibert" or importlib.util.find_spec("transformers")]
    report: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    report |= {"turns": turns, "seed": seed, "windows_a_turn": BATCH * BATCHES}
    for tuned in (True, False):
        found = alone(time_training, names, init, data, turns, seed, tuned)
        for name, figures in found["engines"].items():
            figures["peak_memory_mb"] = alone(memory_of_training, name, init, data, seed, tuned)
        report["tuned" if tuned else "untuned"] = found
    return report


def alone(function: Callable[..., Result], *arguments: Any) -> Result:
    """The function's result from a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def by_turns(
    engines: Mapping[str, Callable[[], object]], dtypes: Iterable[torch.dtype], turns: int
) -> tuple[dict[str, list[float]], dict[torch.dtype, float]]:
    """The seconds that each engine takes, turn after turn, and the processor's peak meanwhile.

    One turn more comes first, and is not counted: kernels for new shapes are made in it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    peaks: dict[torch.dtype, list[float]] = {dtype: [] for dtype in dtypes}
    for _ in range(turns + 1):
        for dtype, found in peaks.items():
            found.append(matmul_peak(dtype))
        for name, work in engines.items():
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    counted = {name: spent[1:] for name, spent in seconds.items()}
    return counted, {dtype: statistics.median(found) for dtype, found in peaks.items()}


def times_as_fast(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """The median over the turns of how much longer they take."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def time_training(
    names: Sequence[str], init: str, data: str, turns: int, seed: int, tuned: bool
) -> dict[str, Any]:
    if tuned:
        keep_freed_memory()
    batches, pad_id, config = real_batches(init, data, seed)
    windows = [window for batch in batches for window in batch]
    tokens = sum(map(len, windows))
    # two products in the backward pass for each one in the forward pass
    flops = sum(3 * forward_flops(config, len(window)) for window in windows)
    seconds, peak = by_turns(
        {name: partial(ENGINES[name](init, pad_id), batches) for name in names},
        (torch.float32, torch.bfloat16),
        turns,
    )
    mixed = choose_precision("auto", CPU) == "bf16"
    report: dict[str, Any] = {
        "peak_gflops": {str(dtype): found / 1e9 for dtype, found in peak.items()},
        "engines": {},
    }
    for name, spent in seconds.items():
        used = torch.bfloat16 if mixed and "seed" not in name else torch.float32
        typical = statistics.median(spent)
        report["engines"][name] = {
            "precision": str(used),
            "windows_per_second": len(windows) / typical,
            "tokens_per_second": tokens / typical,
            "gflops": flops / typical / 1e9,
            "share_of_peak": flops / typical / peak[used],
            "ratio": times_as_fast(spent, seconds["minibert"]),
        }
    return report


def memory_of_training(name: str, init: str, data: str, seed: int, tuned: bool) -> float:
    """The most memory that a process held which trains with this engine alone, in MB."""
    if tuned:
        keep_freed_memory()
    batches, pad_id, _ = real_batches(init, data, seed)
    ENGINES[name](init, pad_id)(batches)
    return peak_memory_mb()


def peak_memory_mb() -> float:
    """The most memory that this process has held."""
    import resource  # Unix alone has it

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


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


def forward_flops(config: BertConfig, tokens: int) -> float:
    """Multiplications and additions to read one window: the layers' linear maps and attention."""
    H = config.hidden_size
    linear = 4 * H * H + 2 * H * config.intermediate_size  # weights of a layer's matrices
    layer = 2 * tokens * linear + 4 * tokens * tokens * H  # the latter: Q K^T and P V
    return float(config.num_hidden_layers * layer)


def matmul_peak(dtype: torch.dtype, times: int = 20) -> float:
    """FLOP/s of the best of some products as large as a pass has: 4096 tokens, 384 to 1536."""
    x, w = torch.randn(4096, 384).to(dtype), torch.randn(1536, 384).to(dtype)
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        F.linear(x, w)
        best = min(best, time.perf_counter() - began)
    return 2 * 4096 * 384 * 1536 / best
