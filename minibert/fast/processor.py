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

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Computed = Literal["fp32", "bf16", "fp16", "int8"]  # a precision that was chosen
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # the precisions of floats with 16 bits
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
    name: Precision, device: torch.device | None, float_weights: bool = False
) -> Precision:
    """A precision by name. It stays "auto" on a CPU, where `probe.fastest_precision` measures.

    The environment variable MINIBERT_PRECISION replaces "auto". `gpu_precision` says what "auto" is
    on a GPU. `float_weights` excludes "int8", because training needs float weights. `device` None
    means that the device is not known yet: then only the name is checked. Raises `InputError` for
    an unknown name, and for a precision that is not possible.

    "fp32" on a GPU is what torch computes float32 with. By torch's default, matrix products use all
    bits. minibert does not change this. `torch.set_float32_matmul_precision("high")` allows TF32,
    which is faster and rounds the inputs of products to 10 bits (not measured).
    """
    said = f"precision={name!r}"
    if name == "auto" and (variable := os.environ.get(VARIABLE)):
        said = f"{VARIABLE}={variable}"
        name = "auto" if float_weights and variable == "int8" else cast(Precision, variable)
    if name not in get_args(Precision):
        raise InputError(f"{said}: expected 'auto', 'fp32', 'bf16', 'fp16' or 'int8'")
    if name == "int8" and float_weights:
        raise InputError(
            f"{said}: only from_pretrained can load such a model, and it cannot be trained"
        )
    if device is None:
        return name
    if name == "int8" and not (device.type == "cpu" and has_int8()):
        raise InputError(f"{said} needs an x86 CPU with AVX2")
    if name == "fp16" and device.type == "cpu":
        raise InputError(f"{said} needs a GPU")
    return gpu_precision(device) if name == "auto" and device.type != "cpu" else name


def gpu_precision(device: torch.device) -> Computed:
    """The fastest precision that a GPU probably has. This is by reading, not measured.

    bfloat16 where the GPU has instructions for it; this is the rule of torch's
    `is_bf16_supported(including_emulation=False)`, which asks only about the current GPU. Otherwise
    float16 from compute capability 7.0 on, which brought tensor cores. Most GPUs of capability 6
    compute float16 64 times more slowly than float32 (CUDA C++ Programming Guide, "Throughput of
    Native Arithmetic Instructions").
    """
    if device.type != "cuda":
        return "fp32"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip or capability >= (8, 0):
        return "bf16"
    return "fp16" if capability >= (7, 0) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Compute in a precision of `HALF` with float32 weights. Other precisions change nothing."""
    return torch.autocast(device.type, HALF.get(precision, torch.bfloat16), precision in HALF)


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
