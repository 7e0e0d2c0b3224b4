"""Edge cases of a training run: what it resumes, what it refuses, what it reports and records."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from machine import needs_proc

import minibert
from minibert import errors
from minibert.errors import Interrupted, MinibertError
from minibert.settings import MAX_QUESTION_LEN
from minibert.training import checkpoints, run
from minibert.training.config import TrainingConfig, resolved
from minibert.training.finetune import load_data, train
from minibert.training.parallel import SINGLE_PROCESS

NOTES = str(Path(__file__).parent / "data" / "field_notes.json")


def config(tiny: Path, output: Path, **changes: Any) -> TrainingConfig:
    small = TrainingConfig(
        init=str(tiny),
        train_file=NOTES,
        output_dir=str(output),
        epochs=1,
        learning_rate=1e-3,
        max_length=128,
        doc_stride=32,
        max_train_examples=40,
        precision="fp32",
        progress=False,
    )
    return replace(small, **changes)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Stop as when the power fails: nothing is saved at this step."""
    original = run.Run.log_step

    def log_step(self: run.Run, *arguments: Any) -> None:
        original(self, *arguments)
        if self.step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(run.Run, "log_step", log_step)


@pytest.fixture
def stopped(tiny, tmp_path):
    """A run that was stopped at its third step, with a checkpoint of the second."""
    settings = config(tiny, tmp_path / "run", batch_size=8, checkpoint_every=2)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(settings)
    return settings


@pytest.fixture
def whole(tiny, tmp_path):
    """The weights of that run when nobody stops it."""
    train(config(tiny, tmp_path / "whole", batch_size=8, checkpoint_every=2))
    return weights(tmp_path / "whole")


# Folders in which a run may start or resume.


def finished_model(folder: Path, tiny: Path) -> None:
    shutil.copytree(tiny, folder)


def finished_run_without_checkpoints(folder: Path, tiny: Path) -> None:
    train(config(tiny, folder))
    for path in folder.glob("checkpoint-*"):
        path.unlink()


def of_another_program(folder: Path, tiny: Path) -> None:
    (folder / "checkpoint-500").mkdir(parents=True)
    (folder / "checkpoint-500" / "optimizer.pt").write_bytes(b"")


def only_a_vocabulary(folder: Path, tiny: Path) -> None:
    folder.mkdir()
    shutil.copy(tiny / "vocab.txt", folder)


def another_log(folder: Path, tiny: Path) -> None:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"accuracy": 0.5}\n')


HELD = {
    finished_model: "config.json",
    finished_run_without_checkpoints: "config.json",
    of_another_program: "checkpoint-500",
    only_a_vocabulary: "vocab.txt",
    another_log: "metrics.jsonl",
}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("make", HELD)
def test_only_a_stopped_run_is_resumed(make, tiny, tmp_path):
    folder = tmp_path / "run"
    make(folder, tiny)
    before = everything(folder)
    with pytest.raises(MinibertError, match=HELD[make]) as caught:
        train(config(tiny, folder), resume=True)
    assert str(folder) in str(caught.value)
    assert everything(folder) == before


@pytest.mark.parametrize("make", [m for m in HELD if m is not of_another_program])
def test_no_file_that_training_writes_is_overwritten(make, tiny, tmp_path):
    folder = tmp_path / "run"
    make(folder, tiny)
    before = everything(folder)
    with pytest.raises(minibert.InputError, match="holds"):
        train(config(tiny, folder))
    assert everything(folder) == before


def test_an_empty_folder_and_a_run_without_a_checkpoint_start_anew(tiny, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    train(config(tiny, tmp_path / "empty"), resume=True)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train(config(tiny, tmp_path / "run"))
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    with pytest.raises(minibert.CheckpointError, match="seed was 42, is 1"):
        train(config(tiny, tmp_path / "run", seed=1), resume=True)
    train(config(tiny, tmp_path / "run"), resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "empty")


def test_the_unfinished_files_of_a_killed_run_are_removed(stopped):
    folder = Path(stopped.output_dir)
    (folder / ".unfinished-x").mkdir()
    (folder / ".unfinished-x" / "model.safetensors").write_bytes(b"half")
    train(stopped, resume=True)
    assert not list(folder.glob(".*"))


# Checkpoints.


@pytest.mark.parametrize("name", ["cuda:1", "mps:0"])
def test_the_random_state_is_of_the_job_s_own_device(name, monkeypatch):
    """Not of the current device, which is number 0 here. `torch.mps` has no numbers."""
    states = {0: torch.tensor([5]), 1: torch.tensor([6])}
    device = torch.device(name)

    def number(*given: torch.device) -> int:
        assert name != "mps:0" or not given
        return given[0].index if given else 0

    module = SimpleNamespace(
        get_rng_state=lambda *given: states[number(*given)].clone(),
        set_rng_state=lambda state, *given: states.update({number(*given): state}),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    model = torch.nn.Linear(1, 1)
    job: Any = SimpleNamespace(
        device=device, model=model, optimizer=torch.optim.AdamW(model.parameters()),
        group=SINGLE_PROCESS,
    )  # fmt: skip
    tensors = checkpoints.tensors_of(job)
    saved = {number: int(state) for number, state in states.items()}
    states[device.index] = torch.tensor([7])
    checkpoints.load_tensors(job, tensors)
    assert {number: int(state) for number, state in states.items()} == saved


def test_a_checkpoint_holds_no_pickle(stopped):
    """It is safetensors and JSON, so reading it executes no code."""
    from safetensors import safe_open

    (path,) = Path(stopped.output_dir).glob("checkpoint-*")
    with safe_open(path, "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    model = minibert.BertForQuestionAnswering.from_pretrained(stopped.init)
    assert {f"model.{name}" for name in model.state_dict()} <= names
    assert json.loads(metadata["state"])["step"] == 2


@pytest.mark.slow
@needs_proc  # on other systems than Linux, ru_maxrss has another unit or does not exist
def test_reading_a_checkpoint_takes_its_size_once(tmp_path):
    """A process of its own grows by little more than the size of the file (200 MB)."""
    state = {f"model.{k}": torch.ones(2**20) for k in range(50)}
    path = checkpoints.write_checkpoint(tmp_path, 1, state, dict.fromkeys(checkpoints.STATE), 1)
    program = """
import resource, sys
import torch
from pathlib import Path
from minibert.training.checkpoints import read_checkpoint
torch.ones(10**6).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tensors, state = read_checkpoint(Path(sys.argv[1]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 1.1 * path.stat().st_size


# Which run is the same run.


def test_other_spellings_of_the_same_paths_are_the_same_run(stopped, whole, tiny, tmp_path):
    """The contents of the model's folder and of the data are compared."""
    shutil.copytree(tiny, tmp_path / "copy")
    shutil.copy(NOTES, tmp_path / "notes.json")
    other = replace(
        stopped,
        init=str(tmp_path / "copy"),
        train_file=str(tmp_path / "notes.json"),
        output_dir=str(tmp_path / "." / "run"),
    )
    train(other, resume=True)
    assert weights(tmp_path / "run") == whole


def test_other_contents_behind_the_same_paths_are_another_run(stopped, tmp_path, tiny):
    folder = Path(shutil.copytree(tiny, tmp_path / "init"))
    model = minibert.BertForQuestionAnswering.from_pretrained(folder)
    with torch.no_grad():
        model.head.S.add_(1e-3)
    model.save_pretrained(folder)
    with pytest.raises(minibert.CheckpointError, match="init_weights was"):
        train(replace(stopped, init=str(folder)), resume=True)

    data = json.loads(Path(NOTES).read_text(encoding="utf-8"))
    data["data"] = data["data"][:-1]
    (tmp_path / "notes.json").write_text(json.dumps(data), encoding="utf-8")
    other = str(tmp_path / "notes.json")
    with pytest.raises(minibert.CheckpointError, match="train_data was"):
        train(replace(stopped, train_file=other), resume=True)
    with pytest.raises(minibert.CheckpointError, match="dev_data was"):
        train(replace(stopped, dev_file=other), resume=True)


def another_torch(patch: pytest.MonkeyPatch) -> str:
    patch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.99.0"))
    return r"2\.99\.0"


def another_processor(patch: pytest.MonkeyPatch) -> str:
    patch.setattr(run, "device_name", lambda device: "Abacus 9000")
    return "Abacus 9000"


def another_minibert(patch: pytest.MonkeyPatch) -> str:
    patch.setattr("minibert.training.run.installed_version", lambda: "99.1")
    return r"minibert 99\.1"


def more_threads(patch: pytest.MonkeyPatch) -> str:
    patch.setattr(torch, "get_num_threads", lambda: 77)
    return "77 threads"


@pytest.mark.parametrize(
    "change", [another_torch, another_processor, another_minibert, more_threads]
)
def test_another_machine_resumes_only_on_request(change, stopped, whole, monkeypatch):
    assert torch.__version__ in record(Path(stopped.output_dir))["machine"][0]
    named = change(monkeypatch)
    with pytest.raises(minibert.CheckpointError, match=f"machine was .*{named}.*other-machine"):
        train(stopped, resume=True)
    with pytest.warns(UserWarning, match=f"machine was .*{named}"):
        train(stopped, resume=True, allow_other_machine=True)
    assert weights(Path(stopped.output_dir)) == whole  # it was in truth the same machine
    with pytest.raises(minibert.CheckpointError, match="seed was 42, is 1"):
        train(replace(stopped, seed=1), resume=True, allow_other_machine=True)


def test_the_record_has_the_chosen_settings(stopped):
    """It also has the settings that depend on the device, so a resumed run compares them too."""
    run_json = record(Path(stopped.output_dir))
    chosen = [run_json[name] for name in ("attention", "max_tokens", "precision", "device")]
    assert chosen == ["eager", 6144, "fp32", "cpu"] and run_json["init"] == stopped.init


# Devices.


def test_a_gpu_has_its_own_attention_and_size_of_passes():
    plain = TrainingConfig("", "", "")
    cpu, gpu = (resolved(plain, torch.device(name)) for name in ("cpu", "cuda"))
    assert (cpu.attention, cpu.max_tokens) == ("eager", 6144)
    assert gpu.attention == "sdpa" and gpu.max_tokens > 16 * 384
    asked = replace(plain, attention="eager", max_tokens=1000, precision="fp32")
    told = resolved(asked, torch.device("cuda"))
    assert (told.attention, told.max_tokens) == ("eager", 1000)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_either_attention_trains(tiny, tmp_path, attention):
    train(config(tiny, tmp_path / "run", attention=attention, max_tokens=300))
    assert record(tmp_path / "run")["attention"] == attention


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("no room"), NotImplementedError("no such\nkernel")]
)
def test_an_error_of_the_device_is_one_line(tiny, tmp_path, monkeypatch, error):
    def forward(*arguments: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(minibert.BertForQuestionAnswering, "forward", forward)
    with pytest.raises(minibert.InputError, match=r"cpu: .*no (room|such)[^\n]*$"):
        train(config(tiny, tmp_path / "run"))
    with pytest.raises(minibert.InputError, match=r"cpu: .*no (room|such)[^\n]*$"):
        minibert.QuestionAnswerer.from_pretrained(tiny)("Who?", "Ada.")


# Training and evaluation.


def test_the_configuration_has_the_dropout_of_the_training(tiny, tmp_path):
    train(config(tiny, tmp_path / "run", dropout=0.25))
    train(config(tiny, tmp_path / "plain"))
    saved, plain, before = (
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for folder in (tmp_path / "run", tmp_path / "plain", tiny)
    )
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    assert [saved[name] for name in names] == [0.25, 0.25]
    assert [plain[name] for name in names] == [before[name] for name in names] != [0.25, 0.25]


def long_question(tmp_path: Path) -> str:
    """Two questions: one of 90 tokens, and one of 3."""
    context = "Ada lit the lamp."
    questions = {"long": "lamp " * 90, "short": "Who lit it"}
    rows = [
        {"id": name, "question": text, "answers": [{"text": "Ada", "answer_start": 0}]}
        for name, text in questions.items()
    ]
    path = tmp_path / "long.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": rows}]}]}))
    return str(path)


def test_training_cuts_questions_as_answering_does(tiny, tmp_path):
    """At 64 tokens. The windows equal the reader's. One warning gives the number of cuts."""
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    settings = config(tiny, tmp_path / "run", train_file=long_question(tmp_path))
    with pytest.warns(UserWarning, match=r"1 of 2 questions .* 64 tokens.* first: long") as said:
        data = load_data(settings, tokenizer)
    assert len(said) == 1
    qa = minibert.QuestionAnswerer.from_pretrained(tiny, max_length=128, doc_stride=32)
    assert qa.window_settings.max_question_len == MAX_QUESTION_LEN == 64
    examples = minibert.load_squad(settings.train_file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = minibert.prepare_features(examples, tokenizer, 128, 32, MAX_QUESTION_LEN)
    assert [f.input_ids for f in data.features] == [f.input_ids for f in read]


def long_answer(tmp_path: Path) -> str:
    """Four questions: with an answer of 3 tokens, of 12, of 12 or 1, and without an answer."""
    context = "One two three four five six seven eight nine ten eleven twelve."
    answers = {
        "short": ["One two three"],
        "long": [context[:-1]],
        "either": [context[:-1], "One"],
        "none": [],
    }
    rows = [
        {
            "id": name,
            "question": "What?",
            "answers": [{"text": t, "answer_start": 0} for t in texts],
            "is_impossible": not texts,
        }
        for name, texts in answers.items()
    ]
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": rows}]}]}))
    return str(path)


def test_gold_answers_that_are_too_long_are_counted(tiny, tmp_path):
    data = long_answer(tmp_path)
    tokens = len(minibert.Tokenizer.from_pretrained(tiny).encode("One two three").ids)
    named = f"1 of 4 questions .* more than max_answer_len={tokens + 1} tokens"
    settings = config(tiny, tmp_path / "run", dev_file=data, max_answer_len=tokens + 1)
    with pytest.warns(UserWarning, match=named):
        train(settings)
    qa = minibert.QuestionAnswerer.from_pretrained(tiny)
    with pytest.warns(UserWarning, match=named):
        minibert.evaluate(qa, minibert.load_squad(data), max_answer_len=tokens + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minibert.evaluate(qa, minibert.load_squad(data), max_answer_len=400, no_answer=True)


def test_the_evaluation_in_training_uses_max_answer_len(tiny, tmp_path):
    """Its metrics equal an evaluation of the saved model with the same length."""
    for length in (1, 30):
        folder = tmp_path / str(length)
        metrics = train(config(tiny, folder, dev_file=NOTES, max_answer_len=length, seed=3))
        qa = minibert.QuestionAnswerer.from_pretrained(
            folder, "eager", max_length=128, doc_stride=32, precision="fp32"
        )
        examples = minibert.load_squad(NOTES)
        again = minibert.evaluate(qa, examples, max_answer_len=length)
        assert again == pytest.approx(metrics, abs=1e-5)  # 1e-5 for thresholds, which are logits


# Errors.


def error_types() -> list[type[MinibertError]]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, MinibertError)]


@pytest.mark.parametrize("kind", error_types())
def test_errors_can_be_sent_between_processes(kind):
    error = kind("one line", 15) if kind is Interrupted else kind("one line")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind and str(again) == str(error) == "one line"
        assert again.exit_code == error.exit_code
