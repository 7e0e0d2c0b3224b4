"""Files that appear whole, or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import InputError

UNFINISHED = ".unfinished-"  # what the names of drafts begin with; a killed process leaves its own


@contextmanager
def complete_files(folder: str | Path) -> Iterator[Path]:
    """An empty folder, the draft: what the block writes there moves to `folder` at its end.

    Until every file is whole and on the disk, nothing in `folder` changes; when the block raises,
    nothing does. A file that is replaced stays what it was for whoever has it open, or mapped into
    memory, as a reader may have its weights. Makes `folder`; raises `InputError` where that, or a
    file in it, cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as name:
            draft = Path(name)
            yield draft
            files = sorted(draft.iterdir())
            for path in files:
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            for path in files:
                path.replace(folder / path.name)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{folder}: cannot be written: {reason}") from error


def make_folder(path: str | Path) -> Path:
    """A folder to write to, made if need be. Raises `InputError` where it cannot be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # can anything be written there?
    except OSError as error:
        raise InputError(f"{folder}: cannot be a folder to write to: {error}") from error
    return folder
