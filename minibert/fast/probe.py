"""Which precision is the fastest on this CPU: measured, because the names of instructions mislead.

Some processors have instructions for bfloat16 and are slower with them than in float32.
"""

import copy
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import platformdirs
import torch

from ..errors import InputError
from ..files import complete_files
from ..model import EncoderLayer
from .linear import FusedLayer, supported
from .processor import Computed, device_name, faster_attention, processor_has
from .quantized import QuantizedLayer, largest_weight
from .threads import compute_alone

# By how much F1 of the bundled model on SQuAD v1.1 dev is lower than in float32, for each kernel
# (minibert/bench/README.md). Weights have 7 bits where `largest_weight` says so.
COST = {"fp32": 0.0, "bf16": -0.05, "int8": -0.06, "int8 with 7 bits": 0.06}
HIGHEST_COST = 0.1  # of a precision that nobody asked for
# A precision must be this much faster than a more exact one: less is within the noise.
CLEARLY = 1.03
TOKENS = 96  # in the window that is measured
TURNS = 4

# The processor, the libraries and the shapes of a layer -> the fastest precision
KNOWN: dict[str, Computed] = {}


def fastest_precision(layer: EncoderLayer) -> Computed:
    """The fastest precision to read with a model that has such layers (float32, on the CPU).

    The measuring takes about 0.1 s. Its result is kept in the process, and in the user's cache.
    """
    names = candidates()
    if len(names) == 1:
        return names[0]
    shapes = [*layer.feed_forward.expand.weight.shape, layer.attention.heads]
    limits = [os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")]
    machine = [device_name(torch.device("cpu")), *limits, torch.__version__]
    key = json.dumps([*machine, *shapes, *names])
    if key not in KNOWN:
        KNOWN.update(stored())
    if KNOWN.get(key) not in names:
        KNOWN[key] = fastest(measured_seconds(layer, names))
        store(KNOWN)
    return KNOWN[key]


def candidates() -> list[Computed]:
    """The precisions that may be chosen on this CPU, the most exact one first."""
    names: list[Computed] = ["fp32"]
    if supported(torch.bfloat16) and processor_has("avx512_bf16", "amx_bf16"):
        names.append("bf16")  # elsewhere it is emulated, and slow
    if supported(torch.float32) and hasattr(torch.ops.onednn, "qlinear_pointwise"):
        kernel = "int8" if largest_weight() == 127 else "int8 with 7 bits"
        if COST[kernel] <= HIGHEST_COST:
            names.append("int8")
    return names


def measured_seconds(layer: EncoderLayer, names: list[Computed]) -> dict[Computed, float]:
    """How long a layer reads one window in each precision, on one core.

    A thread measures the time in which it computed itself. So other programs hardly change the
    figures, even if they keep all processors busy.
    """
    seconds: dict[Computed, float] = {}

    @torch.inference_mode()
    def measure() -> None:
        compute_alone()
        layers = {name: layer_for(name, layer) for name in names}
        x = torch.randn(TOKENS, layer.attention_norm.normalized_shape[0])
        times: dict[Computed, list[float]] = {name: [] for name in names}
        for _ in range(1 + TURNS):
            for name, part in layers.items():
                inputs = x.bfloat16() if name == "bf16" else x
                began = time.thread_time()
                part.read_unpadded(inputs, [TOKENS])
                times[name].append(time.thread_time() - began)
        seconds.update({name: min(spent[1:]) for name, spent in times.items()})

    thread = Thread(target=measure)
    thread.start()
    thread.join()
    return seconds


def layer_for(name: Computed, layer: EncoderLayer) -> FusedLayer:
    """A layer with the same weights that reads in this precision."""
    if name == "int8":
        return QuantizedLayer(layer, layer.feed_forward_norm)
    if name == "bf16":
        layer = copy.deepcopy(layer).bfloat16()
        layer.attention.attention = faster_attention(name, torch.device("cpu"))
    return FusedLayer(layer)


def fastest(seconds: dict[Computed, float]) -> Computed:
    """The precision with the least time. A more exact one stays unless it is clearly slower.

    >>> fastest({"fp32": 1.00, "bf16": 0.99, "int8": 0.5})
    'int8'
    >>> fastest({"fp32": 1.00, "bf16": 0.99})
    'fp32'
    """
    least = min(seconds.values())
    return next(name for name, spent in seconds.items() if spent <= CLEARLY * least)


# --- The cache: a JSON file. Without it, everything works, and each process measures again.


def cache_folder() -> Path:
    return platformdirs.user_cache_path("minibert")


def stored() -> dict[str, Computed]:
    with suppress(OSError, ValueError):
        known = json.loads((cache_folder() / "precision.json").read_text(encoding="utf-8"))
        if isinstance(known, dict):
            return known
    return {}


def store(known: dict[str, Computed]) -> None:
    with suppress(InputError), complete_files(cache_folder()) as draft:
        text = json.dumps(known, indent=1)
        (draft / "precision.json").write_text(text + "\n", encoding="utf-8")
