"""A training run's folder: its state on disk and back, its log, progress and stop signals.

`run.json` says which run it is. A checkpoint is one safetensors file of weights, Adam's moments and
random states, with the rest as JSON and a checksum of it all in its header: nothing in it can be
executed, and `latest_checkpoint` uses none that has changed. What a run computes stands in
`training.py`; here is what lets it stop and go on.
"""

import json
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import safetensors.torch
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import CheckpointError, DataError, InputError, Interrupted, PretrainedError, first_of
from ..files import UNFINISHED, complete_files, make_folder
from ..identity import differences, tensors_digest
from ..pretrained import read_json
from .parallel import ProcessGroup

CHECKPOINTS = "checkpoint-*.safetensors"

# what a checkpoint holds beside its tensors
STATE = {"identity", "step", "epochs_done", "log_size", "metrics"}

# what else training writes
MODEL_FILES = {
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
}  # fmt: skip
RUN_FILES = {"run.json", "metrics.jsonl", "skipped.txt"}


class Run:
    """A training run and its folder: how far it has come, and all that it writes.

    Of several processes, each has one of these. `open`, `save` and `save_if_due` are collective
    operations: every process must call them in the same order. The one of rank 0 alone writes.
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
        self.device = next(model.parameters()).device
        self.step = 0
        self.epochs_done = 0
        self.metrics: dict[str, float | int] = {}  # of the last evaluation
        self.last_checkpoint: Path | None = None
        self.log_size = 0  # bytes of the log that belong to this run
        # Set by `open`: the log, the progress bar, and what was asked by signals
        self.log: TextIO
        self.bar: Progress
        self.stop: StopSignals
        # Set by `start_phase`: the phase's bar, when it began, and how many windows are done
        self.task: TaskID
        self.began: float
        self.windows_done: int

    def restore(self, allow_other_machine: bool) -> None:
        """Go on from the newest whole checkpoint, or begin anew where the run has saved none.

        Raises `CheckpointError` for the folder or a checkpoint of another run.
        """
        if not any(self.folder.glob(CHECKPOINTS)):
            if (self.folder / "run.json").exists():
                was = read_run(self.folder)
                require_same_run(was, self.identity, allow_other_machine)
            return
        self.last_checkpoint, tensors, state = latest_checkpoint(self.folder)
        require_same_run(state["identity"], self.identity, allow_other_machine)
        weights = self.model.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name in list(tensors):  # each is let go once it is copied
            kind, _, rest = name.partition(".")
            if kind == "model":
                weights[rest].copy_(tensors.pop(name))
            elif kind == "optimizer":
                index, _, moment = rest.partition(".")
                moments.setdefault(int(index), {})[moment] = tensors.pop(name).clone()
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        rank = self.group.rank
        torch.set_rng_state(tensors[f"random.{rank}.cpu"])
        if self.device.type != "cpu":
            module = torch.get_device_module(self.device)
            module.set_rng_state(tensors[f"random.{rank}.{self.device.type}"])
        self.step, self.epochs_done = state["step"], state["epochs_done"]
        self.metrics, self.log_size = state["metrics"], state["log_size"]

    @contextmanager
    def open(self, progress: bool) -> Iterator[None]:
        """Open the log and the progress bar, and let Ctrl-C and SIGTERM wait for a checkpoint."""
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())  # bytes
        checkpoint = 3 * weights  # with Adam's two moments
        # while a checkpoint is written, the old ones are still there; beside them the saved model
        needed = (self.keep_checkpoints + 1) * checkpoint + weights
        require_space(make_folder(self.folder), needed)
        self.group.wait()  # every process has looked at the folder before rank 0 writes there
        writes = self.group.rank == 0
        if writes:
            for draft in self.folder.glob(f"{UNFINISHED}*"):  # of a process that was killed
                shutil.rmtree(draft, ignore_errors=True)
            with complete_files(self.folder) as draft:
                text = json.dumps(self.identity, indent=2)
                (draft / "run.json").write_text(text + "\n", encoding="utf-8")
        log_path = self.folder / "metrics.jsonl" if writes else Path(os.devnull)
        with (
            open_log(log_path, self.log_size) as self.log,
            progress_bar(progress and writes) as self.bar,
            stop_signals() as self.stop,
        ):
            yield

    def announce(self, line: str) -> None:
        """Print a line above the progress bar, where there is one."""
        self.bar.console.print(line, markup=False, highlight=False)

    def report_skipped(self, skipped: Sequence[DataError]) -> None:
        """Name the questions that were left out in `skipped.txt`."""
        if skipped and self.group.rank == 0:
            with complete_files(self.folder) as draft:
                text = "".join(f"{problem}\n" for problem in skipped)
                (draft / "skipped.txt").write_text(text, encoding="utf-8")
            self.announce(f"{len(skipped):,} left out: {self.folder / 'skipped.txt'} says why")

    def start_phase(self, description: str, windows: int) -> None:
        """Begin a bar for so many windows."""
        self.task = self.bar.add_task(description, total=windows, status="")
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
            self.group.wait()  # until rank 0 has written it
            raise self.interrupted(asked)

    def raise_if_stopped(self) -> None:
        """Raise `Interrupted` when this process was asked to stop; saves nothing."""
        if self.stop.asked:
            raise self.interrupted(self.stop.asked)

    def interrupted(self, asked: signal.Signals) -> Interrupted:
        return Interrupted(f"{asked.name}: stopped; {self.last_checkpoint} resumes it", asked)

    def save(self) -> None:
        """Write a checkpoint, and remove those that are no longer kept."""
        random_states = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            module = torch.get_device_module(self.device)
            random_states[self.device.type] = module.get_rng_state()
        every_process_s = self.group.gather(random_states)
        if self.group.rank > 0:
            self.last_checkpoint = self.folder  # rank 0 knows which
            return
        self.log.flush()
        os.fsync(self.log.fileno())  # a checkpoint counts on the lines before it
        state = {
            "identity": self.identity,
            "step": self.step,
            "epochs_done": self.epochs_done,
            "log_size": Path(self.log.name).stat().st_size,
            "metrics": self.metrics,
        }
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{moment}": t for moment, t in moments.items()}
        for rank, states in enumerate(every_process_s):
            tensors |= {f"random.{rank}.{device}": t for device, t in states.items()}
        self.last_checkpoint = write_checkpoint(
            self.folder, self.step, tensors, state, self.keep_checkpoints
        )


def require_folder(folder: Path, resume: bool) -> None:
    """Raises `InputError` for a folder whose files a run would overwrite, naming them.

    To resume, it must hold a checkpoint, or what a run has left that was stopped before its first
    one, or nothing.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    names -= {name for name in names if name.startswith(".")}
    checkpoints = {path.name for path in folder.glob(CHECKPOINTS)}
    if not resume:
        if held := names & (MODEL_FILES | RUN_FILES) | checkpoints:
            raise InputError(
                f"{folder}: holds a model or a run already ({first_of(held)}); choose another "
                "output folder, or resume"
            )
    elif not checkpoints:
        stopped_early = "run.json" in names and not names & MODEL_FILES
        if names and not stopped_early:
            raise InputError(f"{folder}: no run to resume from: holds {first_of(names)}")


# Where a run is, and how it shows itself: no weight depends on these. What stands behind the paths
# is compared by its contents.
NOT_COMPARED = {
    "init", "revision", "train_file", "dev_file", "teachers", "output_dir",
    "progress", "checkpoint_every", "keep_checkpoints",
}  # fmt: skip


def require_same_run(
    was: dict[str, Any], now: dict[str, Any], allow_other_machine: bool = False
) -> None:
    """Raises `CheckpointError` for a difference that would give other weights.

    With `allow_other_machine`, another "machine" is a warning.
    """
    changed = differences(was, now, NOT_COMPARED)
    machine = changed.pop("machine", None)
    if changed:
        raise CheckpointError(f"not the run to resume: {'; '.join(changed.values())}")
    if machine and allow_other_machine:
        warnings.warn(f"{machine}: not bit for bit the same weights", stacklevel=2)
    elif machine:
        raise CheckpointError(
            f"{machine}: not bit for bit the same weights; --allow-other-machine goes on"
        )


def read_run(folder: Path) -> dict[str, Any]:
    """The identity of the run in a folder. Raises `CheckpointError`."""
    try:
        return read_json(folder / "run.json")
    except PretrainedError as error:
        raise CheckpointError(str(error)) from error


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any], keep: int
) -> Path:
    """Write `checkpoint-STEP.safetensors`, and remove all but the `keep` newest up to this step.

    Later ones are removed too: a run that goes on from an earlier one has found them damaged, or
    will write them again. Raises `InputError`.
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
    """Tensors and state of a checkpoint. Raises `CheckpointError` for one that is not as it was
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
        raise CheckpointError(f"{path}: damaged: its checksum does not fit")
    state = json.loads(text)
    if missing := STATE - (state.keys() if isinstance(state, dict) else set()):
        raise CheckpointError(f"{path}: not a checkpoint: no {', '.join(sorted(missing))}")
    return tensors, state


def latest_checkpoint(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """The newest checkpoint that is whole; a damaged one is passed over, and warned of.

    Raises `CheckpointError` when there is none.
    """
    for path in sorted(folder.glob(CHECKPOINTS), reverse=True):
        try:
            return path, *read_checkpoint(path)
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
