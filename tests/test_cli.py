"""The command line, used as a user does: what it prints, and one line for what goes wrong."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import typer

import minibert
from minibert.bench import parity
from minibert.bench import training as bench
from minibert.cli import app, demo_passages, main, program
from minibert.cli import bench as bench_commands
from minibert.cli import training as training_commands
from minibert.scoring import evaluation

NOTES = str(Path(__file__).parent / "data" / "field_notes.json")
Run = Callable[..., tuple[int, str, str]]


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
    assert code == 2 and out == "" and err.startswith("error: --passages has no --no-answer")
    assert err.count("\n") == 1 and option in err


def test_demo(run, tiny):
    code, out, _ = run("demo", "--model", tiny)
    assert code == 0
    for passage in demo_passages():
        assert all(question in out for question in passage["questions"])
    assert len(out.split("the 10 best spans")[1].strip().splitlines()) == 12


def test_show(run):
    code, out, _ = run("show", NOTES, "-n", 2, "--seed", 1)
    assert code == 0 and out.count("question:") == 2
    assert out == run("show", NOTES, "-n", 2, "--seed", 1)[1]


def test_inspect(run, tiny, minilm):
    code, out, _ = run("inspect", tiny)
    assert code == 0 and "hidden_size" in out and "0 missing, 0 unexpected" in out
    code, out, _ = run("inspect", minilm)
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
    code, out, _ = run("inspect", tiny, "--parity")
    assert code == 0 and out.count("exact") == 6 and "first divergence: none" in out
    tensors = parity.computed(tiny, has_head=True)
    tensors["hidden_states.2"] = tensors["hidden_states.2"] + 0.5
    monkeypatch.setattr(parity, "computed", lambda *_: tensors)
    code, out, _ = run("inspect", tiny, "--parity")
    assert code == 1 and "first divergence: hidden_states.2" in out
    assert out.count("DIVERGES") == 1


def test_inspect_parity_of_an_encoder(run, minilm, transformers):
    code, out, _ = run("inspect", minilm, "--parity")
    assert code == 0 and "logits" not in out and out.count("exact") == 7


def test_serve_says_what_it_needs(run, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "minibert.explain.server", None)
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
    group: Any = typer.main.get_command(app)
    return {option.name: option for option in group.commands[name].params}


@pytest.mark.parametrize(
    ("name", "without"), [("train", {}), ("adapt", training_commands.NOT_IN_ADAPT)]
)
def test_every_setting_of_training_has_an_option(name, without):
    """Or a reason not to have one. The fields give the names, defaults and help texts."""
    options = options_of(name)
    settings = {field.name: field for field in fields(minibert.TrainingConfig)}
    assert options.keys() & settings.keys() == settings.keys() - without.keys()
    assert without.keys() <= settings.keys() and all(without.values())
    other_defaults = {"init"} if name == "train" else {*training_commands.BY_ADAPT, "dropout"}
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
        "negatives": 0.625, "teachers": ("a", "b"), "skip_invalid": True, "attention": "eager",
        "precision": "fp32", "device": "cpu", "seed": 5, "checkpoint_every": 17,
        "keep_checkpoints": 4, "progress": False,
    }  # fmt: skip
    without = training_commands.NOT_IN_ADAPT if name == "adapt" else {}
    arguments = ["--resume", "--allow-other-machine"]
    for field, value in given.items():
        flag = "--" + {"output_dir": "output", "teachers": "teacher"}.get(field, field)
        flag = flag.replace("_", "-")
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
        assert run(name, "--init", "i", "--train-file", "t", "--output", "o")[0] == 0
        other = training_commands.BY_ADAPT | {"dropout": 0.0} if name == "adapt" else {}
        assert calls.pop() == (minibert.TrainingConfig(**paths, **other), False, False)
    code, _, err = run("train", "--train-file", "t", "--output", "o", "--epochs", "0")
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


def test_the_old_name_of_no_answer(run, tiny, tmp_path):
    arguments = ("evaluate", "--model", tiny, "--data", NOTES, "--output")
    metrics = [run(*arguments, tmp_path / name, name)[1] for name in ("--no-answer", "--version-2")]
    assert metrics[0] == metrics[1] and "NoAns_total" in metrics[0]
    assert "version-2" not in run("evaluate", "--help")[1]


def test_train_then_evaluate(run, tiny, tmp_path):
    code, out, err = run(
        "train", "--init", tiny, "--train-file", NOTES, "--dev-file", NOTES, "--epochs", 1,
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
        "train", "--init", tiny, "--train-file", NOTES, "--epochs", 1, "--output", tmp_path / "run",
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
    code, out, _ = run("check-data", NOTES, "--tokenizer", tiny)
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
    code, out, err = run("check-data", path, "--tokenizer", tiny, *size)
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
    train = ("train", "--init", tiny, "--train-file", path, "--epochs", 1, "--output")
    code, _, err = run(*train, tmp_path / "run")
    assert code == 2 and "row 4" in err
    code, _, err = run(*train, tmp_path / "run", "--skip-invalid")
    assert code == 0 and "3 questions were left out" in err and "5 windows" in err
    told = (tmp_path / "run" / "skipped.txt").read_text(encoding="utf-8").splitlines()
    for line, named in zip(told, ("row 4", "row 6: no words", "row 7: no words"), strict=True):
        assert named in line
    code, out, err = run("check-data", path, "--tokenizer", tiny)
    assert code == 2 and "3 questions have errors" in err and out.splitlines()[:3] == told


def test_bench_train(run, tiny, tmp_path, monkeypatch):
    """minibert alone: the others' models are built by the real run only."""
    monkeypatch.setattr(bench, "ENGINES", {"minibert": bench.ours})
    path, data = tmp_path / "bench.json", tmp_path / "data.jsonl"
    row = {"question": "Who lit it?", "context": "Ada lit it.", "answer": "Ada"}
    data.write_text("\n".join([json.dumps(row)] * 9 * bench.BATCH), encoding="utf-8")
    code, out, _ = run(
        "bench", "train", "--init", tiny, "--data", data, "--turns", 1, "--output", path
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
    arguments = ("bench", "train", "--init", "i", "--data", "d", "--output")
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
        (("answer", "--model", "MODEL", "--input", "none.jsonl"), "none.jsonl: cannot be opened"),
        (("answer", "--model", "MODEL", "--input", "x", "--question", "Who?"), "--input excludes"),
        (
            ("evaluate", "--model", "MODEL", "--data", NOTES, "--output", "o", "--tune-threshold"),
            "--null-threshold and --tune-threshold need --no-answer",
        ),
        (("answer", "--model", "MODEL", "--question", "Who?", "--context-file", "none"), "none"),
        (("evaluate", "--model", "MODEL", "--data", "none.json", "--output", "o"), "none.json"),
        (
            ("evaluate", "--model", "MODEL", "--data", NOTES, "--output", "o", "--precision", "x"),
            "precision='x'",
        ),
        (("train", "--init", "EMPTY", "--train-file", NOTES, "--output", "o"), "no config.json"),
        (("train", "--init", "MODEL", "--train-file", "none.json", "--output", "o"), "none.json"),
        (
            ("evaluate", "--model", "MODEL", "--data", NOTES, "--output", NOTES),
            "cannot be a folder",
        ),
        (("inspect", "EMPTY"), "no config.json"),
        (
            ("explain", "--question", "Who?", "--context-file", "none", "--output", "o"),
            "none: not readable as text",
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
        (("show", "none.json"), "none.json"),
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
