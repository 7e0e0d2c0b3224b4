"""Files that appear only when they are complete; and folders to write to, for one job at a time."""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .errors import InputError

UNFINISHED = ".unfinished-"  # the prefix of draft folders; a killed process leaves its draft


@contextmanager
def complete_files(folder: str | Path, replaces: Collection[str] = ()) -> Iterator[Path]:
    """Give the `with` block an empty draft folder. When it ends, the files move to `folder`.

    A new `folder` appears in one step, with all its files and subfolders. In a folder that exists,
    which gets no subfolders, one file
    replaces an old one in one step. Several files are never mixed with their old versions: see
    `exchange`. `replaces` names more old files to remove, which do not fit the new ones. All other
    files in the folder stay. A program that has an old file open, or mapped into memory as a
    model's weights are, still sees the old content.

    Files move only after every file is completely written to the disk, so an error in the block
    changes nothing. The block should do nothing but write: an error without a file name counts as
    an error of `folder`. Raises `InputError` when the folder or a file cannot be written.
    """
    folder = Path(folder)
    home = make_folder(folder if folder.exists() else folder.parent)
    with write_errors(folder, home):
        work = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=home))
    draft, old = work / "new", work / "old"
    try:
        with write_errors(folder, work):
            draft.mkdir()  # has the usual permissions, unlike `work`
            yield draft
            for path in filter(Path.is_file, draft.rglob("*")):
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            if folder.exists():
                exchange(draft, folder, old, replaces)
            else:
                draft.replace(folder)
    finally:
        if not old.exists():  # otherwise it has the only copies of old files
            shutil.rmtree(work, ignore_errors=True)


def exchange(draft: Path, folder: Path, old: Path, replaces: Collection[str]) -> None:
    """Move the draft's files to `folder`, and those that they replace to `old`, which is removed.

    All old files leave before the first new file enters, so old and new files are never together.
    An error or Ctrl-C on the way brings the old files back. After a kill, some files are missing:
    `config.json` is the first to leave and enters after `model.safetensors`, so half a model is not
    loaded. The missing files are then in `draft` and `old`.
    """
    names = sorted(path.name for path in draft.iterdir())
    leaving = [n for n in dict.fromkeys([*names, *replaces]) if (folder / n).is_file()]
    if len({*names, *leaving}) == 1:
        (draft / names[0]).replace(folder / names[0])
        return
    old.mkdir()
    try:
        for name in leaving:
            (folder / name).replace(old / name)
        for name in reversed(names):
            (draft / name).replace(folder / name)
    except BaseException:
        for name in names:
            if not (draft / name).exists():
                (folder / name).rename(draft / name)
        for name in leaving:
            if (old / name).exists():
                (old / name).rename(folder / name)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def write_errors(target: Path, draft: Path | None = None) -> Iterator[None]:
    """Turn the `OSError` of a block that writes a file or folder into an `InputError`.

    `draft` is where the block writes before `target` appears. The message names `target`. But if
    the error names a file in another place, the message names this file.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        name = getattr(error, "filename", None)
        places = (target, draft or target)
        if isinstance(name, str) and not any(map(Path(name).is_relative_to, places)):
            raise InputError(f"{name}: {reason}") from error
        raise InputError(f"{target}: cannot be written: {reason}") from error


@contextmanager
def only_job(target: Path) -> Iterator[None]:
    """Lock a file or folder that a job writes, for the time of the block.

    The lock is a file, `target.lock` or `target/.lock`. Only a living process can hold it, so a
    killed job needs no repair. Raises `InputError` if another job holds it, or if it cannot be
    written.
    """
    path = target / ".lock" if target.is_dir() else target.with_name(f"{target.name}.lock")
    lock = FileLock(path)
    with write_errors(target, path):
        path.touch()  # fails where the folder is missing, which `FileLock` would make
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"{target}: another job is writing here; wait until it ends, or choose another "
                "output"
            ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file, but there filelock does so itself
            path.unlink()
        lock.release()


def make_folder(path: str | Path) -> Path:
    """A folder to write to, created if necessary. Raises `InputError` when this is impossible."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be a folder: {error.strerror}") from error
    with write_errors(folder):
        tempfile.TemporaryFile(dir=folder).close()  # a test: is the folder writable?
    return folder
