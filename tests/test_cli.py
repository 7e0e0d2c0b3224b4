"""The command line, used as a user does: what it prints, and one line for what goes wrong."""

import contextlib
import csv
import inspect
import io
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

import minibert
from minibert.bench import parity
from minibert.bench import training as bench
from minibert.cli import app, demo_passages, main, program
from minibert.cli import bench as bench_commands
from minibert.cli import training as training_commands
from minibert.cli.command import OLD_NAMES
from minibert.cli.options import NAMES, ReaderOptions
from minibert.passages import PassageAnswer
from minibert.scoring import evaluation

NOTES = str(Path(__file__).parent / "data" / "field_notes.json")
Run = Callable[..., tuple[int, str, str]]


PROGRAM: Any = typer.main.get_command(app)
# Every command by its name
COMMANDS: dict[str, Any] = {
    **{name: command for name, command in PROGRAM.commands.items() if name != "bench"},
    **{f"bench {name}": one for name, one in PROGRAM.commands["bench"].commands.items()},
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `minibert ARGUMENTS` in this process -> exit code, stdout, stderr."""
    monkeypatch.setattr(program, "keep_freed_memory", lambda: None)  # of the whole process

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["minibert", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        code = exit_.value.code
        assert isinstance(code, int)
        return (code, *capsys.readouterr())

    return run


def test_answer(run, tiny, tmp_path):
    context = "Ada kept the lamp of the old tower.\n"
    (tmp_path / "context.txt").write_text(context)
    asked = ("answer", "--model", tiny, "--question", "Who kept it?")
    code, out, _ = run(*asked, "--context", context, "--top-k", 3, "--json")
    answers = json.loads(out)
    assert code == 0 and len(answers) == 3
    assert list(answers[0]) == ["answer", "score", "start", "end", "start_logit", "end_logit"]
    assert context[answers[0]["start"] : answers[0]["end"]] == answers[0]["answer"]
    code, out, _ = run(*asked, "--context-file", tmp_path / "context.txt")
    assert code == 0 and answers[0]["answer"] in out.splitlines()[1]


def test_offsets_are_the_file_s_own(run, tiny, tmp_path):
    text = "One\r\nTwo\r\nAda lit it.\r\n"
    (tmp_path / "dos.txt").write_bytes(text.encode())
    asked = ("answer", "--model", tiny, "--question", "Who?", "--top-k", 99, "--json")
    _, out, _ = run(*asked, "--context-file", tmp_path / "dos.txt")
    for answer in json.loads(out):
        assert text[answer["start"] : answer["end"]] == answer["answer"]


@pytest.mark.parametrize("option", ["--no-answer", "--text-score"])
def test_passages_refuse_options_without_effect(run, tiny, option):
    asked = ("answer", "--model", tiny, "--question", "Who?", "--passages", "none.jsonl", option)
    code, out, err = run(*asked)
    assert code == 2 and out == "" and err.startswith(f"error: --passages excludes {option}: ")
    assert err.count("\n") == 1


def test_demo(run, tiny):
    code, out, _ = run("demo", "--model", tiny)
    assert code == 0
    for passage in demo_passages():
        assert all(question in out for question in passage["questions"])
    assert len(out.split("the 10 best spans")[1].strip().splitlines()) == 12


def test_show(run):
    code, out, _ = run("show", "--data", NOTES, "-n", 2, "--seed", 1)
    assert code == 0 and out.count("question:") == 2
    assert out == run("show", "--data", NOTES, "-n", 2, "--seed", 1)[1]


def test_inspect(run, tiny, minilm):
    code, out, _ = run("inspect", "--model", tiny)
    assert code == 0 and "hidden_size" in out and "0 missing, 0 unexpected" in out
    code, out, _ = run("inspect", "--model", minilm)
    assert code == 0 and "22,565,376" in out
    assert "missing     head.S" in out and "ignored     pooler.dense.weight" in out


def test_explain(run, tiny, tmp_path):
    """One page, its answers also in the terminal; an existing file stays."""
    context, page = tmp_path / "context.txt", tmp_path / "page.html"
    context.write_bytes(b"Ada kept\r\nthe lamp. <script>")
    arguments = (
        "explain",
        "--model",
        tiny,
        "--question",
        "Who kept it?",
        "--context-file",
        context,
    )
    code, out, _ = run(*arguments, "--output", page, "--top-k", 3)
    assert code == 0 and len(out.strip().splitlines()) == 4
    html = page.read_text(encoding="utf-8")
    assert "\\u003cscript" in html and '"gradients"' in html and "://" not in html
    code, out, err = run(*arguments, "--output", page)
    assert code == 2 and "page.html: exists already" in err and out == ""
    assert page.read_text(encoding="utf-8") == html
    code, _, _ = run(*arguments, "--output", tmp_path / "short.html", "--no-attribution")
    assert code == 0 and '"gradients"' not in (tmp_path / "short.html").read_text(encoding="utf-8")


def test_inspect_parity(run, tiny, monkeypatch, transformers):
    """Compared with transformers; and with other numbers in one layer, which is named."""
    code, out, _ = run("inspect", "--model", tiny, "--parity")
    assert code == 0 and out.count("exact") == 6 and "first divergence: none" in out
    tensors = parity.computed(tiny, has_head=True)
    tensors["hidden_states.2"] = tensors["hidden_states.2"] + 0.5
    monkeypatch.setattr(parity, "computed", lambda *_: tensors)
    code, out, _ = run("inspect", "--model", tiny, "--parity")
    assert code == 1 and "first divergence: hidden_states.2" in out
    assert out.count("DIVERGES") == 1


def test_inspect_parity_of_an_encoder(run, minilm, transformers):
    code, out, _ = run("inspect", "--model", minilm, "--parity")
    assert code == 0 and "logits" not in out and out.count("exact") == 7


def test_serve_says_what_it_needs(run, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "minibert.serve.server", None)
    code, _, err = run("serve", "--model", tiny)
    assert code == 2 and "pip install 'minibert-qa[serve]'" in err


def test_evaluate_with_questions_that_have_no_answer(run, tiny, tmp_path, monkeypatch):
    arguments = ("evaluate", "--model", tiny, "--data", NOTES, "--no-answer", "--output")
    code, out, _ = run(*arguments, tmp_path / "zero")
    at_zero = json.loads(out)
    assert code == 0 and at_zero["NoAns_total"] == 28 and at_zero["HasAns_total"] == 92
    odds, predictions = (
        json.loads((tmp_path / "zero" / name).read_text(encoding="utf-8"))
        for name in ("null_odds.json", "predictions.json")
    )
    assert {key for key, text in predictions.items() if not text} == {
        key for key, value in odds.items() if value > 0
    }
    for threshold, figure in ((-1000, "NoAns_exact"), (1000, "HasAns_total")):
        code, out, _ = run(*arguments, tmp_path / figure, "--null-threshold", threshold)
        metrics = json.loads(out)
        assert code == 0 and (metrics["NoAns_exact"] == 100) == (threshold < 0)
        assert metrics["best_f1"] == at_zero["best_f1"] >= max(metrics["f1"], at_zero["f1"])
        assert metrics["best_f1_thresh"] == at_zero["best_f1_thresh"]

    code, _, err = run(*arguments, tmp_path / "tuned", "--tune-threshold")
    assert code == 2 and "a threshold needs 50 or more" in err
    monkeypatch.setattr(evaluation, "MIN_OF_EACH_KIND", 5)
    code, out, _ = run(*arguments, tmp_path / "tuned", "--tune-threshold")
    tuned = json.loads(out)
    assert code == 0 and list(tuned) == ["threshold_0", "tuned", "best"]
    assert tuned["best"]["f1"] >= max(tuned["tuned"]["f1"], tuned["threshold_0"]["f1"])
    assert len({figures["total"] for figures in tuned.values()}) == 1
    assert 40 <= tuned["best"]["total"] <= 80  # of 120, those of half the contexts


def test_answer_many(run, tiny, tmp_path, monkeypatch):
    asked = [
        {"question": "Who lit it?", "context": "Ada lit the lamp.", "id": 7},
        {"question": "누구?", "context": "에이다가 등불을 켰다"},
    ]
    source, output = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    text = "\n\n".join(json.dumps(record) for record in asked)
    source.write_text(text, encoding="utf-8")
    arguments = ("answer", "--model", tiny, "--input", source)
    code, out, err = run(*arguments, "--output", output)
    assert code == 0 and not out, err
    found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    for record, answered in zip(asked, found, strict=True):
        best = answered.pop("prediction")
        assert record == answered
        assert record["context"][best["start"] : best["end"]] == best["answer"]
    for taken in (source, output):
        code, _, err = run(*arguments, "--output", taken)
        assert code == 2 and "exists already" in err
    assert source.read_text(encoding="utf-8") == text
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    code, out, err = run("answer", "--model", tiny, "--input", "-", "--top-k", 2, "--no-answer")
    assert code == 0 and [len(json.loads(row)["predictions"]) for row in out.splitlines()] == [2, 2]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "line 3: not readable as JSON"),
        ("[" * 100_000, "line 3: not readable as JSON"),
        ("3", "line 3: expected an object"),
        ('{"question": "Who?"}', "line 3: expected an object with 'question' and 'context'"),
        ('{"question": "Who?", "context": null}', "line 3: the context is a NoneType"),
        ('{"question": "Who?", "context": " "}', "line 3: no words in the context"),
        ('{"question": "Who?", "context": "\\ud800"}', "line 3: the context is not valid Unicode"),
        (
            '{"question": "Who?", "context": "Ada", "prediction": 1}',
            "line 3: the answer goes into 'prediction'",
        ),
        ("\x80", "line 3: not readable as JSON"),
    ],
)
def test_a_bad_line_comes_after_the_answers_before_it(run, tiny, tmp_path, line, named):
    source, output = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    good = b'{"question": "Who?", "context": "Ada"}\n'
    source.write_bytes(good + good + line.encode("latin-1") + b"\n" + good)
    command = ("answer", "--model", tiny, "--input", source, "--output", output)
    code, _, err = run(*command)
    stopped = tmp_path / "answers.jsonl.partial"
    assert code == 2 and named in err and len(stopped.read_bytes().splitlines()) == 2
    assert not output.exists()
    source.write_bytes(good * 4)  # mended
    assert "--resume" in run(*command)[2]
    assert run(*command, "--resume")[0] == 0
    assert len(output.read_bytes().splitlines()) == 4
    assert sorted(tmp_path.iterdir()) == [output, source]


def options_of(name: str) -> dict[str, Any]:
    """The options of a command, by the names of its parameters."""
    return {option.name: option for option in COMMANDS[name].params}


@pytest.mark.parametrize(
    ("name", "without"), [("train", {}), ("adapt", training_commands.NOT_IN_ADAPT)]
)
def test_every_setting_of_training_has_an_option(name, without):
    """Or a reason not to have one. The fields give the names, defaults and help texts."""
    options = options_of(name)
    settings = {field.name: field for field in fields(minibert.TrainingConfig)}
    assert options.keys() & settings.keys() == settings.keys() - without.keys()
    assert without.keys() <= settings.keys() and all(without.values())
    other_defaults = {"init"}
    if name == "adapt":
        other_defaults |= {*training_commands.BY_ADAPT, "dropout"}
    for field in settings.values():
        if field.name not in without:
            option = options[field.name]
            assert option.help.split(".")[0] in field.metadata["help"]
            if field.name not in other_defaults:
                default = None if field.default is MISSING else field.default
                assert option.required == (field.default is MISSING)
                assert option.default == (list(default) if default == () else default)


@pytest.mark.parametrize("name", ["train", "adapt"])
def test_every_setting_of_training_arrives(run, monkeypatch, name):
    """Each option sets its own field, and the command's last two arguments."""
    module = "finetune" if name == "train" else "masked_lm"
    calls = []
    monkeypatch.setattr(f"minibert.training.{module}.{name}", lambda *a: calls.append(a) or {})
    given = {
        "init": "i", "train_file": "t", "output_dir": "o", "revision": "r", "dev_file": "d",
        "max_answer_len": 7, "epochs": 0.5, "batch_size": 3, "max_tokens": 999,
        "learning_rate": 0.25, "warmup_ratio": 0.125, "dropout": 0.5, "weight_decay": 0.75,
        "max_grad_norm": 2.5, "max_length": 77, "doc_stride": 11, "max_train_examples": 13,
        "negatives": 0.625, "misleading": 0.375, "teachers": ("a", "b"), "skip_invalid": True,
        "attention": "eager", "precision": "fp32", "device": "cpu", "seed": 5,
        "checkpoint_every": 17, "keep_checkpoints": 4, "progress": False,
    }  # fmt: skip
    without = training_commands.NOT_IN_ADAPT if name == "adapt" else {}
    arguments = ["--resume", "--allow-other-machine"]
    for field, value in given.items():
        flag = NAMES.get(field, f"--{field.replace('_', '-')}")
        if field in without:
            continue
        if isinstance(value, bool):
            arguments.append(flag if value else flag.replace("--", "--no-"))
        else:
            values = value if isinstance(value, tuple) else (value,)
            arguments += [word for one in values for word in (flag, one)]
    assert run(name, *arguments)[0] == 0
    kept = {field: value for field, value in given.items() if field not in without}
    assert calls == [(minibert.TrainingConfig(**kept), True, True)]


def test_defaults_of_a_command(run, monkeypatch):
    """`adapt` has its own; a field's None stays None."""
    calls = []
    for function in ("finetune.train", "masked_lm.adapt"):
        monkeypatch.setattr(f"minibert.training.{function}", lambda *a: calls.append(a) or {})
    for name in ("train", "adapt"):
        paths = {"init": "i", "train_file": "t", "output_dir": "o"}
        assert run(name, "--model", "i", "--data", "t", "--output", "o")[0] == 0
        other = training_commands.BY_ADAPT | {"dropout": 0.0} if name == "adapt" else {}
        assert calls.pop() == (minibert.TrainingConfig(**paths, **other), False, False)
    code, _, err = run("train", "--data", "t", "--output", "o", "--epochs", "0")
    assert code == 2 and err == "error: epochs=0.0: expected more than 0\n"


def test_explain_and_answer_compute_alike(run, tiny, tmp_path):
    """One question has one score: both commands choose the same precision."""
    (tmp_path / "text").write_text("Ada lit the lamp at dusk. Bob lit nothing.")
    asked = ("--model", tiny, "--question", "Who lit it?", "--context-file", tmp_path / "text")
    _, answered, _ = run("answer", *asked, "--top-k", 3)
    _, explained, _ = run("explain", *asked, "--top-k", 3, "--output", tmp_path / "page.html")
    assert answered == explained
    for name in ("answer", "explain", "serve"):
        assert options_of(name)["precision"].default == "auto"


def test_one_idea_has_one_name_and_one_default():
    """Whatever several commands have is called the same, and has the same default and help."""
    told = {}
    for name, command in COMMANDS.items():
        for option in command.params:
            told.setdefault(option.opts[0], {})[name] = option
    single = {name: told[name] for name in told if name not in LISTS}
    defaults = {name: {o.default for o in options.values()} for name, options in single.items()}
    assert defaults["--model"] == {str(minibert.reader.BUNDLED)}
    assert defaults["--split"] == {"validation"} and defaults["--no-answer"] == {False}
    assert defaults["--device"] == defaults["--precision"] == {"auto"}
    read = {"demo", "answer", "explain", "serve", "evaluate", "calibrate"}
    assert read <= told["--device"].keys() and read <= told["--batch-size"].keys()
    assert all(option.required for option in told["--data"].values())
    asks = {"show", "check-data", "train", "adapt", "evaluate", "calibrate"}
    assert told["--data"].keys() == asks | {name for name in COMMANDS if name.startswith("bench")}
    assert told["--model"].keys() == COMMANDS.keys() - {"show"}
    assert {name: option.default for name, option in told["--top-k"].items()} == {
        "answer": 1, "explain": 10, "evaluate": 20,
    }  # fmt: skip
    signature_ = inspect.signature(minibert.QuestionAnswerer.from_pretrained)
    assert signature_.parameters["device"].default == "auto"
    assert signature_.parameters["precision"].default == "auto"


def test_every_option_has_a_plain_line_and_says_its_default():
    for name, command in COMMANDS.items():
        for option in command.params:
            told = (name, option.opts[0])
            assert option.help and option.help[0].isupper() and option.help.endswith("."), told
            off = option.is_flag and option.default is False
            no_default = option.required or told[1] in CHOICES or off
            in_words = isinstance(option.show_default, str)
            assert no_default or in_words or option.default is not None, told


def test_old_names_still_work_and_no_help_shows_them(run, monkeypatch):
    calls = []
    for function in ("finetune.train", "masked_lm.adapt"):
        monkeypatch.setattr(f"minibert.training.{function}", lambda *a: calls.append(a) or {})
    new = ("train", "--model", "i", "--data", "t", "--dev-data", "d", "--output", "o")
    old = ("train", "--init", "i", "--train-file=t", "--dev-file", "d", "--output", "o")
    assert run(*new)[0] == run(*old)[0] == 0 and calls[0] == calls[1]
    show = ("show", "--seed", 1, "-n", 2)
    named = run(*show, "--data", NOTES)
    assert named[0] == 0 and run(*show, NOTES) == run("show", NOTES, *show[1:]) == named
    code, _, err = run(*show, NOTES, "another")
    assert code == 2 and "another" in err
    for name in COMMANDS:
        text = run(*name.split(), "--help")[1]
        for old_names in OLD_NAMES.values():
            assert not any(f"{old_name} " in text for old_name in old_names)


def test_old_names_in_scoring(run, tiny, tmp_path):
    arguments = ("evaluate", "--model", tiny, "--data", NOTES, "--output")
    for name, options in (
        ("new", ("--no-answer", "--top-k", 2)),
        ("old", ("--version-2", "--n-best", 2)),
    ):
        assert run(*arguments, tmp_path / name, *options)[0] == 0
    for file in ("metrics.json", "nbest_predictions.json"):
        assert (tmp_path / "new" / file).read_bytes() == (tmp_path / "old" / file).read_bytes()
    rows = json.loads((tmp_path / "new" / "nbest_predictions.json").read_text(encoding="utf-8"))
    assert "NoAns_total" in (tmp_path / "new" / "metrics.json").read_text()
    assert {len(answers) for answers in rows.values()} <= {2, 3}  # "no answer" is added


ANSWER = PassageAnswer("Ada", 1.0, 0, 3, 0.0, 0.0, passage=0, passages=(0,))


class Recorded:
    """Takes the place of a model, of data or of long work, and writes down every use."""

    computes_with = "nothing"

    def __init__(self, log: list[str], name: str, result: Any = None) -> None:
        self.log, self.name, self.result = log, name, result

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        text = re.sub(r" at 0x\w+", "", f"{self.name} {arguments} {named}")
        self.log.append(text)
        return self.result

    def __getattr__(self, name: str) -> "Recorded":
        page = SimpleNamespace(answers=[ANSWER], to_html=lambda: "a page")
        results = {"best_of": [ANSWER], "answer_examples": iter([[ANSWER]]), "explain": page}
        return Recorded(self.log, name, results.get(name))


# A value for each option, other than its default. Each is used alone and with each other one.
VALUES = {
    "--question": "Who?", "--context": "Ada lit it.", "--context-file": "text.txt",
    "--passages": "rows.jsonl", "--input": "rows.jsonl", "--output": "new", "--data": "own/data",
    "--split": "train", "--model": "own/model", "--precision": "fp32", "--device": "cpu",
    "--attention": "eager", "--allow-host": "localhost:9000", "--host": "127.0.0.2",
    "--shard": "2/3", "--join": "part",
}  # fmt: skip
NUMBERS = {"--negatives": "0.5", "--misleading": "0.5", "--warmup-ratio": "0.5", "--dropout": "0.5"}
# The user must choose one of these options, so none of them has a default.
LISTS = ("--teacher", "--allow-host", "--join")  # options that may be repeated
CHOICES = ("--question", "--context", "--context-file", "--passages", "--input", "--join")
ASK = ("--question", "Who?")
BASES = [
    ("answer", *ASK, "--context", "Ada lit it."),
    ("answer", *ASK, "--context-file", "text.txt"),
    ("answer", *ASK, "--passages", "rows.jsonl"),
    ("answer", "--input", "rows.jsonl"),
    ("answer", "--input", "rows.jsonl", "--output", "new"),
    ("answer", "--input", "rows.jsonl", "--output", "new", "--shard", "1/3"),
    ("answer", "--join", "part", "--output", "new"),
    ("explain", *ASK, "--context", "Ada lit it.", "--output", "new"),
    ("serve",), ("demo",), ("inspect",), ("inspect", "--parity"),
    ("show", "--data", "own/data", "--seed", "1"), ("show", "--data", "rows.jsonl", "--seed", "1"),
    ("check-data", "--data", "own/data"), ("check-data", "--data", "rows.jsonl"),
    ("train", "--data", "own/data", "--output", "new"),
    ("train", "--data", "own/data", "--output", "new", "--dev-data", "own/dev"),
    ("adapt", "--data", "own/data", "--output", "new"),
    ("evaluate", "--data", "own/data", "--output", "new"),
    ("evaluate", "--data", "own/data", "--output", "new", "--no-answer"),
    ("evaluate", "--data", "rows.jsonl", "--output", "new"),
    ("calibrate", "--data", "own/data", "--output", "new"),
    ("calibrate", "--data", "rows.jsonl", "--output", "new"),
    ("bench answer", "--data", "own/data"), ("bench train", "--data", "own/data"),
    ("bench doubt", "--data", "own/data"), ("bench parts", "--data", "own/data"),
    ("bench serve", "--data", "own/data"), ("bench web", "--data", "own/data"),
]  # fmt: skip


@pytest.fixture
def outcome(monkeypatch, capsys, tmp_path) -> Callable[[tuple[str, ...]], Any]:
    """What a command did and printed, without models and data; or its refusal as a string."""
    log: list[str] = []
    row = {"question": "Who?", "context": "Ada lit it.", "answer": "Ada"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (tmp_path / "text.txt").write_text("Bo lit it.")
    monkeypatch.chdir(tmp_path)
    rows = minibert.load_squad(tmp_path / "rows.jsonl") * 20

    def replace(place: str, result: Any = None) -> None:
        monkeypatch.setattr(f"minibert.{place}", Recorded(log, place.rpartition(".")[2], result))

    reader = Recorded(log, "reader")
    monkeypatch.setattr(ReaderOptions, "load", lambda self: log.append(str(self)) or reader)
    for place in (
        "answering.answer_file",
        "answering.join_parts",
        "answering.webbrowser.open",
        "answering.ask",
    ):
        replace(
            f"cli.{place}", [PassageAnswer("Ada", 1.0, 0, 3, 0.0, 0.0, passage=0, passages=(0,))]
        )
    for module in ("inspection", "scoring"):
        replace(f"cli.{module}.load_squad", rows)
    replace("cli.inspection.Tokenizer.from_pretrained")
    replace("cli.inspection.data_report", {})
    replace("cli.inspection.print_problems")
    replace("cli.inspection.make_negatives", {})
    replace("cli.inspection.inspect_parity")
    replace("cli.inspection.empty_model", (SimpleNamespace(config=minibert.BertConfig()), {}))
    replace("cli.inspection.pinned")
    replace("cli.inspection.read_tensors")
    replace("cli.inspection.map_tensors", ({}, "report"))
    replace("cli.inspection.read_config", {})
    replace("training.finetune.train", {})
    replace("training.masked_lm.adapt")
    replace("scoring.evaluation.evaluate", {})
    replace("scoring.calibration.calibrate", (minibert.Calibration(), {}))
    replace("scoring.calibration.save_calibrated")
    replace("cli.bench.table_of", "table")
    replace("cli.bench.row_of", "row")
    for name in ("answer", "train", "doubt", "parts", "serve", "web"):
        replace(f"cli.bench.bench_{name}", {})
    served = lambda *a: log.append(f"serve {vars(a[1])} {a[3]}") or a[2]("url")  # noqa: E731
    monkeypatch.setattr("minibert.serve.server.serve", served)

    def run(arguments: tuple[str, ...]) -> Any:
        name, *options = arguments
        log.clear()
        new = tmp_path / "new"
        new.rmdir() if new.is_dir() else new.unlink(missing_ok=True)
        try:
            PROGRAM.main([*name.split(), *options], prog_name="minibert", standalone_mode=False)
        except minibert.InputError as error:
            capsys.readouterr()
            return str(error)
        made = sorted(path.name for path in tmp_path.iterdir())
        return [*log, *capsys.readouterr(), made]

    return run


@pytest.mark.parametrize("base", BASES, ids=" ".join)
def test_no_option_is_dropped_in_silence(outcome, base):
    """Alone and with each other option, an option changes what a command does, or is refused."""
    pytest.importorskip("minibert.serve.server", reason="pip install -e '.[serve]'")
    options = []
    for option in COMMANDS[base[0]].params:
        name = option.opts[0]
        if name in base or name == "--help":
            continue
        flag = option.secondary_opts[0] if option.default is True else name
        value = NUMBERS.get(name) or VALUES.get(name, "7")
        options.append((flag,) if option.is_flag else (name, value))
    plain = outcome(base)
    assert not isinstance(plain, str), plain
    alone = {option: outcome((*base, *option)) for option in options}
    for option, result in alone.items():
        assert result != plain, f"{option} has no effect"
        assert not isinstance(result, str) or option[0] in result, result
    for one, other in itertools.combinations(options, 2):
        both = outcome((*base, *one, *other))
        if isinstance(both, str):
            assert one[0] in both or other[0] in both, both
        else:
            assert both != alone[one], f"{other} has no effect with {one}"
            assert both != alone[other], f"{one} has no effect with {other}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("answer", "--input", "q", "--json"), "--input excludes --json: "),
        (
            ("bench", "answer", "--data", "d", "--questions", 3, "--minutes", 1),
            "--questions excludes --minutes: ",
        ),
        (("answer", "--input", "q", "--resume"), "--resume needs --output"),
        (("answer", *ASK, "--context", "c", "--output", "o"), "--output needs --input or --join"),
        (("answer", "--input", "q", "--shard", "1/2"), "--shard needs --output"),
        (("answer", "--join", "p", "q"), "--join needs --output"),
        (("answer", "--join", "p", "--output", "o", "--top-k", 2), "--join excludes --top-k: "),
        (("answer", *ASK, "--passages", "p", "--text-score"), "--passages excludes --text-score: "),
        (("answer", *ASK), "give one of --context, --context-file, --passages, --input and --join"),
        (("explain", *ASK, "--output", "o"), "give one of --context and --context-file"),
        (("show", "--data", NOTES, "--split", "train"), "--split needs a folder or a hub id: "),
        (("show", "--data", "-", "--split", "train"), "--split needs a folder or a hub id: - is"),
        (("train", "--data", "d", "--output", "o", "--max-answer-len", 9), "needs --dev-data"),
        (("check-data", "--data", NOTES, "--seed", 1), "--seed needs --negatives"),
        (("train", "--data", "d", "--output", "o", "--misleading", 1), "needs --negatives"),
        (("adapt", "--data", "d", "--output", "o", "--allow-other-machine"), "needs --resume"),
        (("train", "--data", "-", "--output", "o"), "cannot be - in training: give a file"),
        (("train", "--data", "d", "--output", "o", "--dev-data", "-"), "cannot be - in training"),
        (
            ("evaluate", "--data", NOTES, "--output", "o", "--no-answer", "--tune-threshold",
             "--null-threshold", 1),
            "--tune-threshold excludes --null-threshold: ",
        ),
        # wrong usage looks like every other error
        (("answer", "--such"), "No such option: --such"),
        (("answer", "--top-k", "x"), "--top-k"),
        (("show",), "--data"),
        (("show", "--data"), "--data"),
        (("no-such-command",), "no-such-command"),
        (("serve", "--port", 99999), "--port"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line(run, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert message in err and list(tmp_path.iterdir()) == []


def test_the_program_alone_shows_its_help_and_its_version(run):
    code, out, err = run("--version")
    assert code == 0 and re.fullmatch(r"minibert (\d+\.\d+.*|\(not installed\))\n", out)
    for arguments in ((), ("bench",)):
        _, out, err = run(*arguments)
        assert "Usage: " in out + err and "answer" in out + err and "error" not in out + err


@pytest.mark.skipif(sys.platform == "win32", reason="streams are closed as POSIX shells do it")
@pytest.mark.parametrize("command", ["answer", "show", "inspect"])
@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_a_closed_stream_is_one_line(tiny, tmp_path, command, closed):
    """Standard input only if it is read; standard output always; without stderr all is quiet."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "Who?", "context": "Ada", "answer": "Ada"}\n')
    arguments = {
        "answer": ["--model", str(tiny), "--input", str(path)],
        "show": ["--data", str(path)],
        "inspect": ["--model", str(tiny)],
    }[command]
    number = ["stdin", "stdout", "stderr"].index(closed)
    shell = ["sh", "-c", f'exec "$@" {number}<&-', "sh", sys.executable, "-m", "minibert", command]
    done = subprocess.run([*shell, *arguments], capture_output=True, text=True)
    if closed == "stdout":
        assert done.returncode == 2 and done.stderr.startswith("error: standard output is closed")
        assert done.stderr.count("\n") == 1
    else:
        assert done.returncode == 0 and done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("answer", "--input", "-"),
        ("answer", *ASK, "--passages", "-"),
        ("answer", *ASK, "--context-file", "-"),
        ("explain", *ASK, "--context-file", "-", "--output", "o"),
        ("show", "--data", "-"),
        ("check-data", "--data", "-"),
        ("evaluate", "--data", "-", "--output", "o"),
        ("calibrate", "--data", "-", "--output", "o"),
    ],
    ids=" ".join,
)
def test_every_command_reads_standard_input(run, tiny, tmp_path, monkeypatch, arguments):
    """A closed one is one line, an empty one too; otherwise it is read as a file is."""
    monkeypatch.chdir(tmp_path)
    model = [*arguments, *(() if arguments[0] == "show" else ("--model", tiny))]
    monkeypatch.setattr("sys.stdin", None)
    code, out, err = run(*model)
    assert code == 2 and out == "" and err == "error: standard input is closed\n"
    row = {"question": "Who?", "context": "Ada lit it.", "answer": "Ada"}
    text = json.dumps(row).encode() + b"\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    code, out, err = run(*model)
    if arguments[0] != "calibrate":  # which may want more than one question
        assert code == 0, err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device is full here")
def test_a_full_disk_is_one_line(tiny):
    for arguments in (["show", "--data", NOTES], ["inspect", "--model", str(tiny)]):
        with Path("/dev/full").open("w") as full:
            command = [sys.executable, "-m", "minibert", *arguments]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: a standard stream cannot be used: No space left")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "semicolons.csv", "text.txt", "-"])
def test_a_table_of_questions(run, tiny, tmp_path, monkeypatch, name):
    """It is answered as the same JSON lines. Cells may hold several lines."""
    delimiter = "\t" if name == "a.tsv" else ";" if name == "semicolons.csv" else ","
    rows = [
        {"id": "7", "question": "Who lit it?", "context": 'Ada, "the keeper",\nlit; it.'},
        {"id": "8", "question": "Who rang?", "context": "Bo\trang it."},
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter)
    writer.writerow({"id": "id", "question": "Question", "context": "CONTEXT"})
    writer.writerows(rows)
    table, lines = text.getvalue().encode("utf-8-sig"), tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    path = Path("-") if name == "-" else tmp_path / name
    if name == "-":
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(table)))
    else:
        path.write_bytes(table)
    answered = [run("answer", "--model", tiny, "--input", source)[1] for source in (path, lines)]
    assert answered[0] == answered[1] and answered[0].count("\n") == 2
    if name != "-":
        asked = ("answer", "--model", tiny, *ASK, "--top-k", 3, "--passages")
        assert run(*asked, path)[1] == run(*asked, lines)[1]
        output = tmp_path / "out.jsonl"  # a stopped job continues
        run("answer", "--model", tiny, "--input", path, "--output", output)
        first, _ = output.read_text().splitlines(keepends=True)
        (tmp_path / "out.jsonl.partial").write_text(first)
        assert output.read_text() == answered[0]


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ("question,text\nWho?,Ada\n", "expected a header with the column 'context'"),
        ("context,text\nWho?,Ada\n", "row 1: expected an object with 'question' and 'context'"),
        ("question,context\nWho?,Ada\nWho?,Ada,Bo\n", "row 2: more fields than the header has"),
        ("question,context,Context\nWho?,Ada,Bo\n", "the header has a column twice"),
        ('question,context\nWho?,"Ada\n', "row 1: not readable as a table"),
        ("question,context\nWho?\n", "row 1: no words in the context"),
    ],
)
def test_a_bad_table_is_one_line(run, tiny, tmp_path, table, named):
    (tmp_path / "a.csv").write_text(table)
    code, _, err = run("answer", "--model", tiny, "--input", tmp_path / "a.csv")
    assert code == 2 and named in err.splitlines()[-1] and "Traceback" not in err


def test_a_table_of_answers_lists_every_copy_of_a_passage(run, tiny, tmp_path):
    rows = ["Ada lit it.", "Bo rang.", "Ada lit it."]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = ("answer", "--model", tiny, *ASK, "--passages", tmp_path / "rows.jsonl")
    _, out, _ = run(*command, "--top-k", 100)
    header, *lines = out.rstrip("\n").splitlines()
    assert header.startswith("passage ")
    assert {line[:7].strip() for line in lines} == {"0,2", "1", "none"}


@pytest.mark.parametrize("command", ["answer", "explain"])
def test_a_context_that_names_a_file_gets_a_hint(run, tiny, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("Ada lit it.")
    arguments = [command, "--model", tiny, *ASK]
    if command == "explain":
        arguments += ["--no-attribution", "--output", "page.html"]
    for context, hinted in (("notes.txt", True), ("notes", False), ("Ada " * 2000, False)):
        (tmp_path / "page.html").unlink(missing_ok=True)
        code, _, err = run(*arguments, "--context", context)
        assert code == 0 and ("use --context-file" in err) == hinted


def test_explain_checks_its_output_first_and_says_where_the_page_is(
    run, tiny, tmp_path, monkeypatch
):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    arguments = ("explain", "--model", tiny, *ASK, "--context", "Ada lit it.", "--output")
    page = tmp_path / "new" / "page.html"
    code, _, err = run(*arguments, page, "--no-attribution", "--open")
    assert code == 0 and err.endswith(f"the page is {page}\n") and page.exists()
    assert opened == [page.as_uri()]
    monkeypatch.setattr(ReaderOptions, "load", lambda self: pytest.fail("seconds spent"))
    for wrong in (page, page / "x.html", tmp_path):
        code, out, err = run(*arguments, wrong)
        assert code == 2 and out == "" and str(tmp_path) in err and err.count("\n") == 1
    code, _, err = run("answer", "--input", "q.jsonl", "--output", page / "x.jsonl")
    assert code == 2 and "page.html" in err


def test_a_table_shows_no_answer_as_such(run, tiny, tmp_path):
    asked = ("answer", "--model", tiny, *ASK, "--no-answer", "--top-k", 99)
    _, out, _ = run(*asked, "--context", "Ada lit it.")
    assert [line for line in out.splitlines() if line.endswith("  (no answer)")]
    _, out, _ = run(*asked, "--context", "Ada lit it.", "--json")
    assert "" in [answer["answer"] for answer in json.loads(out)]


def test_train_then_evaluate(run, tiny, tmp_path):
    code, out, err = run(
        "train", "--model", tiny, "--data", NOTES, "--dev-data", NOTES, "--epochs", 1,
        "--output", tmp_path / "run", "--max-train-examples", 20, "--batch-size", 8,
        "--learning-rate", 1e-3, "--precision", "bf16", "--seed", 7,
    )  # fmt: skip
    trained = json.loads(out)
    assert code == 0 and trained["total"] == 120
    assert err.count("warning: 28 of 120 questions have no answer") == 1
    code, out, err = run(
        "evaluate", "--model", tmp_path / "run", "--data", NOTES, "--output", tmp_path / "eval",
        "--precision", "bf16",
    )  # fmt: skip
    assert code == 0 and {"output", *json.loads(out)} == trained.keys()
    assert err.count("warning: 28 of 120 questions have no answer") == 1
    assert {p.name for p in (tmp_path / "eval").iterdir()} == {
        "predictions.json", "nbest_predictions.json", "metrics.json", "null_odds.json",
    }  # fmt: skip


def test_stop_and_resume(run, tiny, tmp_path):
    """Exit codes are the errors' own; a run that has ended is not begun again."""
    arguments = (
        "train", "--model", tiny, "--data", NOTES, "--epochs", 1, "--output", tmp_path / "run",
        "--max-train-examples", 20,
    )  # fmt: skip
    assert run(*arguments)[0] == 0
    code, _, err = run(*arguments)
    assert code == 2 and "holds a model or a run already" in err
    assert run(*arguments, "--resume")[0] == 0
    code, _, err = run(*arguments, "--resume", "--seed", 1)
    assert code == 2 and "seed was 42, is 1" in err
    code, _, err = run(*arguments[:6], "3", "--output", tmp_path / "wild", "--learning-rate", 1e30)
    assert code == 3 and "step 2: not a finite number" in err


def test_check_data(run, tiny, tmp_path):
    code, out, _ = run("check-data", "--data", NOTES, "--model", tiny)
    report = dict(line.split() for line in out.splitlines())
    assert code == 0 and report["questions"] == "120" and report["unanswerable"] == "28"
    assert report["answers_without_a_window"] == "0"

    rows = [
        {"question": "Who?", "context": "Ada " * 50, "answer": ("Ada " * 40).strip()},
        {"question": "Who?", "context": "Ada lit it.", "answer": "Ada", "answer_start": 1},
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    rows[0]["answer_start"] = 0
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    size = ("--max-length", 32, "--doc-stride", 8)
    code, out, err = run("check-data", "--data", path, "--model", tiny, *size)
    assert code == 2 and err == f"error: {path}: 1 question has an error\n"
    assert out.startswith(f"{path}: row 2: answer 'Ada' is not at answer_start=1")
    assert dict(line.split() for line in out.splitlines()[1:])["answers_without_a_window"] == "1"


def test_train_on_what_is_left(run, tiny, tmp_path):
    rows = [
        {"question": "Who lit it?", "context": f"Ada {k} lit it.", "answer": "Ada"}
        for k in range(8)
    ]
    rows[3]["answer"] = "Bob"
    rows[5]["question"] = "\u200b"
    rows[6] = {"question": "Who?", "context": "\u200b", "answer": ""}
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    train = ("train", "--model", tiny, "--data", path, "--epochs", 1, "--output")
    code, _, err = run(*train, tmp_path / "run")
    assert code == 2 and "row 4" in err
    code, _, err = run(*train, tmp_path / "run", "--skip-invalid")
    assert code == 0 and "3 questions were left out" in err and "5 windows" in err
    told = (tmp_path / "run" / "skipped.txt").read_text(encoding="utf-8").splitlines()
    for line, named in zip(told, ("row 4", "row 6: no words", "row 7: no words"), strict=True):
        assert named in line
    code, out, err = run("check-data", "--data", path, "--model", tiny)
    assert code == 2 and "3 questions have errors" in err and out.splitlines()[:3] == told


def test_bench_train(run, tiny, tmp_path, monkeypatch):
    """minibert alone: the others' models are built by the real run only."""
    monkeypatch.setattr(bench, "ENGINES", {"minibert": bench.ours})
    path, data = tmp_path / "bench.json", tmp_path / "data.jsonl"
    row = {"question": "Who lit it?", "context": "Ada lit it.", "answer": "Ada"}
    data.write_text("\n".join([json.dumps(row)] * 9 * bench.BATCH), encoding="utf-8")
    code, out, _ = run(
        "bench", "train", "--model", tiny, "--data", data, "--turns", 1, "--output", path
    )
    assert code == 0 and out.count("minibert ") >= 2
    for memory in ("tuned", "untuned"):
        figures = json.loads(path.read_text())[memory]["engines"]["minibert"]
        assert figures["ratio"] == 1.0 and figures["share_of_peak"] > 0
        assert figures["tokens_per_second"] > figures["windows_per_second"] > 0


def test_an_old_report_stays_until_the_new_one_is_there(run, tmp_path, monkeypatch):
    path = tmp_path / "bench.json"
    path.write_text("of yesterday")

    def measure(*arguments: object) -> None:
        assert path.read_text() == "of yesterday"
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_commands, "bench_train", measure)
    arguments = ("bench", "train", "--model", "i", "--data", "d", "--output")
    with contextlib.suppress(KeyboardInterrupt):
        run(*arguments, path)
    assert path.read_text() == "of yesterday" and list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(bench_commands, "bench_train", lambda *_: pytest.fail("minutes spent"))
    for wrong in (tmp_path, path / "x.json"):  # a folder; in a file
        code, _, err = run(*arguments, wrong)
        assert code == 2 and str(path.parent) in err


def test_an_option_out_of_range_is_one_line(run, tiny):
    asked = ("answer", "--model", tiny, "--question", "Who?", "--context", "a lamp")
    code, out, err = run(*asked, "--top-k", 0)
    assert code == 2 and out == "" and err == "error: top_k=0: expected 1 or more\n"


ASKED = ("--question", "Who?", "--context", "a lamp")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("answer", "--model", "no/such/place", *ASKED), "no/such/place"),
        (("answer", "--model", "EMPTY", *ASKED), "no config.json"),
        (("answer", "--model", "TRUNCATED", *ASKED), "model.safetensors"),
        (("answer", "--model", "MISSHAPEN", *ASKED), "bert.embeddings.LayerNorm.bias"),
        (("answer", "--model", "MODEL", "--question", " ", "--context", "a"), "no words in the q"),
        (
            ("answer", "--model", "MODEL", "--question", "Who?", "--context", ""),
            "no words in the c",
        ),
        (("answer", "--model", "MODEL", "--question", "Who?"), "--context"),
        (("answer", "--model", "MODEL", "--context", "a"), "--question"),
        (("answer", "--model", "MODEL", "--input", "none.jsonl"), "none.jsonl: no such file"),
        (
            ("answer", "--model", "MODEL", "--input", "x", "--question", "Who?"),
            "give one of --question, --input and --join, but got",
        ),
        (
            ("evaluate", "--model", "MODEL", "--data", NOTES, "--output", "o", "--tune-threshold"),
            "--tune-threshold needs --no-answer",
        ),
        (
            ("answer", "--model", "MODEL", "--question", "Who?", "--context-file", "none"),
            "none: no such file",
        ),
        (("evaluate", "--model", "MODEL", "--data", "none.json", "--output", "o"), "none.json"),
        (
            ("evaluate", "--model", "MODEL", "--data", NOTES, "--output", "o", "--precision", "x"),
            "precision='x'",
        ),
        (("train", "--model", "EMPTY", "--data", NOTES, "--output", "o"), "no config.json"),
        (("train", "--model", "MODEL", "--data", "none.json", "--output", "o"), "none.json"),
        (
            ("evaluate", "--model", "MODEL", "--data", NOTES, "--output", NOTES),
            "cannot be a folder",
        ),
        (("inspect", "--model", "EMPTY"), "no config.json"),
        (
            ("explain", "--question", "Who?", "--context-file", "none", "--output", "o"),
            "none: no such file",
        ),
        (
            (
                "explain",
                "--model",
                "MODEL",
                "--question",
                " ",
                "--context-file",
                NOTES,
                "--output",
                "o",
            ),
            "no words in the question",
        ),
        (("show", "--data", "none.json"), "none.json: no such file"),
    ],
)
def test_what_goes_wrong_is_one_line(run, tiny, tmp_path, monkeypatch, arguments, named):
    weights = (tiny / "model.safetensors").read_bytes()
    for name in ("EMPTY", "TRUNCATED", "MISSHAPEN"):
        (tmp_path / name).mkdir()
        if name != "EMPTY":
            for file in tiny.iterdir():
                (tmp_path / name / file.name).write_bytes(file.read_bytes())
    (tmp_path / "TRUNCATED" / "model.safetensors").write_bytes(weights[:5000])
    settings = json.loads((tiny / "config.json").read_text())
    (tmp_path / "MISSHAPEN" / "config.json").write_text(json.dumps(settings | {"hidden_size": 32}))
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*[str(tiny) if a == "MODEL" else a for a in arguments])
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and named in err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("how", ["--json", "a table"])
def test_an_output_without_emoji_gets_escapes(monkeypatch, tiny, how):
    """As Windows' cp1252, into a file or a pipe; JSON gives the text back. (--input is UTF-8.)"""
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", out)
    arguments = ["--question", "Who?", "--context", "\U0001f602 Zoë"]
    if how == "--json":
        arguments.append("--json")
    command = ["minibert", "answer", "--model", str(tiny), "--top-k", "9", *arguments]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    out.flush()
    text = out.buffer.getvalue().decode("cp1252")
    assert not ended.value.code and "Zoë" in text and "\\ud83d\\ude02" in text
    if how == "--json":
        assert "\U0001f602 Zoë" in [answer["answer"] for answer in json.loads(text)]


def test_the_demo_into_a_pipe_of_windows():
    run = subprocess.run(
        [sys.executable, "-m", "minibert", "demo"],
        env=os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
    )
    assert run.returncode == 0, run.stderr
    assert "George Washington" in run.stdout.decode("cp1252")
