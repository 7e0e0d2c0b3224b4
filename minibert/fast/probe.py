"""Which precision is the fastest on this CPU: measured, because the names of instructions mislead.

Some processors have instructions for bfloat16 and are slower with them than in float32.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import platformdirs
import torch
from torch import nn

from ..config import BertConfig
from ..errors import InputError
from ..files import complete_files
from ..model import EncoderLayer
from ..pretrained import SkipInit
from ..qa import BertForQuestionAnswering
from .linear import supported
from .processor import Computed, autocast, device_name, faster_attention, has_int8, processor_has
from .quantized import largest_weight, prepare_for_reading
from .ranges import Ranges
from .threads import compute_alone

# By how much F1 of the bundled model on SQuAD v1.1 dev is lower than in float32, for each kernel
# (minibert/bench/README.md). Weights have 7 bits where `largest_weight` says so.
COST = {"fp32": 0.0, "bf16": -0.05, "int8": 0.04, "int8 with 7 bits": 0.06}
HIGHEST_COST = 0.1  # of a precision that nobody asked for
# A precision that `candidates` names later must be this much faster: less is within the noise.
CLEARLY = 1.05
TURNS = 5
TOKENS = 128  # in the window that is read
BATCH = 4  # windows of a training step

Work = Callable[[], object]
# what was measured, on which machine -> the fastest precision
KNOWN: dict[str, Computed] = {}


def fastest_precision(
    config: BertConfig, ranges: Ranges | None = None, training: bool = False
) -> Computed:
    """The fastest precision for a model of these shapes on this CPU, for reading or for training.

    "int8" reads faster with `ranges`.

    Measuring takes about 0.1 s. The result is kept in the process, and in the user's cache.
    """
    names = candidates(training)
    if len(names) == 1:
        return names[0]
    limits = [os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")]
    machine = [device_name(torch.device("cpu")), *limits, torch.__version__]
    shapes = [config.hidden_size, config.intermediate_size, config.num_attention_heads]
    task = "training" if training else "reading with ranges" if ranges else "reading"
    key = json.dumps([*machine, *shapes, task, *names])
    if key not in KNOWN:
        KNOWN.update(stored())
    if KNOWN.get(key) not in names:
        work = partial(work_of, config, names, training, ranges)
        KNOWN[key] = fastest(core_seconds(work))
        store(KNOWN)
    return KNOWN[key]


def candidates(training: bool = False) -> list[Computed]:
    """The precisions that may be chosen on this CPU. If two are equally fast, the first is chosen.

    float32 is the most exact one. 8-bit integers come before bfloat16, because their weights need
    half of the memory, and both have nearly the same `COST`.
    """
    names: list[Computed] = ["fp32"]
    if has_int8() and not training:
        kernel = "int8" if largest_weight() == 127 else "int8 with 7 bits"
        if COST[kernel] <= HIGHEST_COST:
            names.append("int8")
    if supported(torch.bfloat16) and processor_has("avx512_bf16", "amx_bf16"):
        names.append("bf16")  # elsewhere it is emulated, and slow
    return names


def fastest(seconds: Mapping[Computed, float]) -> Computed:
    """The precision with the least time. An earlier one has priority unless it is clearly slower.

    >>> fastest({"fp32": 1.00, "bf16": 0.99, "int8": 0.5})
    'int8'
    >>> fastest({"fp32": 1.00, "bf16": 0.99})
    'fp32'
    """
    least = min(seconds.values())
    return next(name for name, spent in seconds.items() if spent <= CLEARLY * least)


def core_seconds(prepare: Callable[[], Mapping[Computed, Work]]) -> dict[Computed, float]:
    """How long each work takes on one core: the shortest of some turns, after one to warm up.

    A thread measures the time in which it computed itself. So other programs hardly change the
    figures, even if they keep all cores busy.
    """
    times: dict[Computed, list[float]] = {}

    def measure() -> None:
        compute_alone(torch.get_num_threads())
        work = prepare()
        for _ in range(1 + TURNS):
            for name, run in work.items():
                began = time.thread_time()
                run()
                times.setdefault(name, []).append(time.thread_time() - began)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(measure).result()
    return {name: min(spent[1:]) for name, spent in times.items()}


def work_of(
    config: BertConfig, names: list[Computed], training: bool, ranges: Ranges | None = None
) -> dict[Computed, Work]:
    """What is measured for each precision: a layer reads one window, or a layer is trained."""
    return {
        name: training_step(config, name) if training else reading(config, name, ranges)
        for name in names
    }


def reading(config: BertConfig, name: Computed, ranges: Ranges | None) -> Work:
    """A model with one layer reads one window."""
    device = torch.device("cpu")
    small = replace(config, num_hidden_layers=1, vocab_size=config.pad_token_id + 1)
    with torch.device("meta"), SkipInit():
        model = BertForQuestionAnswering(small, faster_attention(name, device))
    constant(model)
    prepare_for_reading(model, name, device, ranges and ranges[:1])
    ids = torch.full((1, min(TOKENS, config.max_length)), config.pad_token_id)
    return torch.inference_mode()(partial(model, ids, None, torch.zeros_like(ids)))


def training_step(config: BertConfig, name: Computed) -> Work:
    """A layer's output for a batch of windows, and its gradients. Autocast computes in bfloat16."""
    with torch.device("meta"), SkipInit():
        layer = EncoderLayer(config, "eager")
    constant(layer)
    x = torch.ones(BATCH, TOKENS, config.hidden_size)

    def step() -> None:
        with torch.enable_grad(), autocast(torch.device("cpu"), name):
            output, _ = layer(x, None)
            output.float().sum().backward()

    return step


def constant(module: nn.Module) -> None:
    """Give a module constant weights, because the time does not depend on the numbers."""
    weights = {name: torch.full(t.shape, 0.01) for name, t in module.state_dict().items()}
    module.load_state_dict(weights, assign=True)
    module.eval()  # without dropout, which takes the same time in every precision


# --- The cache: a JSON file. Without it everything works, and each process measures again.


def cache_file() -> Path:
    return platformdirs.user_cache_path("minibert") / "precision.json"


def stored() -> dict[str, Computed]:
    with suppress(OSError, ValueError):
        known = json.loads(cache_file().read_text(encoding="utf-8"))
        if isinstance(known, dict):
            return known
    return {}


def store(known: Mapping[str, Computed]) -> None:
    path = cache_file()
    with suppress(InputError), complete_files(path.parent) as draft:
        (draft / path.name).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
