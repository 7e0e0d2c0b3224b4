"""The device and the precision to compute with: by name, or the fastest ones here."""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from ..config import Attention
from ..errors import InputError, first_line

Precision = Literal["auto", "fp32", "bf16", "int8"]
Computed = Literal["fp32", "bf16", "int8"]  # a precision that was chosen
VARIABLE = "MINIBERT_PRECISION"  # the environment variable that replaces "auto"

# Instructions -> the values of ONEDNN_MAX_CPU_ISA with which oneDNN does not use them
# (https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html).
_NO_BF16 = (
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
)  # fmt: skip
LIMITS_WITHOUT = {
    "avx512_bf16": _NO_BF16,
    "amx_bf16": (*_NO_BF16, "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"),
}


def choose_device(name: str) -> torch.device:
    """A device by name. "auto" is a GPU if torch can use one, otherwise the CPU.

    "auto" is the default everywhere. Raises `InputError` for a device that cannot be used.
    """
    if name == "auto":
        if torch.cuda.is_available():
            with suppress(InputError):  # torch may have no kernels for an old GPU
                return choose_device("cuda")
        return torch.device("cpu")
    try:
        (torch.ones(1, device=name) + 1).item()  # fails on "meta", which stores no numbers
        with torch.autocast(torch.device(name).type, enabled=False):  # not every torch has "mps"
            return torch.device(name)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"device={name!r} cannot be used: {first_line(error)}") from error


@contextmanager
def device_errors(device: torch.device) -> Iterator[None]:
    """Raise `InputError` when a device has no kernel for an operation, or not enough memory."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise InputError(
            f"{device}: out of memory; use smaller batches (max_tokens in training, batch_size in "
            f"answering): {first_line(error)}"
        ) from error
    except NotImplementedError as error:
        raise InputError(f"{device}: {first_line(error)}") from error


def device_name(device: torch.device) -> str:
    """The name of the processor or GPU; for a processor also the instructions that torch uses.

    Two devices with the same name give the same bits for the same program. Others may not.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type} of {platform.platform()}"
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo(), re.MULTILINE)
    name = match[1] if match else platform.processor() or platform.machine()
    used = [instruction for instruction in LIMITS_WITHOUT if processor_has(instruction)]
    return f"{name} ({', '.join([torch.backends.cpu.get_cpu_capability(), *used])})"


def choose_precision(
    name: Precision, device: torch.device, float_weights: bool = False
) -> Precision:
    """A precision by name. It stays "auto" on a CPU, where `probe.fastest_precision` measures.

    The environment variable MINIBERT_PRECISION replaces "auto". On a GPU, "auto" is bfloat16 if the
    GPU computes in it, else float32. `float_weights` excludes "int8", because training needs float
    weights. Raises `InputError` for an unknown name, and for "int8" if it is not possible.
    """
    said = f"precision={name!r}"
    if name == "auto" and (variable := os.environ.get(VARIABLE)):
        said = f"{VARIABLE}={variable}"
        name = "auto" if float_weights and variable == "int8" else cast(Precision, variable)
    if name not in get_args(Precision):
        raise InputError(f"{said}: expected 'auto', 'fp32', 'bf16' or 'int8'")
    if name == "int8" and float_weights:
        raise InputError(
            f"{said}: only from_pretrained can load such a model, and it cannot be trained"
        )
    if name == "int8" and not (device.type == "cpu" and has_int8()):
        raise InputError(f"{said} needs an x86 CPU with AVX2")
    if name != "auto" or device.type == "cpu":
        return name
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if bf16 else "fp32"


def has_int8() -> bool:
    """Whether this torch has the kernels for 8-bit integers, and the CPU has AVX2."""
    avx2 = "AVX" in torch.backends.cpu.get_cpu_capability()
    return avx2 and hasattr(torch.ops.onednn, "qlinear_pointwise")


def faster_attention(precision: Precision, device: torch.device) -> Attention:
    """The attention that reads faster: "sdpa", except for bfloat16 on a CPU without AMX."""
    slow = precision == "bf16" and device.type == "cpu" and not processor_has("amx_bf16")
    return "eager" if slow else "sdpa"


def processor_has(*instructions: str) -> bool:
    """Whether torch computes with any of these instructions: "avx512_bf16", "amx_bf16".

    The processor must have them, and the user must not have switched them off with
    ATEN_CPU_CAPABILITY (for torch's kernels) or ONEDNN_MAX_CPU_ISA (for oneDNN, which computes
    torch's matrix products).
    """
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2"):
        return False
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    flags = processor_flags()
    return any(name in flags and limit not in LIMITS_WITHOUT[name] for name in instructions)


@cache
def processor_flags() -> frozenset[str]:
    """The names of the processor's instruction sets. Linux and torch use the same names."""
    if hasattr(torch.cpu, "get_capabilities"):  # since torch 2.11
        return frozenset(name for name, able in torch.cpu.get_capabilities().items() if able)
    return frozenset(cpuinfo().split())  # empty for an older torch on another system than Linux


def cpuinfo() -> str:
    """Linux's description of the processor; "" on other systems."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
