"""Which device, precision and attention to compute with: by name, or the fastest here."""

from typing import Literal

import torch

from ..errors import InputError

Precision = Literal["auto", "fp32", "bf16"]


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
    """Whether the CPU has any of these, by torch's names (the oldest torch cannot tell: no)."""
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(able.get(name, False) for name in instructions)
