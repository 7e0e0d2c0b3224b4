"""A file of questions is answered line by line: nothing is lost, and a stopped job goes on."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import minibert
from minibert.cli import main, program
from minibert.cli.lines import (
    answer_file,
    answer_key,
    answer_lines,
    identity,
    partial_file,
    questions_of,
    skip_answered,
)
from minibert.settings import AnswerSettings

ASK = [sys.executable, "-m", "minibert", "answer"]


@pytest.fixture(scope="module")
def qa(tiny: Path) -> minibert.QuestionAnswerer:
    return minibert.QuestionAnswerer.from_pretrained(tiny, precision="fp32")


def rows(count: int) -> list[bytes]:
    return [
        json.dumps({"question": f"Who lit lamp {k}?", "context": f"Ada lit lamp {k}."}).encode()
        + b"\n"
        for k in range(count)
    ]


def answered(
    qa: minibert.QuestionAnswerer,
    lines: Iterable[bytes],
    settings: AnswerSettings,
    so_far: Iterable[bytes] = (),
    on_batch: Callable[[int], None] = lambda windows: None,
) -> bytes:
    """The answers to the lines that are not among those `so_far`."""
    asked = questions_of(lines, "rows", answer_key(settings))
    skip_answered(asked, so_far, "rows")
    return b"".join(answer_lines(qa, asked, settings, on_batch))


ROWS = {
    "a gold answer, as in the project's own tables": '"answer": "Ada", "answer_start": 0',
    "all our names": '"answer": 1, "score": 2, "start": 3, "end": 4, "start_logit": 5',
    "answers as in SQuAD": '"answers": [{"text": "Ada", "answer_start": 0}]',
    "numbers with their spelling": '"a": 1.10, "b": 1e400, "c": 123456789012345678901234567890',
    "what JSON has no word for": '"a": NaN, "b": -Infinity',
    "a name twice": '"id": 1, "id": 2',
    "escapes": '"note": "\\u00e9 \\ud83d\\udd6f \\ud800 \\/"',
    "an object": '"meta" : { "a" : [ ] }',
    "blanks at the end": '"a": 1 ',
    "a line separator": '"note": "a\u2028b"',
}


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("name", ROWS)
def test_nothing_of_a_line_is_lost(qa, name, top_k):
    """What was there comes back character for character, and one field more."""
    line = f'{{"question": "Who lit it?", "context": "Ada lit it.", {ROWS[name]}}}'
    settings = AnswerSettings(top_k)
    written = answered(qa, [f"\ufeff {line}\r\n".encode(), b"\n"], settings).decode()
    assert written.startswith(line[:-1].rstrip() + ", ") and written.count("\n") == 1
    answers = json.loads(written).pop(answer_key(settings))
    best = answers if top_k == 1 else answers[0]
    assert best["answer"] == "Ada lit it."[best["start"] : best["end"]]
    assert top_k == 1 or len(answers) == 2


def test_each_answer_is_written_when_it_is_there(qa, monkeypatch):
    """The first lines are out, and flushed, while most of the file has not been read."""
    monkeypatch.setattr(minibert.engine, "FIRST_CHUNK_CHARACTERS", 100)
    read = itertools.count()

    class Written(io.RawIOBase):
        def __init__(self) -> None:
            self.reached: list[int] = []

        def writable(self) -> bool:
            return True

        def write(self, line: bytes) -> int:
            self.reached.append(next(read))
            return len(line)

    asked = rows(200)
    lines = (asked[next(read) % 200] for _ in range(200))
    raw = Written()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=lines))
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=io.BufferedWriter(raw)))
    answer_file(qa, Path("-"), None, False, AnswerSettings())
    assert len(raw.reached) == 200 and raw.reached[0] < 6


def test_a_stopped_job_goes_on(qa, tmp_path):
    """Wherever it stopped, also within a line: the file is that of a job that was not stopped."""
    asked, settings = rows(7), AnswerSettings(top_k=2)
    made_by = identity(qa, settings)
    path, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    with partial_file(path, made_by, resume=False) as file:
        file.write(answered(qa, asked, settings))
    whole = path.read_bytes()
    assert len(whole.splitlines()) == 7 and list(tmp_path.iterdir()) == [path]
    for size in (0, 1, len(whole) // 2, len(whole) - 1, len(whole)):
        path.unlink()
        with pytest.raises(KeyboardInterrupt), partial_file(path, made_by, False) as file:
            file.write(whole[:size])
            raise KeyboardInterrupt
        assert partial.read_bytes() == whole[:size] and not path.exists()
        read = []
        with partial_file(path, made_by, True) as file:
            file.write(answered(qa, asked, settings, file, read.append))
        assert sum(read) == 7 - whole[:size].count(b"\n")
        for line, again in zip(whole.splitlines(), path.read_bytes().splitlines(), strict=True):
            one, other = json.loads(line), json.loads(again)
            assert one["question"] == other["question"]
            for a, b in zip(one["predictions"], other["predictions"], strict=True):
                assert (a["answer"], a["start"]) == (b["answer"], b["start"])
                # 1e-4: products of another shape sum in another order
                assert a["score"] == pytest.approx(b["score"], abs=1e-4)
        assert list(tmp_path.iterdir()) == [path]


def test_another_job_is_not_resumed(qa, tiny, tmp_path):
    path = tmp_path / "out.jsonl"
    asked = rows(3)

    def stop() -> None:
        with pytest.raises(KeyboardInterrupt), partial_file(path, made_by, True) as file:
            file.write(answered(qa, asked[:2], AnswerSettings(), file))
            raise KeyboardInterrupt

    made_by = identity(qa, AnswerSettings())
    stop()
    other = identity(qa, AnswerSettings(max_answer_len=9))
    with (
        pytest.raises(minibert.InputError, match="max_answer_len was 30, is 9"),
        partial_file(path, other, True),
    ):
        pass
    changed = minibert.QuestionAnswerer.from_pretrained(tiny, precision="fp32")
    changed.model.head.bias.data += 1
    with (
        pytest.raises(minibert.InputError, match="model was"),
        partial_file(path, identity(changed, AnswerSettings()), True),
    ):
        pass
    for lines, named in (
        ([asked[0], asked[2]], "rows: line 2"),
        (asked[:1], "rows: the answers so far"),
    ):
        with (
            pytest.raises(minibert.InputError, match=named),
            partial_file(path, made_by, True) as file,
        ):
            answered(qa, lines, AnswerSettings(), file)
    with pytest.raises(minibert.InputError, match="resume"), partial_file(path, made_by, False):
        pass
    (tmp_path / "out.jsonl.partial.json").write_text("[]")
    with pytest.raises(minibert.InputError, match="model was None"):
        stop()
    (tmp_path / "out.jsonl.partial.json").write_text("{")
    with pytest.raises(minibert.InputError, match=r"partial\.json: not readable"):
        stop()
    assert len((tmp_path / "out.jsonl.partial").read_bytes().splitlines()) == 2


def test_a_file_that_appears_meanwhile_is_not_overwritten(qa, tmp_path):
    path = tmp_path / "out.jsonl"
    with (
        pytest.raises(minibert.InputError, match="exists already"),
        partial_file(path, identity(qa, AnswerSettings()), False) as file,
    ):
        file.write(b"{}\n")
        path.write_text("another's")
    assert path.read_text() == "another's"
    assert (tmp_path / "out.jsonl.partial").read_bytes() == b"{}\n"


def test_only_one_job_writes_a_file(qa, tmp_path, monkeypatch):
    """A second job is refused while the first one works. Then the lock is gone."""
    source, output = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    source.write_bytes(b"".join(rows(3)))
    settings = AnswerSettings()

    def during(*arguments: Any) -> Iterator[bytes]:
        for line in answer_lines(*arguments):
            before = contents()
            with pytest.raises(minibert.InputError, match=r"answers.jsonl: another job is writing"):
                answer_file(qa, source, output, True, settings)
            assert contents() == before
            yield line

    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with monkeypatch.context() as patch:
        patch.setattr("minibert.cli.lines.answer_lines", during)
        answer_file(qa, source, output, True, settings)
    assert output.read_bytes() == answered(qa, rows(3), settings)
    assert contents().keys() == {"rows.jsonl", "answers.jsonl"}
    answer_file(qa, source, tmp_path / "again.jsonl", True, settings)
    with pytest.raises(minibert.InputError, match="cannot be written: No such file"):
        answer_file(qa, source, tmp_path / "no" / "answers.jsonl", False, settings)


@pytest.mark.skipif(os.name == "nt", reason="signals and pipes as POSIX has them")
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])  # Windows has no SIGKILL to name
def test_a_killed_job_keeps_its_answers(tiny, tmp_path, name):
    """What it has answered is there, and another one goes on with it."""
    output = tmp_path / "out.jsonl"
    command = [*ASK, "--model", str(tiny), "--input", "-", "--output", str(output)]
    asked = rows(700)  # several chunks, and less than a pipe holds

    def heed_ctrl_c() -> None:  # which a shell's background jobs ignore, and so do their children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c
    ) as job:
        assert job.stdin is not None and job.stderr is not None
        job.stdin.write(b"".join(asked))
        job.stdin.flush()
        partial = tmp_path / "out.jsonl.partial"
        while not partial.exists() or partial.stat().st_size == 0:
            assert job.poll() is None
            time.sleep(0.05)
        job.send_signal(signal.Signals[name])
        said = job.stderr.read().decode()
    if name == "SIGINT":
        assert job.returncode == 130 and "--resume continues" in said and "Traceback" not in said
    before = partial.read_bytes().count(b"\n")
    assert 0 < before < 700 and not output.exists()
    done = subprocess.run([*command, "--resume"], input=b"".join(asked), capture_output=True)
    assert done.returncode == 0, done.stderr
    written = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert [row["question"] for row in written] == [json.loads(row)["question"] for row in asked]


@pytest.mark.skipif(os.name == "nt", reason="signals and pipes as POSIX has them")
def test_a_closed_pipe_ends_quietly(tiny, tmp_path):
    source = tmp_path / "asked.jsonl"
    source.write_bytes(b"".join(rows(3000)))
    command = [*ASK, "--model", str(tiny), "--input", str(source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        assert job.stdout is not None and job.stderr is not None
        assert json.loads(job.stdout.readline())["prediction"]
        job.stdout.close()
        said = job.stderr.read().decode()
    assert job.returncode == 1 and "rror" not in said and "Traceback" not in said


def test_output_without_input_is_named(tiny, tmp_path, monkeypatch, capsys):
    asked = ["--model", str(tiny), "--question", "Who?", "--context", "Ada"]
    monkeypatch.setattr("sys.argv", ["minibert", "answer", *asked, "--output", "x"])
    monkeypatch.setattr(program, "keep_freed_memory", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "--output needs --input" in capsys.readouterr().err
