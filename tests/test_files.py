"""Files appear when they are complete: open old files stay as they are, errors change nothing."""

import contextlib
import mmap
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from machine import needs_signals

import minibert
from minibert.cli.bench import write_report
from minibert.files import complete_files
from minibert.reader import BUNDLED


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def save_model(folder: Path, tiny: Path) -> None:
    model = minibert.BertForQuestionAnswering.from_pretrained(tiny)
    with torch.no_grad():
        model.head.S.add_(1)
    model.save_pretrained(folder)


def save_tokenizer(folder: Path, tiny: Path) -> None:
    minibert.Tokenizer.from_vocabulary(["[PAD]", "[UNK]", "[CLS]", "[SEP]"]).save_pretrained(folder)


def save_reader(folder: Path, tiny: Path) -> None:
    minibert.QuestionAnswerer.from_pretrained(tiny).save_pretrained(folder)


def evaluate(folder: Path, tiny: Path) -> None:
    example = minibert.Example("1", "Who?", "Ada lit it.", (minibert.GoldAnswer("Ada", 0),))
    qa = minibert.QuestionAnswerer.from_pretrained(tiny)
    minibert.evaluate(qa, [example], folder, no_answer=True)


WRITERS = {
    save_model: {"config.json", "model.safetensors"},
    save_tokenizer: {"tokenizer.json", "tokenizer_config.json", "vocab.txt"},
    save_reader: {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    },
    evaluate: {"predictions.json", "nbest_predictions.json", "null_odds.json", "metrics.json"},
}  # fmt: skip


@pytest.mark.parametrize("write", WRITERS)
def test_an_open_file_keeps_its_old_content(write, tiny, tmp_path):
    """A model's weights are mapped into memory. Saving over their file must not change them."""
    for name in WRITERS[write]:
        (tmp_path / name).write_bytes(name.encode() * 1000)
    before = contents(tmp_path)
    with contextlib.ExitStack() as stack:
        files = {n: stack.enter_context((tmp_path / n).open("rb")) for n in before}
        maps = {n: mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) for n, f in files.items()}
        write(tmp_path, tiny)
        assert {name: bytes(mapped) for name, mapped in maps.items()} == before
    after = contents(tmp_path)
    assert after.keys() == WRITERS[write]
    assert all(after[name] != content for name, content in before.items())


@pytest.mark.parametrize("write", WRITERS)
def test_an_error_on_the_way_changes_nothing(write, tiny, tmp_path, monkeypatch):
    """The disk is full at the last moment: all old files remain, and there are no others."""
    for name in WRITERS[write]:
        (tmp_path / name).write_bytes(name.encode())
    before = contents(tmp_path)

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(minibert.MinibertError, match="cannot be written: No space left on device"):
        write(tmp_path, tiny)
    assert contents(tmp_path) == before


class Stopped(BaseException):
    """As Ctrl-C: no handler for an `Exception` catches it."""


def stop_at(patch: pytest.MonkeyPatch, last: int, killed: bool) -> list[Path]:
    """Stop before the move `last`, counted from 1. After a kill, nothing else moves either.

    Returns the files that have moved.
    """
    moved: list[Path] = []

    def moving(move: Any) -> Any:
        def checked(path: Path, target: Path) -> Path:
            if len(moved) == last - 1 and (killed or move is replace):
                raise Stopped
            moved.append(path)
            return move(path, target)

        return checked

    replace = Path.replace
    patch.setattr(Path, "replace", moving(replace))
    patch.setattr(Path, "rename", moving(Path.rename))
    return moved


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("write", WRITERS)
def test_old_and_new_files_are_never_mixed(write, killed, tiny, tmp_path, monkeypatch):
    """Whichever move does not happen any more. After Ctrl-C, the old files are complete."""
    start, folder = tmp_path / "start", tmp_path / "folder"
    shutil.copytree(tiny, start)
    others = {"notes.txt": b"the user's", "pytorch_model.bin": b"the user's"}
    for name in {*WRITERS[write], *others}:
        (start / name).write_bytes(others.get(name, b"old"))
    old = contents(start)
    for last in range(1, 100):
        shutil.copytree(start, folder)
        with monkeypatch.context() as patch:
            moved = stop_at(patch, last, killed)
            stopped = True
            with contextlib.suppress(Stopped):
                write(folder, tiny)
                stopped = False
        now = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert now.items() >= others.items()
        states = {now[name] == b"old" for name in WRITERS[write] & now.keys()}
        assert len(states) <= 1, f"a mixture after the move of {moved[-1]}"
        if not stopped:
            break
        if not killed:
            assert contents(folder) == old
        elif write is save_reader and states != {True}:
            with pytest.raises(minibert.PretrainedError, match="no config"):
                minibert.QuestionAnswerer.from_pretrained(folder)
        shutil.rmtree(folder)
    assert last > len(WRITERS[write]) and states == {False}


@pytest.mark.parametrize("write", [write for write in WRITERS if write is not evaluate])
def test_a_new_folder_appears_in_one_step(write, tiny, tmp_path, monkeypatch):
    """An error leaves no folder and no draft. `evaluate` makes its folder before it works."""
    folder = tmp_path / "folder"
    seen: list[bool] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append(folder.exists()), fsync(file))[1])
    write(folder, tiny)
    assert contents(folder).keys() == WRITERS[write] and seen and not any(seen)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    (tmp_path / "usual").mkdir()
    assert folder.stat().st_mode == (tmp_path / "usual").stat().st_mode
    with pytest.raises(Stopped), complete_files(tmp_path / "other" / "inner"):
        raise Stopped
    assert not list((tmp_path / "other").iterdir())


def test_files_of_another_tokenizer_are_removed(tiny, tmp_path):
    """They would change how the saved tokenizer reads, or stop it from loading."""
    stale = {
        "added_tokens.json": '{"[NEW]": 3}',
        "special_tokens_map.json": '{"bos_token": "[NEW]", "cls_token": "[NEW]"}',
        "vocab.json": "{}",
        "merges.txt": "",
        "spiece.model": "",
    }
    qa = minibert.QuestionAnswerer.from_pretrained(tiny)
    for write in (save_tokenizer, save_reader):
        folder = tmp_path / write.__name__
        folder.mkdir()
        for name, text in {**stale, "notes.txt": "the user's"}.items():
            (folder / name).write_text(text)
        write(folder, tiny)
        assert contents(folder).keys() == WRITERS[write] | {"notes.txt"}
        minibert.Tokenizer.from_pretrained(folder)
    again = minibert.QuestionAnswerer.from_pretrained(folder)
    assert again.tokenizer.special_tokens == qa.tokenizer.special_tokens


def test_null_odds_of_another_evaluation_are_removed(tiny, tmp_path):
    """A threshold fitted on them would not fit the new predictions."""
    example = minibert.Example("1", "Who?", "Ada lit it.", (minibert.GoldAnswer("Ada", 0),))
    evaluate(tmp_path, tiny)
    minibert.evaluate(minibert.QuestionAnswerer.from_pretrained(tiny), [example], tmp_path)
    assert contents(tmp_path).keys() == WRITERS[evaluate] - {"null_odds.json"}


def test_an_error_of_another_file_names_this_file(tmp_path):
    """The folder is not to blame for it. An error without a name, as of a full disk, is its own."""
    absent = tmp_path / "source" / "vocab.txt"
    folder = tmp_path / "folder"
    for make in (lambda: None, folder.mkdir):
        make()
        with pytest.raises(minibert.InputError) as caught, complete_files(folder) as draft:
            shutil.copyfile(absent, draft / "vocab.txt")
        assert str(caught.value) == f"{absent}: No such file or directory"
        with pytest.raises(minibert.InputError) as caught, complete_files(folder) as draft:
            (draft / "no" / "vocab.txt").write_text("")
        assert str(caught.value).startswith(f"{folder}: cannot be written: No such file")


def test_an_error_of_a_benchmark_is_its_own(tmp_path):
    """It is not an error of the report's folder, and the old report stays."""
    report = tmp_path / "report.json"
    report.write_text("old")

    def measure() -> dict[str, Any]:
        assert contents(tmp_path) == {"report.json": b"old"}  # no draft lies here for minutes
        raise BrokenPipeError("a measured process has ended")

    with pytest.raises(BrokenPipeError, match="a measured process"):
        write_report(measure, report)
    (tmp_path / "file").write_text("")
    with pytest.raises(minibert.InputError, match="file: cannot be a folder"):
        write_report(measure, tmp_path / "file" / "report.json")
    assert report.read_text() == "old"


def test_a_folder_in_the_place_of_a_file_is_not_moved_away(tiny, tmp_path):
    (tmp_path / "config.json").mkdir()
    (tmp_path / "config.json" / "notes.txt").write_text("the user's")
    (tmp_path / "model.safetensors").write_text("old")
    with pytest.raises(minibert.InputError, match="cannot be written"):
        save_reader(tmp_path, tiny)
    assert (tmp_path / "config.json" / "notes.txt").read_text() == "the user's"
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert (tmp_path / "model.safetensors").read_text() == "old"


def test_a_folder_that_cannot_be_made_is_one_line(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    for write in WRITERS:
        with pytest.raises(minibert.MinibertError) as caught:
            write(tmp_path / "file" / "folder", tiny)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_new_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    with complete_files(tmp_path) as draft:
        (draft / "ours").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@needs_signals
def test_a_killed_writer_leaves_the_old_files(tmp_path):
    """SIGKILL comes while a file is half written."""
    (tmp_path / "a").write_text("old")
    program = """
import os, sys
from pathlib import Path
from minibert.files import complete_files
with complete_files(Path(sys.argv[1])) as draft:
    (draft / "a").write_text("new")
    os.kill(os.getpid(), int(sys.argv[2]))
"""
    command = [sys.executable, "-c", program, str(tmp_path), str(int(signal.SIGKILL))]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_text() == "old"
    with complete_files(tmp_path) as draft:
        (draft / "a").write_text("new")
    assert (tmp_path / "a").read_text() == "new"


def test_a_saved_reader_gives_the_same_answers(tiny, tmp_path):
    """Model and tokenizer together; also from bfloat16 and the fused kernels."""
    for precision in ("fp32", "bf16"):
        qa = minibert.QuestionAnswerer.from_pretrained(tiny, precision=precision)
        qa.save_pretrained(tmp_path / precision)
        again = minibert.QuestionAnswerer.from_pretrained(tmp_path / precision, precision=precision)
        asked = ("Who lit it?", "Ada lit the lamp of the old tower.")
        assert again(*asked, top_k=5) == qa(*asked, top_k=5)


def test_training_over_a_model_leaves_its_reader_alone(tiny, tmp_path):
    """The reader's mapped weights give the same answers after the folder has new weights."""
    folder = tmp_path / "model"
    minibert.QuestionAnswerer.from_pretrained(tiny).save_pretrained(folder)
    qa = minibert.QuestionAnswerer.from_pretrained(folder, precision="fp32")
    asked = ("Who lit it?", "Ada lit the lamp of the old tower.")
    before = qa(*asked, top_k=5)
    minibert.QuestionAnswerer.from_pretrained(BUNDLED).save_pretrained(folder)
    assert qa(*asked, top_k=5) == before
