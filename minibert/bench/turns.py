"""How engines are measured: by turns, in fresh processes, beside the processor's peak.

A machine that others use too is now fast, now slow, so only ratios within a turn mean something;
what is reported are their medians. How the C library keeps memory holds for a whole process: each
way has its own, and so has each measurement of memory.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from ..config import BertConfig
from ..fast.memory import keep_freed_memory
from ..fast.processor import device_name

CPU = torch.device("cpu")

MEMORY = ("untuned", "tuned")  # as the C library keeps it, which a library's user has; as the CLI

PAUSE = 0.3  # seconds in which the threads of what came before stop spinning for more work

Result = TypeVar("Result")
Name = TypeVar("Name")


def one_process() -> ProcessPoolExecutor:
    """A fresh process, which does what is submitted to it."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """The function's result from a fresh process."""
    with one_process() as process:
        return process.submit(function, *arguments).result()


def keep_memory(memory: str) -> None:
    """Have this process keep freed memory in one of the ways of `MEMORY`."""
    if memory == "tuned":
        keep_freed_memory()


def measured_on() -> dict[str, Any]:
    """What every figure of a report depends on."""
    threads = torch.get_num_threads()
    return {"machine": device_name(CPU), "threads": threads, "torch": torch.__version__}


@contextmanager
def both_ways(
    load: Callable[..., None], *arguments: Any
) -> Iterator[dict[str, ProcessPoolExecutor]]:
    """A process for each way of keeping memory, where `load(*arguments)` has been called."""
    with ExitStack() as stack:
        processes = {memory: stack.enter_context(one_process()) for memory in MEMORY}
        for memory, process in processes.items():
            process.submit(keep_memory, memory).result()
            process.submit(load, *arguments).result()
        yield processes


def by_turns(
    engines: Mapping[Name, Callable[[], object]], dtypes: Iterable[torch.dtype], turns: int
) -> tuple[dict[Name, list[float]], dict[torch.dtype, float]]:
    """The seconds that each engine takes, turn after turn, and the processor's peak meanwhile.

    One turn more comes first, and is not counted: kernels for new shapes are made in it.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in engines}
    peaks: dict[torch.dtype, list[float]] = {dtype: [] for dtype in dtypes}
    for _ in range(turns + 1):
        for dtype, rates in peaks.items():
            rates.append(matmul_peak(dtype))
        for name, work in engines.items():
            time.sleep(PAUSE)
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    counted = {name: spent[1:] for name, spent in seconds.items()}
    return counted, {dtype: statistics.median(rates) for dtype, rates in peaks.items()}


def times_as_fast(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """The median over the turns of how much longer they take."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def peak_memory_mb() -> float | None:
    """The most memory that this process has held; None on Windows, which does not tell it so."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


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


# an engine's figures: the heading of each and how it is written
FIGURES = {
    "windows_per_second": ("windows/s", "{:.2f}"),
    "questions_per_second": ("questions/s", "{:.1f}"),
    "forward_questions_per_second": ("forward/s", "{:.1f}"),
    "tokens_per_second": ("tokens/s", "{:.0f}"),
    "gflops": ("GFLOP/s", "{:.0f}"),
    "share_of_peak": ("of peak", "{:.0%}"),
    "exact_match": ("EM", "{:.2f}"),
    "f1": ("F1", "{:.2f}"),
    "peak_memory_mb": ("memory MB", "{:.0f}"),
    "ratio": ("minibert is", "{:.2f}x"),
    "ratio_same_precision": ("same prec.", "{:.2f}x"),
    "ratio_to_tuned": ("over tuned", "{:.2f}x"),
}


def table_of(report: dict[str, Any]) -> str:
    """A report as text: a row an engine, a block for each way of keeping memory."""
    rows = [", ".join(f"{name} {report[name]}" for name in measured_on()), ""]
    for memory in MEMORY:
        peaks = ", ".join(f"{k} {v:.0f}" for k, v in report[memory]["peak_gflops"].items())
        rows += [f"memory {memory}; peak GFLOP/s: {peaks}", ""]
        engines = report[memory]["engines"]
        shown = [name for name in FIGURES if name in next(iter(engines.values()))]
        rows.append(f"{'':32}" + "".join(f"{FIGURES[name][0]:>12}" for name in shown))
        for engine, figures in engines.items():
            cells = (
                "" if figures[name] is None else FIGURES[name][1].format(figures[name])
                for name in shown
            )
            rows.append(f"{engine:32}" + "".join(f"{cell:>12}" for cell in cells))
        rows.append("")
    return "\n".join(rows)
