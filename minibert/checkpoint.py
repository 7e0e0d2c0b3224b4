"""The state of a training run, on disk and back: what resuming exactly needs.

A checkpoint is one file: the SHA-256 of the rest, then what `torch.save` writes of the state. It
appears under its name only when it is whole, and `latest` uses none that has changed since.
"""

import hashlib
import io
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError, InputError

DIGEST = hashlib.sha256().digest_size


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `checkpoint-STEP.pt`, and remove all but the `keep` newest up to this step.

    Later ones are removed too: a run that goes on from an earlier one has found them damaged, or
    will write them again. So are unfinished ones. Raises `InputError`.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    path = folder / f"checkpoint-{step:07d}.pt"
    unfinished = path.with_suffix(".unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(hashlib.sha256(payload).digest())
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)  # all or nothing, also when the machine stops here
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    others = sorted(folder.glob("checkpoint-*.pt"))
    place = others.index(path)
    for other in (*others[: max(0, place + 1 - keep)], *others[place + 1 :]):
        other.unlink(missing_ok=True)
    for other in folder.glob("checkpoint-*.unfinished"):
        other.unlink(missing_ok=True)
    return path


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint. Raises `CheckpointError` for one that is not as it was written."""
    try:
        content = memoryview(path.read_bytes())
        if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
            raise CheckpointError(f"{path}: damaged: its checksum does not fit")
        state = torch.load(io.BytesIO(content[DIGEST:]), map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a file that another wrote: torch's reader raises many types
        raise CheckpointError(f"{path}: not a checkpoint: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a checkpoint: a {type(state).__name__}")
    return state


def latest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint that is whole, and its state; a damaged one is passed over, and warned
    of. Raises `CheckpointError` when there is none.
    """
    for path in sorted(folder.glob("checkpoint-*.pt"), reverse=True):
        try:
            return path, load(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; trying the one before", stacklevel=2)
    raise CheckpointError(f"{folder}: no checkpoint to resume from")


def require_space(folder: Path, size: int) -> None:
    """Raises `InputError` when `folder` cannot grow to `size` bytes on its disk."""
    free = shutil.disk_usage(folder).free
    size -= sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if free < size:
        raise InputError(
            f"{folder}: {free / 2**20:.0f} MB free, but the run needs {size / 2**20:.0f} MB"
        )
