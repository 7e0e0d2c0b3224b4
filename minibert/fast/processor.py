"""Which device, precision and attention to compute with: by name, or the fastest here."""

import os
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from ..errors import InputError

Precision = Literal["auto", "fp32", "bf16"]

# The values of ONEDNN_MAX_CPU_ISA under which oneDNN does without these instructions
# (https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html).
_NO_BF16 = (
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
)  # fmt: skip
LIMITS_WITHOUT = {
    "avx512_bf16": _NO_BF16,
    "amx_bf16": (*_NO_BF16, "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"),
}


def choose_device(name: str) -> torch.device:
    """A device by name; "auto" is the GPU where there is one. Raises `InputError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"device={name!r} cannot be used: {reason}") from error


def choose_precision(name: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """A precision by name; "auto" is bfloat16 where the processor computes in it, else float32.

    Where it does not, bfloat16 is emulated, and slower than float32. Raises `InputError`.
    """
    if name == "fp32" or name == "bf16":
        return name
    if name != "auto":
        raise InputError(f"precision={name!r}: expected 'auto', 'fp32' or 'bf16'")
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    able = device.type == "cpu" and processor_has("avx512_bf16", "amx_bf16")
    return "bf16" if able else "fp32"


def processor_has(*instructions: str) -> bool:
    """Whether torch computes with any of these instructions: "avx512_bf16", "amx_bf16".

    The processor must have them, and the user must not have kept torch's kernels or oneDNN's
    (the library of its products) from them, by ATEN_CPU_CAPABILITY or ONEDNN_MAX_CPU_ISA.
    """
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2"):
        return False
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return any(
        name in processor_flags() and limit not in LIMITS_WITHOUT[name] for name in instructions
    )


@cache
def processor_flags() -> frozenset[str]:
    """The processor's instruction sets, by the names that Linux and torch both use."""
    if hasattr(torch.cpu, "get_capabilities"):  # from torch 2.11 on
        return frozenset(name for name, able in torch.cpu.get_capabilities().items() if able)
    try:  # Linux; an older torch elsewhere cannot tell
        return frozenset(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return frozenset()
