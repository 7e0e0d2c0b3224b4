"""A training run's folder: its state on disk and back, its log, progress and stop signals.

A checkpoint is one file: the SHA-256 of the rest, then what `torch.save` writes of the state. It
appears under its name only when it is whole, and `latest_checkpoint` uses none that has changed
since. What a run computes stands in `training.py`; here is what lets it stop and go on.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import nn

from .errors import CheckpointError, DataError, InputError, Interrupted
from .features import Feature
from .files import all_or_nothing, make_folder
from .parallel import ProcessGroup

# what a checkpoint holds
STATE = {
    "identity", "model", "optimizer", "random", "step", "epochs_done", "log_size", "metrics",
}  # fmt: skip


class Run:
    """A training run and its folder: how far it has come, and all that it writes.

    Of several processes, each has one of these; the methods that save or ask for a stop are
    collective operations, and the process of rank 0 alone writes.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        group: ProcessGroup,
        keep_checkpoints: int,
    ) -> None:
        """`identity` is all that the weights depend on: see `require_same_run`."""
        self.folder = folder
        self.identity = identity
        self.model = model
        self.optimizer = optimizer
        self.group = group
        self.keep_checkpoints = keep_checkpoints
        self.step = 0
        self.epochs_done = 0
        self.metrics: dict[str, float | int] = {}  # of the last evaluation
        self.last_checkpoint: Path | None = None
        self.log_size = 0  # bytes of the log that belong to this run

    def restore(self) -> None:
        """Go on from the newest whole checkpoint, or begin anew where there is none.

        Raises `CheckpointError` for a checkpoint of another run, or of another program.
        """
        if not any(self.folder.glob("checkpoint-*.pt")):
            return
        self.last_checkpoint, state = latest_checkpoint(self.folder)
        if missing := STATE - state.keys():
            names = ", ".join(sorted(missing))
            raise CheckpointError(f"{self.last_checkpoint}: not a checkpoint: no {names}")
        require_same_run(state["identity"], self.identity)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        cpu, cuda = state["random"][self.group.rank]
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
        self.step, self.epochs_done = state["step"], state["epochs_done"]
        self.metrics, self.log_size = state["metrics"], state["log_size"]

    @contextmanager
    def open(self, progress: bool) -> Iterator[None]:
        """Open the log and the progress bar, and let Ctrl-C and SIGTERM wait for a checkpoint."""
        # a checkpoint holds the weights and Adam's two moments; there is one too many of them while
        # one is written
        size = sum(p.numel() * p.element_size() for p in self.model.parameters())
        require_space(make_folder(self.folder), size * (3 * self.keep_checkpoints + 4))
        self.group.gather(None)  # before one process writes, all have looked
        writes = self.group.rank == 0
        log_path = self.folder / "metrics.jsonl" if writes else Path(os.devnull)
        with (
            open_log(log_path, self.log_size) as self.log,
            progress_bar(progress and writes) as self.bar,
            stop_signals() as self.stop,
        ):
            yield

    def announce(self, line: str) -> None:
        """Print a line above the progress bar, where there is one."""
        self.bar.console.print(line)

    def report_skipped(self, skipped: Sequence[DataError]) -> None:
        """Name the questions that were left out in `skipped.txt`."""
        if skipped and self.group.rank == 0:
            with all_or_nothing(self.folder) as draft:
                text = "".join(f"{problem}\n" for problem in skipped)
                (draft / "skipped.txt").write_text(text, encoding="utf-8")
            self.announce(f"{len(skipped):,} left out: {self.folder / 'skipped.txt'} says why")

    def start_phase(self, description: str, windows: int) -> None:
        """Begin a bar for so many windows."""
        self.task: TaskID = self.bar.add_task(description, total=windows, status="")
        self.began, self.windows_done = time.perf_counter(), 0

    def advance(self, windows: int, status: str = "") -> None:
        """Move the bar on by the windows that have just been read."""
        self.windows_done += windows
        self.bar.update(self.task, completed=self.windows_done, status=status)

    def log_step(self, epoch: int, windows: int, figures: dict[str, float]) -> None:
        """Count one step, log it and show it."""
        self.step += 1
        speed = (self.windows_done + windows) / (time.perf_counter() - self.began)
        self.advance(windows, f"loss {figures['loss']:.2f}  {speed:.1f} windows/s")
        line = {"step": self.step, "epoch": epoch, **figures, "windows_per_second": speed}
        self.log.write(json.dumps(line) + "\n")

    def log_evaluation(self, epoch: int, metrics: dict[str, float | int]) -> None:
        """Keep, log and show the figures of an epoch's evaluation."""
        self.metrics = metrics
        self.log.write(json.dumps({"step": self.step, "epoch": epoch} | metrics) + "\n")
        self.advance(0, f"EM {metrics['exact_match']:.2f}  F1 {metrics['f1']:.2f}")

    def save_if_due(self, every: int) -> None:
        """Save after every so many steps, and when asked to stop; then raise `Interrupted`."""
        asked = next(filter(None, self.group.gather(self.stop.asked)), None)
        if asked or self.step % every == 0:
            self.save()
        if asked:
            self.group.gather(None)  # until it is written
            raise self.interrupted(asked)

    def raise_if_stopped(self) -> None:
        """Raise `Interrupted` when this process was asked to stop; saves nothing."""
        if self.stop.asked:
            raise self.interrupted(self.stop.asked)

    def interrupted(self, asked: signal.Signals) -> Interrupted:
        return Interrupted(f"{asked.name}: stopped; {self.last_checkpoint} resumes it", asked)

    def save(self) -> None:
        """Write a checkpoint, and remove those that are no longer kept."""
        on_gpu = next(self.model.parameters()).device.type == "cuda"
        cuda = torch.cuda.get_rng_state() if on_gpu else None
        random_states = self.group.gather((torch.get_rng_state(), cuda))
        if self.group.rank > 0:
            self.last_checkpoint = self.folder  # rank 0 knows which
            return
        self.log.flush()
        os.fsync(self.log.fileno())  # a checkpoint counts on the lines before it
        state = {
            "identity": self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_states,
            "step": self.step,
            "epochs_done": self.epochs_done,
            "log_size": Path(self.log.name).stat().st_size,
            "metrics": self.metrics,
        }
        self.last_checkpoint = write_checkpoint(
            self.folder, self.step, state, self.keep_checkpoints
        )


def require_new_folder(folder: Path) -> None:
    """Raises `InputError` when a folder holds a model or a run."""
    names = ("config.json", "metrics.jsonl")
    if any(folder.glob("checkpoint-*.pt")) or any((folder / name).exists() for name in names):
        raise InputError(
            f"{folder}: holds a model or a run already; choose another output folder, or resume"
        )


def digest(features: Sequence[Feature]) -> str:
    """A fingerprint of the windows and their labels, in their order."""
    sha256 = hashlib.sha256()
    for f in features:
        fields = (f.example_id, f.prefix, f.token_start, f.token_end)
        sha256.update(repr((*fields, f.start_position, f.end_position)).encode())
        sha256.update(f.context.ids.tobytes())
    return sha256.hexdigest()


def require_same_run(was: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises `CheckpointError` for a difference that would give other weights."""
    free = ("output_dir", "progress", "checkpoint_every", "keep_checkpoints")
    differences = [
        f"{name} was {was.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(was.keys() | now.keys())
        if name not in free and was.get(name) != now.get(name)
    ]
    if differences:
        raise CheckpointError(f"not the run to resume: {'; '.join(differences)}")


DIGEST = hashlib.sha256().digest_size


def write_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
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
    index = others.index(path)
    for other in (*others[: max(0, index + 1 - keep)], *others[index + 1 :]):
        other.unlink(missing_ok=True)
    for other in folder.glob("checkpoint-*.unfinished"):
        other.unlink(missing_ok=True)
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
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


def latest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint that is whole, and its state; a damaged one is passed over, and warned
    of. Raises `CheckpointError` when there is none.
    """
    for path in sorted(folder.glob("checkpoint-*.pt"), reverse=True):
        try:
            return path, read_checkpoint(path)
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


def open_log(path: Path, size: int) -> TextIO:
    """A log to write on from its first `size` bytes; lines past them are cut off."""
    if path == Path(os.devnull):
        return path.open("w", encoding="utf-8")
    try:
        path.touch()
        log = path.open("r+", buffering=1, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    if path.stat().st_size < size:
        raise CheckpointError(f"{path}: shorter than when the checkpoint was written")
    log.truncate(size)
    log.seek(size)
    return log


class StopSignals:
    """Which of Ctrl-C and SIGTERM has come: training looks after each step."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.asked:  # the second time: at once
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Ctrl-C and SIGTERM wait until the state is saved. (Only a main thread can catch signals.)"""
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop.receive) for number in caught]
    try:
        yield stop
    finally:
        for number, handler in zip(caught, before, strict=True):
            signal.signal(number, handler)


def progress_bar(shown: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}  {task.fields[status]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, quiet=not shown)
    return Progress(*columns, console=console, disable=not shown)
