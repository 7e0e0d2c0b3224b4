"""Training that was killed, stopped or damaged resumes, and ends with the same weights."""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import HANG, needs_permissions, needs_signals

import minibert
from minibert import TrainingConfig, adapt, train
from minibert.training import config as training_config
from minibert.training import finetune, run
from minibert.training.checkpoints import (
    STATE,
    latest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)

NOTES = str(Path(__file__).parent / "data" / "field_notes.json")

# A program that trains with the settings in its argument, and takes long to write a checkpoint.
PROGRAM = """
import json, os, sys, time
from minibert import MinibertError, TrainingConfig, train
fsync = os.fsync
os.fsync = lambda file: (time.sleep(0.1), fsync(file))
try:
    train(TrainingConfig(**json.loads(sys.argv[1])), resume=sys.argv[2] == "resume")
except MinibertError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def config(tiny: Path, output: Path, **changes: Any) -> dict[str, Any]:
    small = {
        "init": str(tiny),
        "train_file": NOTES,
        "dev_file": NOTES,
        "output_dir": str(output),
        "epochs": 3,
        "learning_rate": 1e-3,
        "warmup_ratio": 0.1,
        "max_length": 128,
        "doc_stride": 32,
        "max_train_examples": 40,
        "checkpoint_every": 3,
        "progress": False,
    }
    return small | changes


def start(settings: dict[str, Any]) -> subprocess.Popen[str]:
    resume = Path(settings["output_dir"]).exists()
    command = [sys.executable, "-c", PROGRAM, json.dumps(settings), "resume" if resume else "new"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def steps_done(output: Path) -> int:
    log = output / "metrics.jsonl"
    return log.read_text(encoding="utf-8").count('"loss"') if log.exists() else 0


def wait(process: subprocess.Popen[str], until: Any) -> None:
    deadline = time.monotonic() + HANG
    while not until() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


def result(output: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """The final weights, and the log without its speeds."""
    log = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in log]
    for row in rows:
        row.pop("windows_per_second", None)
    return (output / "model.safetensors").read_bytes(), rows


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def survives(tiny: Path, folder: Path, kills: int) -> None:
    long = {"epochs": kills}  # the run must last until the last kill
    train(TrainingConfig(**config(tiny, folder / "whole", **long)))
    whole = result(folder / "whole")
    settings, output = config(tiny, folder / "killed", **long), folder / "killed"
    choose = random.Random(kills)
    for kill in range(kills):
        process = start(settings)
        if kill % 3 == 0:  # while a checkpoint is being written
            wait(process, lambda: any(output.glob(".unfinished-*")))
        else:
            step = steps_done(output) + choose.randrange(1, 6)
            wait(process, lambda step=step: steps_done(output) >= step)
            time.sleep(choose.uniform(0, 0.1))
        assert process.poll() is None, f"ended before it was killed: {process.communicate()[0]}"
        process.kill()
        process.communicate()
    process = start(settings)
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == 0, out
    assert result(output) == whole


def test_a_killed_run_ends_with_the_same_weights(tiny, tmp_path):
    survives(tiny, tmp_path, kills=3)


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_with_the_same_weights(tiny, tmp_path):
    survives(tiny, tmp_path, kills=10)


@needs_signals
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_signal_saves_the_last_step(tiny, tmp_path, number, code):
    """Also between two regular checkpoints. The message names the checkpoint."""
    output = tmp_path / "run"
    settings = config(tiny, output, checkpoint_every=1000, batch_size=1, dev_file=None)
    process = start(settings)
    wait(process, lambda: steps_done(output) >= 2)
    process.send_signal(number)
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == code
    (saved,) = output.glob("checkpoint-*.safetensors")
    assert number.name in out and str(saved) in out
    assert read_checkpoint(saved)[1]["step"] == steps_done(output) >= 2


@needs_signals
def test_only_one_job_writes_to_a_folder(tiny, tmp_path):
    """A second job is refused with one line, and changes nothing. A killed job's lock is gone."""
    short = {"epochs": 1, "batch_size": 4, "dev_file": None}
    output, settings = tmp_path / "run", config(tiny, tmp_path / "run", **short)
    train(TrainingConfig(**config(tiny, tmp_path / "whole", **short)))
    first = start(settings)
    wait(first, lambda: steps_done(output) >= 4)
    first.send_signal(signal.SIGSTOP)
    before = contents(output)
    with pytest.raises(minibert.InputError, match="run: another job is writing here"):
        train(TrainingConfig(**settings), resume=True)
    assert contents(output) == before
    first.kill()
    first.communicate()
    train(TrainingConfig(**settings), resume=True)
    assert result(output) == result(tmp_path / "whole")
    assert not list(output.glob(".*"))


def test_a_job_that_wrote_in_the_meantime_is_not_overwritten(tiny, tmp_path, monkeypatch):
    """It begins and ends while this job, which began in an empty folder, reads its data."""
    folder = tmp_path / "run"
    load = finetune.load_data

    def load_slowly(*arguments: Any) -> Any:
        if not folder.exists():
            shutil.copytree(tiny, folder)
        return load(*arguments)

    monkeypatch.setattr(finetune, "load_data", load_slowly)
    with pytest.raises(minibert.InputError, match="holds a model or a run already"):
        train(TrainingConfig(**config(tiny, folder)))


# A stop or a kill at every moment, for both kinds of training, in this process.


@pytest.fixture(params=["train", "adapt"])
def few_steps(request, tiny, tmp_path) -> Any:
    """Starts or resumes a run of two epochs in a folder: `few_steps(folder, resume=False)`.

    With dropout; fine-tuning evaluates after each epoch.
    """
    articles = json.loads(Path(NOTES).read_text(encoding="utf-8"))["data"]
    dev = {"data": [{"paragraphs": articles[0]["paragraphs"][:1]}]}
    (tmp_path / "dev.json").write_text(json.dumps(dev), encoding="utf-8")
    changes = {"epochs": 2, "max_train_examples": 6, "batch_size": 3, "checkpoint_every": 1000}

    def start(folder: Path, resume: bool = False) -> None:
        settings = config(tiny, folder, **changes, dev_file=None, dropout=0.1)
        if request.param == "adapt":
            adapt(TrainingConfig(**settings), resume)
        else:
            train(TrainingConfig(**settings | {"dev_file": str(tmp_path / "dev.json")}), resume)

    return start


def test_a_run_may_be_stopped_after_the_last_step_of_an_epoch(few_steps, tmp_path, monkeypatch):
    """The end of this epoch is then still to come. The same for the first step."""
    few_steps(tmp_path / "whole")
    whole = result(tmp_path / "whole")
    log_step = run.Run.log_step
    last_steps = {row["epoch"]: row["step"] for row in whole[1] if "loss" in row}
    assert len(last_steps) == 2 and last_steps[1] > 1
    for last in (1, *last_steps.values()):

        def stop(self: run.Run, *arguments: Any, last: int = last) -> None:
            log_step(self, *arguments)
            if self.step == last:
                self.stop.receive(signal.SIGTERM, None)

        folder = tmp_path / str(last)
        with monkeypatch.context() as patch:
            patch.setattr(run.Run, "log_step", stop)
            with pytest.raises(minibert.Interrupted, match=f"checkpoint-{last:07d}"):
                few_steps(folder)
        few_steps(folder, resume=True)
        assert result(folder) == whole


@pytest.mark.parametrize("few_steps", ["train"], indirect=True)
def test_a_run_keeps_the_precision_that_it_began_with(few_steps, tmp_path, monkeypatch):
    """A later measurement may give another one, and so other weights."""
    monkeypatch.delenv("MINIBERT_PRECISION")
    measured = iter(["fp32", "fp32", "bf16"])
    monkeypatch.setattr(training_config, "fastest_precision", lambda *_, **__: next(measured))
    few_steps(tmp_path / "whole")
    log_step = run.Run.log_step

    def stop(self: run.Run, *arguments: Any) -> None:
        log_step(self, *arguments)
        self.stop.receive(signal.SIGTERM, None)

    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "log_step", stop)
        with pytest.raises(minibert.Interrupted):
            few_steps(tmp_path / "run")
    few_steps(tmp_path / "run", resume=True)
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    assert list(measured) == ["bf16"]  # nothing was measured when the run continued


class Killed(BaseException):
    """Ends a run at once: no handler for an `Exception` catches it."""


@pytest.mark.parametrize("how", ["kill", pytest.param("stop", marks=pytest.mark.slow)])
def test_a_run_may_be_stopped_before_any_file_appears(few_steps, tmp_path, monkeypatch, how):
    """Each file of a checkpoint, of a model, and `run.json` appears by a move. Before each one."""
    signals: list[run.StopSignals] = []
    move, enter, rename = Path.replace, run.StopSignals.__enter__, Path.rename
    moves = stop_at = 0

    def replace(path: Path, target: Path) -> Path:
        nonlocal moves
        moves += 1
        if moves == stop_at and how == "kill":
            raise Killed
        if moves == stop_at:
            signals[-1].receive(signal.SIGTERM, None)
        return move(path, target)

    def move_back(path: Path, target: Path) -> Path:
        if moves == stop_at and how == "kill":  # a killed process undoes nothing
            raise Killed
        return rename(path, target)

    def remember(self: run.StopSignals) -> run.StopSignals:
        signals.append(self)
        return enter(self)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "rename", move_back)
    monkeypatch.setattr(run.StopSignals, "__enter__", remember)
    few_steps(tmp_path / "whole")
    whole = result(tmp_path / "whole")
    assert moves > 10
    for stop_at in range(1, moves + 1):
        moves, folder = 0, tmp_path / str(stop_at)
        with contextlib.suppress(Killed, minibert.Interrupted):
            few_steps(folder)
        assert moves == stop_at or how == "stop"
        few_steps(folder, resume=True)
        assert result(folder) == whole


def test_a_stop_during_the_evaluation(tiny, tmp_path, monkeypatch):
    """Nothing is saved then: the checkpoint and the model are from the end of the training."""
    settings = TrainingConfig(**config(tiny, tmp_path / "run", epochs=2, batch_size=20))
    evaluate = finetune.evaluate_epoch

    def stop(run: run.Run, *arguments: Any) -> Any:
        run.stop.receive(signal.SIGTERM, None)
        return evaluate(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "evaluate_epoch", stop)
        with pytest.raises(minibert.Interrupted, match="SIGTERM"):
            train(settings)
    train(settings, resume=True)
    train(TrainingConfig(**config(tiny, tmp_path / "whole", epochs=2, batch_size=20)))
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tiny, tmp_path):
    whole = TrainingConfig(**config(tiny, tmp_path / "run"))
    train(whole)
    weights, log = result(tmp_path / "run")
    before, newest = sorted((tmp_path / "run").glob("checkpoint-*.safetensors"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.warns(
        UserWarning, match=f"{newest.name}: damaged.*trying the checkpoint before it"
    ):
        assert latest_checkpoint(tmp_path / "run")[0] == before
    with pytest.warns(UserWarning):
        train(whole, resume=True)
    assert result(tmp_path / "run") == (weights, log)

    before.write_bytes(before.read_bytes()[:1000])
    newest.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(minibert.CheckpointError, match="no checkpoint"):
        train(whole, resume=True)


def test_a_run_that_has_ended_is_not_changed(tiny, tmp_path):
    whole = TrainingConfig(**config(tiny, tmp_path / "run"))
    metrics = train(whole)
    before = result(tmp_path / "run")
    assert train(whole, resume=True) == metrics
    assert result(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 2e-3}, "learning_rate was 0.001, is 0.002"),
        ({"seed": 1}, "seed was 42, is 1"),
        ({"max_train_examples": 39}, "max_train_examples was 40, is 39; train_data was"),
    ],
)
def test_another_run_is_not_resumed(tiny, tmp_path, change, named):
    train(TrainingConfig(**config(tiny, tmp_path / "run", epochs=1, dev_file=None)))
    changed = config(tiny, tmp_path / "run", epochs=1, dev_file=None, **change)
    with pytest.raises(minibert.CheckpointError, match=named):
        train(TrainingConfig(**changed), resume=True)


def test_a_log_that_lost_lines_is_not_continued(tiny, tmp_path):
    whole = TrainingConfig(**config(tiny, tmp_path / "run", epochs=1, dev_file=None))
    train(whole)
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(minibert.CheckpointError, match=r"metrics.jsonl: shorter"):
        train(whole, resume=True)


def test_only_the_last_checkpoints_are_kept(tmp_path):
    for step in range(1, 6):
        write_checkpoint(tmp_path, step, {}, state(step), keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint-0000004.safetensors", "checkpoint-0000005.safetensors"]


def test_too_little_disk_is_met_before_training(tiny, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(minibert.InputError, match="1 MB free, but the run needs"):
        train(TrainingConfig(**config(tiny, tmp_path / "run")))
    assert not list((tmp_path / "run").iterdir())


@needs_permissions
def test_a_folder_that_cannot_be_written_is_met_before_training(tiny, tmp_path):
    (tmp_path / "run").mkdir(mode=0o555)
    with pytest.raises(minibert.InputError, match="cannot be written"):
        train(TrainingConfig(**config(tiny, tmp_path / "run")))


def test_a_log_that_cannot_be_written_is_met_before_training(tiny, tmp_path):
    settings = TrainingConfig(**config(tiny, tmp_path / "run", epochs=1, dev_file=None))
    train(settings)
    log = tmp_path / "run" / "metrics.jsonl"
    log.unlink()
    log.mkdir()
    with pytest.raises(minibert.InputError, match=r"metrics.jsonl: cannot be written"):
        train(settings, resume=True)


class Trap:
    def __reduce__(self):
        return (Path("/nowhere").mkdir, ())


def state(step: int) -> dict[str, Any]:
    """The state in a checkpoint, of no real run."""
    return dict.fromkeys(STATE) | {"step": step}


def test_a_checkpoint_that_would_run_code_does_not(tmp_path):
    path = tmp_path / "checkpoint-0000001.safetensors"
    torch.save({"trap": Trap()}, path)
    with pytest.raises(minibert.CheckpointError, match="not a checkpoint"):
        read_checkpoint(path)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_are_mistaken_for_a_checkpoint(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "checkpoint-0000001.safetensors"
    path.write_bytes(content)
    with pytest.raises(minibert.CheckpointError):
        read_checkpoint(path)


@settings(deadline=None)
@given(st.integers(min_value=0), st.integers(1, 255))
def test_no_byte_of_a_checkpoint_changes_unseen(tmp_path_factory, place, bits):
    """For any byte: the same tensors and the same state are read, or the file is refused."""
    folder = tmp_path_factory.mktemp("flipped")
    tensors = {"model.w": torch.randn(7, 3), "random.0.cpu": torch.arange(5, dtype=torch.uint8)}
    path = write_checkpoint(folder, 1, tensors, state(1), keep=1)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= bits
    path.write_bytes(content)
    try:
        again, said = read_checkpoint(path)
    except minibert.CheckpointError:
        return
    assert said == state(1) and again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


STATES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(sorted(STATE)) | st.text(), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(STATES)
def test_no_state_of_another_program_is_resumed(tmp_path_factory, said):
    """The file is complete and its checksum matches, but no run of ours wrote it."""
    folder = tmp_path_factory.mktemp("other")
    path = write_checkpoint(folder, 2, {"w": torch.ones(2)}, said, keep=1)
    with pytest.raises(minibert.CheckpointError, match="not a checkpoint: no "):
        read_checkpoint(path)


def test_a_checkpoint_without_our_state_is_named(tiny, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    path = output / "checkpoint-0000003.safetensors"
    shutil.copy(tiny / "model.safetensors", path)
    with (
        pytest.warns(UserWarning, match=f"{path.name}: damaged"),
        pytest.raises(minibert.CheckpointError, match="no checkpoint to resume"),
    ):
        train(TrainingConfig(**config(tiny, output)), resume=True)
    write_checkpoint(output, 3, {}, {"step": 3}, keep=1)
    with (
        pytest.warns(UserWarning, match="not a checkpoint: no epochs_done"),
        pytest.raises(minibert.CheckpointError, match="no checkpoint to resume"),
    ):
        train(TrainingConfig(**config(tiny, output)), resume=True)


def test_a_checkpoint_is_read_as_it_was_saved(tmp_path):
    said = state(7) | {"metrics": {"f1": 1 / 3}}
    tensors = {
        "random.0.cpu": torch.get_rng_state(),
        "optimizer.0.step": torch.tensor(3.0),
        "model.half": torch.randn(3, 5).bfloat16().T,
        "none": torch.zeros(0, 4),
    }
    again, back = read_checkpoint(write_checkpoint(tmp_path, 7, tensors, said, keep=1))
    assert back == said and again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype


def test_checkpoints_of_later_steps_are_removed(tmp_path):
    """They are damaged, or they were written before the run resumed from an earlier step."""
    for step in (10, 20, 30, 40):
        write_checkpoint(tmp_path, step, {}, state(step), keep=2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        "checkpoint-0000030.safetensors", "checkpoint-0000040.safetensors",
    ]  # fmt: skip
    (tmp_path / "checkpoint-0000040.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="0000040.safetensors: not a checkpoint"):
        newest, _, _ = latest_checkpoint(tmp_path)
    assert newest.name == "checkpoint-0000030.safetensors"
    write_checkpoint(tmp_path, 35, {}, state(35), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-0000035.safetensors"]


def test_the_space_that_the_run_already_uses_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(minibert.InputError, match="the run needs"):
        run.require_space(tmp_path, 150)
    (tmp_path / "checkpoint-0000010.safetensors").write_bytes(bytes(60))
    run.require_space(tmp_path, 150)
