"""Files that appear only when they are complete; and folders to write to."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import InputError

UNFINISHED = ".unfinished-"  # the prefix of draft folders; a killed process leaves its draft


@contextmanager
def complete_files(folder: str | Path) -> Iterator[Path]:
    """Give the `with` block an empty draft folder. When it ends, the files move to `folder`.

    Files move only after every file is completely written to the disk, so an error in the block
    changes no file. They move one after the other, and each replaces the old file in one step. An
    interruption between two moves can leave some new files and some old ones. A program that has an
    old file open, or mapped into memory as a model's weights are, still sees the old content.
    Creates `folder`. Raises `InputError` when the folder or a file cannot be written.
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
    """A folder to write to, created if necessary. Raises `InputError` when this is impossible."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # a test: is the folder writable?
    except OSError as error:
        raise InputError(f"{folder}: cannot be a folder to write to: {error}") from error
    return folder
