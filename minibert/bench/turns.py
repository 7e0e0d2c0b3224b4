"""How engines are measured: in alternating turns, in fresh processes, compared with the peak.

The peak is the speed of the processor's fastest matrix product. Other programs share the machine,
so its speed changes from minute to minute. Only ratios within one turn mean something, and the
reports give medians of these ratios. A whole process has one way of keeping freed memory. So the
engines are measured in two processes, and peak memory in a new process for each engine.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F

from ..config import BertConfig
from ..fast.memory import keep_freed_memory
from ..fast.processor import device_name

CPU = torch.device("cpu")

# How freed memory is kept: as the C library does by default, or as the command line does.
MEMORY = ("untuned", "tuned")

PAUSE = 0.3  # seconds, until the threads of the last engine stop spinning for new work

Name = TypeVar("Name")
Work = Callable[..., Any]  # what an engine does in one turn
Load = Callable[[Sequence[str]], Mapping[str, Work]]  # names -> engines; runs in another process


class Turn(NamedTuple):
    """How long an engine took in one turn, and what it returned."""

    seconds: float
    result: Any


def measured_on(device: torch.device = CPU) -> dict[str, Any]:
    """What every figure of a report depends on."""
    threads = torch.get_num_threads()
    return {"machine": device_name(device), "threads": threads, "torch": torch.__version__}


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has computed everything: its kernels run after the call that starts them."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def by_turns(
    engines: Mapping[Name, Work],
    turns: int,
    dtypes: Iterable[torch.dtype] = (),
    device: torch.device = CPU,
) -> tuple[dict[Name, list[Turn]], dict[torch.dtype, float]]:
    """In each turn every engine works once. Returns the turns, and the median peak of each dtype.

    A first turn is not counted, because kernels for new shapes are prepared in it.
    """
    measured: dict[Name, list[Turn]] = {name: [] for name in engines}
    peaks: dict[torch.dtype, list[float]] = {dtype: [] for dtype in dtypes}
    for _ in range(turns + 1):
        for dtype, rates in peaks.items():
            rates.append(matmul_peak(dtype, device))
        for name, work in engines.items():
            time.sleep(PAUSE)
            began = time.perf_counter()
            result = work()
            measured[name].append(Turn(time.perf_counter() - began, result))
    counted = {name: all_turns[1:] for name, all_turns in measured.items()}
    return counted, {dtype: statistics.median(rates) for dtype, rates in peaks.items()}


def median_seconds(turns: Iterable[Turn]) -> float:
    return statistics.median(turn.seconds for turn in turns)


def times_as_fast(theirs: Sequence[Turn], ours: Sequence[Turn]) -> float:
    """How many times as long `theirs` take as `ours`: the median over the turns."""
    return statistics.median(a.seconds / b.seconds for a, b in zip(theirs, ours, strict=True))


def one_process() -> ProcessPoolExecutor:
    """A fresh process that runs the functions submitted to it."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


LOADED: dict[str, Work] = {}  # the engines of this process


def load_engines(load: Load, names: Sequence[str], memory: str) -> None:
    """Load engines in this process, which keeps freed memory in one of the ways of `MEMORY`."""
    if memory == "tuned":
        keep_freed_memory()
    LOADED.update(load(names))


def work_once(name: str, *arguments: Any) -> Any:
    return LOADED[name](*arguments)


@contextmanager
def loaded(load: Load, names: Iterable[str]) -> Iterator[Callable[..., Any]]:
    """Load engines in two fresh processes, which keep memory in the two ways of `MEMORY`.

    Yields a function that lets an engine work once. It takes the way of keeping memory, the
    engine's name, and the arguments of the engine's work.
    """
    with ExitStack() as stack:
        processes = {memory: stack.enter_context(one_process()) for memory in MEMORY}
        for memory, process in processes.items():
            process.submit(load_engines, load, list(names), memory).result()

        def work(memory: str, name: str, *arguments: Any) -> Any:
            return processes[memory].submit(work_once, name, *arguments).result()

        yield work


def memory_of(load: Load, name: str, memory: str, *arguments: Any) -> float | None:
    """Peak memory, in MB, of a fresh process in which one engine works for one turn."""
    with one_process() as process:
        process.submit(load_engines, load, [name], memory).result()
        process.submit(work_once, name, *arguments).result()
        return process.submit(peak_memory_mb).result()


def bench_engines(
    load: Load,
    dtypes: Mapping[str, torch.dtype],
    turns: int,
    best: str,
    figures: Callable[[str, Sequence[Turn]], dict[str, Any]],
) -> dict[str, Any]:
    """Measure engines in this many turns, with both ways of keeping memory.

    `load` makes engines from their names, in another process. For the other arguments and the
    report, see `compared`.
    """
    with loaded(load, dtypes) as work:
        engines = {(m, name): partial(work, m, name) for m in MEMORY for name in dtypes}
        measured, peak = by_turns(engines, turns, set(dtypes.values()))
    report = measured_on() | {"turns": turns} | compared(measured, peak, dtypes, best, figures)
    for memory, name in measured:
        report[memory]["engines"][name]["peak_memory_mb"] = memory_of(load, name, memory)
    return report


def compared(
    measured: Mapping[tuple[str, str], Sequence[Turn]],
    peak: Mapping[torch.dtype, float],
    dtypes: Mapping[str, torch.dtype],
    best: str,
    figures: Callable[[str, Sequence[Turn]], dict[str, Any]],
) -> dict[str, Any]:
    """A report from the turns of each (memory, name), for both ways of keeping memory.

    `dtypes` maps each name to the dtype whose peak the engine is compared with. `figures` makes an
    engine's own figures from its name and turns, and must include "gflops". In the report, `ratio`
    is the speed of the engine `best` divided by the engine's speed.
    """
    report: dict[str, Any] = {}
    for memory in MEMORY:
        rates = {str(dtype): rate / 1e9 for dtype, rate in peak.items()}
        report[memory] = {"peak_gflops": rates, "engines": {}}
        for name, dtype in dtypes.items():
            own = figures(name, measured[memory, name])
            report[memory]["engines"][name] = own | {
                "share_of_peak": own["gflops"] / rates[str(dtype)],
                "ratio": times_as_fast(measured[memory, name], measured[memory, best]),
            }
    return report


def peak_memory_mb() -> float | None:
    """The most memory that this process has held: of the GPU, if it has used one.

    None on Windows, where Python can't read it.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def forward_flops(config: BertConfig, tokens: int) -> float:
    """Multiplications and additions to read one window: the layers' linear maps and attention."""
    H = config.hidden_size
    linear = 4 * H * H + 2 * H * config.intermediate_size  # weights of a layer's matrices
    layer = 2 * tokens * linear + 4 * tokens * tokens * H  # the second term: Q K^T and P V
    return float(config.num_hidden_layers * layer)


def matmul_peak(dtype: torch.dtype, device: torch.device = CPU, times: int = 20) -> float:
    """FLOP/s of the fastest product of (4096 tokens, 384) and (384, 1536), a size as in a pass."""
    x, w = (torch.randn(rows, 384).to(device, dtype) for rows in (4096, 1536))
    best = float("inf")
    for _ in range(times):
        synchronize(device)
        began = time.perf_counter()
        F.linear(x, w)
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * 4096 * 384 * 1536 / best


# each figure of an engine: its heading in the table, and its format
FIGURES = {
    "windows_per_second": ("windows/s", "{:.2f}"),
    "questions_per_second": ("questions/s", "{:.1f}"),
    "forward_questions_per_second": ("forward/s", "{:.1f}"),
    "tokens_per_second": ("tokens/s", "{:.0f}"),
    "gflops": ("GFLOP/s", "{:.0f}"),
    "share_of_peak": ("of peak", "{:.0%}"),
    "exact_match": ("EM", "{:.2f}"),
    "f1": ("F1", "{:.2f}"),
    "pairs_per_second": ("pairs/s", "{:.0f}"),
    "pairs_exact_match": ("pairs: EM", "{:.2f}"),
    "pairs_f1": ("pairs: F1", "{:.2f}"),
    "one_ms": ("one, ms", "{:.1f}"),
    "one_exact_match": ("one: EM", "{:.2f}"),
    "one_f1": ("one: F1", "{:.2f}"),
    "peak_memory_mb": ("memory MB", "{:.0f}"),
    "ratio": ("minibert is", "{:.2f}x"),
    "ratio_same_precision": ("same prec.", "{:.2f}x"),
    "ratio_to_tuned": ("over tuned", "{:.2f}x"),
}


def table_of(report: dict[str, Any]) -> str:
    """A report as text: one row per engine, one block for each way of keeping memory."""
    rows = [", ".join(f"{name} {report[name]}" for name in measured_on()), ""]
    for memory in MEMORY:
        peaks = ", ".join(f"{k} {v:.0f}" for k, v in report[memory]["peak_gflops"].items())
        rows += [f"memory {memory}; peak GFLOP/s: {peaks}", ""]
        engines = report[memory]["engines"]
        shown = [name for name in FIGURES if any(name in figures for figures in engines.values())]
        rows.append(f"{'':32}" + "".join(f"{FIGURES[name][0]:>12}" for name in shown))
        for engine, figures in engines.items():
            cells = (
                "" if figures.get(name) is None else FIGURES[name][1].format(figures[name])
                for name in shown
            )
            rows.append(f"{engine:32}" + "".join(f"{cell:>12}" for cell in cells))
        rows.append("")
    return "\n".join(rows)
