"""Files appear when they are complete: open old files stay as they are, errors change nothing."""

import contextlib
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from machine import needs_signals

import minibert
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
