"""A training run: its folder, its log, its progress bar and its stop signals.

`run.json` has the settings and digests that identify the run. A run that wants to resume must have
the same ones: see `require_same_run`.
"""

import json
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn

from ..data.examples import Example
from ..errors import (
    CheckpointError,
    DataError,
    InputError,
    Interrupted,
    PretrainedError,
    counted,
    first_of,
)
from ..fast.processor import Precision, choose_device, device_errors, device_name
from ..features import Feature
from ..files import UNFINISHED, complete_files, make_folder, only_job, write_errors
from ..hub import read_json
from ..identity import (
    differences,
    examples_digest,
    features_digest,
    installed_version,
    tensors_digest,
)
from ..tokenizer_files import TOKENIZER_FILES
from .checkpoints import CHECKPOINTS, latest_checkpoint, load_tensors, tensors_of, write_checkpoint
from .config import TrainingConfig, resolved
from .job import Job
from .parallel import ProcessGroup, process_group

# The other files that training writes.
MODEL_FILES = {"config.json", "model.safetensors", *TOKENIZER_FILES}
RUN_FILES = {"run.json", "metrics.jsonl", "skipped.txt"}

# Settings that do not affect the weights, and paths: the contents behind a path are compared, by
# their digests, but not its name.
NOT_COMPARED = {
    "init", "revision", "train_file", "dev_file", "teachers", "output_dir",
    "progress", "checkpoint_every", "keep_checkpoints",
}  # fmt: skip


@contextmanager
def started(
    config: TrainingConfig, resume: bool
) -> Iterator[tuple[TrainingConfig, torch.device, ProcessGroup]]:
    """Check the output folder, start the processes and set torch's seed.

    Yields the settings as `resolved` completes them. An error of the disk or the device becomes an
    `InputError`.
    """
    device, folder = choose_device(config.device), Path(config.output_dir)
    with process_group(device) as group, device_errors(device), write_errors(folder):
        require_folder(folder, resume)
        if resume and config.precision == "auto":
            config = replace(config, precision=precision_of_run(folder))
        config = resolved(config, device)
        # measured in each process, but all must have the same
        config = replace(config, precision=group.gather(config.precision)[0])
        torch.manual_seed(config.seed)
        yield config, device, group


class Run:
    """A training run and its folder: its progress, and all the files that it writes.

    Each process has its own `Run`, but only the process of rank 0 writes files. The constructor,
    `open`, `save` and `save_if_due` are collective operations, see `ProcessGroup`.
    """

    def __init__(
        self, job: Job, features: Sequence[Feature], dev_examples: Sequence[Example] = ()
    ) -> None:
        """`features` are all windows that the run trains on, in order."""
        self.job = job
        self.folder = Path(job.config.output_dir)
        self.identity = identity_of(job, features, dev_examples)
        self.step = 0
        self.epochs_done = 0
        self.metrics: dict[str, float | int] = {}  # of the last evaluation
        self.last_checkpoint: Path | None = None
        self.log_size = 0  # how many bytes of the log belong to this run

    @contextmanager
    def open(self, resume: bool, allow_other_machine: bool) -> Iterator[None]:
        """Start or resume. Within the block, log and progress bar are open, and stop signals wait.

        Raises `CheckpointError` if the run to resume is another one, and `InputError` if the disk
        lacks space or another job is writing to the folder.
        """
        config, group = self.job.config, self.job.group
        writes = group.rank == 0
        folder = make_folder(self.folder)  # in each process, because each looks at its disk
        with only_job(folder) if writes else nullcontext():
            require_folder(self.folder, resume)  # again, because another job may have written here
            if group.rank > 0:  # so far all processes had one seed; now each draws its own dropout
                torch.manual_seed(config.seed + group.rank)
            if resume:
                self.restore(allow_other_machine)
            self.require_space()
            group.wait()  # until every process has looked at the folder, because rank 0 writes
            if writes:
                for draft in self.folder.glob(f"{UNFINISHED}*"):  # of a process that was killed
                    shutil.rmtree(draft, ignore_errors=True)
                self.write_text("run.json", json.dumps(self.identity, indent=2) + "\n")
            log = self.folder / "metrics.jsonl"
            with (
                open_log(log, self.log_size) if writes else Path(os.devnull).open("w") as self.log,
                progress_bar(config.progress and writes) as self.bar,
                StopSignals() as self.stop,
            ):
                yield

    def require_space(self) -> None:
        """Raise `InputError` when the disk has too little space for all files of the run."""
        weights = sum(p.numel() * p.element_size() for p in self.job.model.parameters())  # bytes
        checkpoint = 3 * weights  # with Adam's two moments
        # the old checkpoints, the new one while it is written, and the saved model
        require_space(self.folder, (self.job.config.keep_checkpoints + 1) * checkpoint + weights)

    def restore(self, allow_other_machine: bool) -> None:
        """Continue from the newest complete checkpoint, or start anew if the run has saved none.

        Raises `CheckpointError` for the folder or a checkpoint of another run.
        """
        if not any(self.folder.glob(CHECKPOINTS)):
            if (path := self.folder / "run.json").exists():
                try:
                    require_same_run(read_json(path), self.identity, allow_other_machine)
                except PretrainedError as error:
                    raise CheckpointError(str(error)) from error
            return
        self.last_checkpoint, tensors, state = latest_checkpoint(self.folder)
        require_same_run(state["identity"], self.identity, allow_other_machine)
        load_tensors(self.job, tensors)
        self.step, self.epochs_done = state["step"], state["epochs_done"]
        self.metrics, self.log_size = state["metrics"], state["log_size"]
        self.job.scaler.load_state_dict(state.get("loss_scale", {}))  # older runs have no such key

    def write_text(self, name: str, text: str) -> None:
        with complete_files(self.folder) as draft:
            (draft / name).write_text(text, encoding="utf-8")

    def announce(self, line: str) -> None:
        """Print a line above the progress bar, if the bar is shown."""
        self.bar.console.print(line, markup=False, highlight=False)

    def report_skipped(self, skipped: Sequence[DataError]) -> None:
        """List the questions that were left out in `skipped.txt`."""
        if skipped and self.job.group.rank == 0:
            self.write_text("skipped.txt", "".join(f"{problem}\n" for problem in skipped))
            left_out = counted(len(skipped), "question was", "questions were")
            self.announce(f"{left_out} left out; skipped.txt has the reasons")

    def start_phase(self, description: str, windows: int) -> None:
        """Begin a progress bar for this number of windows."""
        self.task = self.bar.add_task(description, total=windows, status="")
        self.began, self.windows_done = time.perf_counter(), 0

    def advance(self, windows: int, status: str = "") -> None:
        self.windows_done += windows
        self.bar.update(self.task, completed=self.windows_done, status=status)

    def log_step(self, epoch: int, windows: int, figures: dict[str, float]) -> None:
        """Count one step, log it and show it."""
        self.step += 1
        speed = (self.windows_done + windows) / (time.perf_counter() - self.began)
        self.advance(windows, f"loss {figures['loss']:.2f}  {speed:.1f} windows/s")
        self.write_line(epoch, figures | {"windows_per_second": speed})

    def log_evaluation(self, epoch: int, metrics: dict[str, float | int]) -> None:
        """Keep, log and show the metrics of an epoch's evaluation."""
        self.metrics = metrics
        self.write_line(epoch, metrics)
        self.advance(0, f"EM {metrics['exact_match']:.2f}  F1 {metrics['f1']:.2f}")

    def write_line(self, epoch: int, figures: Mapping[str, float]) -> None:
        self.log.write(json.dumps({"step": self.step, "epoch": epoch, **figures}) + "\n")

    def save_if_due(self) -> None:
        """Save every `checkpoint_every` steps. If a signal came, save and raise `Interrupted`."""
        group = self.job.group
        received = next(filter(None, group.gather(self.stop.received)), None)
        if received or self.step % self.job.config.checkpoint_every == 0:
            self.save()
        if received:
            group.wait()  # until rank 0 has written the checkpoint
            raise self.interrupted(received)

    def raise_if_stopped(self) -> None:
        """Raise `Interrupted` if this process has received a stop signal; saves nothing."""
        if self.stop.received:
            raise self.interrupted(self.stop.received)

    def interrupted(self, number: signal.Signals) -> Interrupted:
        return Interrupted(f"{number.name}: stopped; resume from {self.last_checkpoint}", number)

    def save(self) -> None:
        """Write a checkpoint, and remove the checkpoints that are no longer kept."""
        tensors = tensors_of(self.job)
        if self.job.group.rank > 0:
            self.last_checkpoint = self.folder  # only rank 0 knows the file
            return
        self.log.flush()
        os.fsync(self.log.fileno())  # the checkpoint needs all lines before it
        state = {
            "identity": self.identity,
            "step": self.step,
            "epochs_done": self.epochs_done,
            "log_size": Path(self.log.name).stat().st_size,
            "metrics": self.metrics,
            "loss_scale": self.job.scaler.state_dict(),  # empty if the precision is not float16
        }
        keep = self.job.config.keep_checkpoints
        self.last_checkpoint = write_checkpoint(self.folder, self.step, tensors, state, keep)


def require_folder(folder: Path, resume: bool) -> None:
    """Raise `InputError` for a folder whose files a run would overwrite.

    To resume, the folder must hold a checkpoint, or the files of a run that stopped before its
    first checkpoint, or nothing.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    names = {name for name in names if not name.startswith(".")}
    checkpoints = {path.name for path in folder.glob(CHECKPOINTS)}
    held = names & (MODEL_FILES | RUN_FILES) | checkpoints
    if held and not resume:
        raise InputError(
            f"{folder}: holds a model or a run already ({first_of(held)}); choose another output "
            "folder, or resume"
        )
    stopped_early = "run.json" in names and not names & MODEL_FILES
    if resume and names and not checkpoints and not stopped_early:
        raise InputError(f"{folder}: no run to resume from: holds {first_of(names)}")


def precision_of_run(folder: Path) -> Precision:
    """The precision with which a run began, or "auto" if this is not known."""
    with suppress(PretrainedError):
        precision: Precision = read_json(folder / "run.json").get("precision", "auto")
        return precision
    return "auto"


def identity_of(
    job: Job, features: Sequence[Feature], dev_examples: Sequence[Example]
) -> dict[str, Any]:
    """Everything that the weights depend on. For files it has digests of their contents."""
    teachers = [tensors_digest(teacher.state_dict())[:16] for teacher in job.teachers]
    device = device_name(job.device)
    software = f"minibert {installed_version()}, torch {torch.__version__}"
    machine = f"{software}, {torch.get_num_threads()} threads, {device}"
    return {
        **asdict(job.config),
        "processes": job.group.size,
        "init_weights": tensors_digest(job.model.state_dict())[:16],
        # None without teachers: older runs do not have this key
        "teacher_weights": teachers or None,
        "train_data": features_digest(features)[:16],
        "dev_data": examples_digest(dev_examples)[:16],
        "machine": sorted(set(job.group.gather(machine))),
    }


def require_same_run(
    was: dict[str, Any], now: dict[str, Any], allow_other_machine: bool = False
) -> None:
    """Raise `CheckpointError` for a difference that would change the weights.

    With `allow_other_machine`, another "machine" is only a warning. It includes the versions of
    minibert and torch.
    """
    changed = differences(was, now, NOT_COMPARED)
    machine = changed.pop("machine", None)
    if changed:
        raise CheckpointError(f"this is not the run to resume: {'; '.join(changed.values())}")
    if machine:
        message = f"{machine}: the weights may differ in their last bits"
        if not allow_other_machine:
            raise CheckpointError(f"{message}; to resume all the same, use --allow-other-machine")
        warnings.warn(message, stacklevel=2)


def require_space(folder: Path, size: int) -> None:
    """Raise `InputError` when `folder` cannot grow to `size` bytes on its disk."""
    free = shutil.disk_usage(folder).free
    size -= sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if free < size:
        raise InputError(
            f"{folder}: {free / 2**20:.0f} MB free, but the run needs {size / 2**20:.0f} MB"
        )


def open_log(path: Path, size: int) -> TextIO:
    """Open a log to append lines after its first `size` bytes; later bytes are cut off."""
    with write_errors(path):
        path.touch()
        log = path.open("r+", buffering=1, encoding="utf-8")
    if path.stat().st_size < size:
        raise CheckpointError(f"{path}: shorter than when the checkpoint was written")
    log.truncate(size)
    log.seek(size)
    return log


class StopSignals:
    """Lets Ctrl-C and SIGTERM wait until the state is saved. Only a main thread can catch them."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None  # training looks at it after each step
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:  # a second signal stops at once
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


def progress_bar(shown: bool) -> Progress:
    count = "{task.completed}/{task.total}  {task.fields[status]}"
    columns = ("{task.description}", BarColumn(), count, TimeRemainingColumn())
    console = Console(stderr=True, quiet=not shown)
    return Progress(*columns, console=console, disable=not shown)
