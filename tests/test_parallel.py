"""Two processes on one machine (gloo), started as a user starts them, train like one process."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from machine import HANG, needs_proc
from safetensors.torch import load_file

import minibert
from minibert.batches import length_batches
from minibert.training.config import TrainingConfig
from minibert.training.finetune import train
from minibert.training.job import Job
from minibert.training.parallel import ProcessGroup
from minibert.training.run import Run

NOTES = str(Path(__file__).parent / "data" / "field_notes.json")
SETTINGS = {
    "train_file": NOTES,
    "dev_file": NOTES,
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 1e-4,
    "max_length": 128,
    "doc_stride": 32,
    "max_train_examples": 30,
    "precision": "fp32",
    "dropout": 0.0,
}


def command(tiny: Path, output: Path, *more: object) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "-m", "minibert", "train", f"--init={tiny}", f"--output={output}", *options,
        *map(str, more),
    ]  # fmt: skip


def steps(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [row for row in map(json.loads, text.splitlines()) if "loss" in row]


def test_each_window_is_in_exactly_one_share(field_notes, tiny):
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    features = minibert.prepare_train_features(field_notes, tokenizer, 128, 32)
    for batch in length_batches(features, 7, seed=3):
        shares = [ProcessGroup(rank, 3).share(batch) for rank in range(3)]
        assert sorted(k for share in shares for k in share) == sorted(batch)


def test_a_process_that_writes_nothing_needs_no_other_to_make_the_folder(tiny, tmp_path):
    """It looks at its disk, and it may be earlier than the process that writes."""
    model = minibert.BertForQuestionAnswering.from_pretrained(tiny)
    config = TrainingConfig(str(tiny), "", str(tmp_path / "run"), precision="fp32", progress=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    job = Job(model, optimizer, tokenizer, config, ProcessGroup(rank=1))
    with Run(job, []).open(resume=False, allow_other_machine=False):
        assert not list((tmp_path / "run").iterdir())


def test_two_processes_train_as_one(tiny, tmp_path):
    """One process with two passes has the same losses, up to rounding: the sums have another order,
    and Adam amplifies the differences from step to step. Both evaluate all questions."""
    done = subprocess.run(command(tiny, tmp_path / "two"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone = {**SETTINGS, "init": str(tiny), "output_dir": str(tmp_path / "one"), "progress": False}
    metrics = train(TrainingConfig(**alone, max_tokens=4 * 128))
    one, two = steps(tmp_path / "one"), steps(tmp_path / "two")
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)
    assert two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-4)
    assert done.stdout.count('"total": 120') == 1  # only one process prints
    last = json.loads((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["total"] == metrics["total"] == 120
    qa = minibert.QuestionAnswerer.from_pretrained(
        tmp_path / "two", max_length=128, doc_stride=32, precision="fp32"
    )
    whole = minibert.evaluate(qa, minibert.load_squad(NOTES))  # a lost share would score 0
    # 1e-5 for thresholds, which are logits
    assert {name: last[name] for name in whole} == pytest.approx(whole, abs=1e-5)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in ours.items():  # Adam moves a weight by one learning rate in a step
        assert torch.allclose(tensor, theirs[name], atol=2 * len(one) * 1e-4), name


@needs_proc
def test_after_one_process_was_killed_the_run_resumes(tiny, tmp_path):
    """The others end too. With dropout, it ends with the weights of a run that was not killed."""
    often = ("--checkpoint-every=2", "--epochs=4", "--dropout=0.1")
    whole, output = tmp_path / "whole", tmp_path / "run"
    subprocess.run(command(tiny, whole, *often), capture_output=True, check=True, timeout=HANG)
    run = subprocess.Popen(
        command(tiny, output, *often), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + HANG
    while not list(output.glob("checkpoint-*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(output.glob("checkpoint-*.safetensors")) and run.poll() is None
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    trains = [c for c in children if "train" in Path(f"/proc/{c}/cmdline").read_text()]
    os.kill(int(trains[-1]), signal.SIGKILL)
    _, err = run.communicate(timeout=HANG)
    assert run.returncode != 0 and "Signal 9" in err
    again = subprocess.run(
        command(tiny, output, *often, "--resume"), capture_output=True, text=True, timeout=HANG
    )
    assert again.returncode == 0, again.stderr
    assert [row["loss"] for row in steps(output)] == [row["loss"] for row in steps(whole)]
    ours, theirs = ((folder / "model.safetensors").read_bytes() for folder in (output, whole))
    assert ours == theirs


POOL = """
import multiprocessing, sys, torch, minibert

def load():
    global qa
    qa = minibert.QuestionAnswerer.from_pretrained()

def ask(pair):
    return qa(*pair).answer

if __name__ == "__main__":
    torch.set_num_threads(2)
    pairs = [("Who lit the lamp?", "At dusk the keeper, Ada, lit the lamp.")] * 4
    load()
    answers = [ask(pairs[0])]  # now torch has threads, and a forked child lacks them
    start = {"spawn": (load, ()), "fork": (torch.set_num_threads, (1,))}[sys.argv[1]]
    with multiprocessing.get_context(sys.argv[1]).Pool(2, *start) as pool:
        answers += pool.map(ask, pairs)
    assert answers == ["Ada"] * 5
"""


@pytest.mark.parametrize("way", ["spawn", "fork"])
def test_a_pool_answers_after_its_parent(tmp_path, way):
    """Spawned children load their own model. Forked children use the parent's model, with one
    thread: with more, they would wait forever for threads that they do not have."""
    if way not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {way}")
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    subprocess.run([sys.executable, script, way], check=True, timeout=HANG)
