"""Checkpoints: the state of a run -> one file, and the newest complete file -> the state.

A checkpoint is a safetensors file. It holds the weights, Adam's moments and the random states. Its
header holds the other state as JSON, and a checksum of everything. Reading it executes no code.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from ..files import complete_files
from ..identity import tensors_digest
from .job import Job

CHECKPOINTS = "checkpoint-*.safetensors"

# The keys of the JSON.
STATE = {"identity", "step", "epochs_done", "log_size", "metrics"}


def tensors_of(job: Job) -> dict[str, Tensor]:
    """The weights, Adam's moments, and the random states of every process.

    This is a collective operation, see `ProcessGroup`.
    """
    states = {"cpu": torch.get_rng_state()}
    if job.device.type != "cpu":
        module = torch.get_device_module(job.device)
        states[job.device.type] = module.get_rng_state(*numbered(job.device))
    tensors = {f"model.{name}": t for name, t in job.model.state_dict().items()}
    for index, moments in job.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{moment}": t for moment, t in moments.items()}
    for rank, every in enumerate(job.group.gather(states)):
        tensors |= {f"random.{rank}.{kind}": t for kind, t in every.items()}
    return tensors


def load_tensors(job: Job, tensors: dict[str, Tensor]) -> None:
    """Put a checkpoint back into the job. Weights and moments leave `tensors`, to save memory."""
    weights = job.model.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for name in list(tensors):
        kind, _, rest = name.partition(".")
        if kind == "model":
            weights[rest].copy_(tensors.pop(name))
        elif kind == "optimizer":
            index, _, moment = rest.partition(".")
            moments.setdefault(int(index), {})[moment] = tensors.pop(name).clone()
    job.optimizer.load_state_dict(job.optimizer.state_dict() | {"state": moments})
    torch.set_rng_state(tensors[f"random.{job.group.rank}.cpu"])
    if job.device.type != "cpu":
        module = torch.get_device_module(job.device)
        state = tensors[f"random.{job.group.rank}.{job.device.type}"]
        module.set_rng_state(state, *numbered(job.device))


def numbered(device: torch.device) -> tuple[torch.device, ...]:
    """The argument that chooses the generator of this device, and not of the current device.

    `torch.mps` has only one device, and its functions take no such argument.
    """
    return () if device.type == "mps" else (device,)


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any], keep: int
) -> Path:
    """Write `checkpoint-STEP.safetensors`, and remove all but the `keep` newest up to this step.

    Checkpoints of later steps are removed too. A run that resumed from an earlier checkpoint found
    the later ones damaged, or will write them again. Raises `InputError`.
    """
    path = folder / f"checkpoint-{step:07d}.safetensors"
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state)
    metadata = {"format": "pt", "state": text, "sha256": tensors_digest(plain, text)}
    with complete_files(folder) as draft:
        safetensors.torch.save_file(plain, draft / path.name, metadata)
    others = sorted(folder.glob(CHECKPOINTS))
    index = others.index(path)
    for other in (*others[: max(0, index + 1 - keep)], *others[index + 1 :]):
        other.unlink(missing_ok=True)
    return path


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state of a checkpoint.

    Raises `CheckpointError` for a file that is not a checkpoint or has changed since it was
    written.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a checkpoint: {error}") from error
    text = metadata.get("state", "{}")
    if tensors_digest(tensors, text) != metadata.get("sha256"):
        raise CheckpointError(f"{path}: damaged: its checksum does not match")
    state = json.loads(text)
    if missing := STATE - (state.keys() if isinstance(state, dict) else set()):
        raise CheckpointError(f"{path}: not a checkpoint: no {', '.join(sorted(missing))}")
    return tensors, state


def latest_checkpoint(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """The newest complete checkpoint. Damaged ones are skipped with a warning.

    Raises `CheckpointError` when there is none.
    """
    for path in sorted(folder.glob(CHECKPOINTS), reverse=True):
        try:
            return path, *read_checkpoint(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; trying the checkpoint before it", stacklevel=2)
    raise CheckpointError(f"{folder}: no checkpoint to resume from")
