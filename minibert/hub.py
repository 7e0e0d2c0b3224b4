"""Folder or hub id -> the path of one file, at one commit; and the checks that every file needs."""

import json
import re
from pathlib import Path
from typing import Any

from .errors import PretrainedError, first_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
COMMIT = re.compile(r"[0-9a-f]{40}")

# Every repository that minibert can read has at least one of these files.
FIRST_FILES = ("config.json", "tokenizer.json", "vocab.txt", "vocab.json")


def pinned(source: str | Path, revision: str | None = None) -> str | None:
    """The commit that a hub id's `revision` has now; None for a folder. Raises as `find_file` does.

    Call this once before loading, and pass the result on as the `revision` of every file. Then all
    files come from one commit, even if someone pushes a new commit in the meantime. The hub's
    client stores a file in a folder named after its commit, so the first file tells the commit. If
    there is no such file, the result is the `revision` itself.
    """
    paths = (find_file(source, name, revision) for name in FIRST_FILES)
    path = next((path for path in paths if path is not None), None)
    if path is None or Path(source).is_dir() or not COMMIT.fullmatch(path.parent.name):
        return revision
    return path.parent.name


def find_file(source: str | Path, name: str, revision: str | None = None) -> Path | None:
    """The path of one file of a folder or hub id; None when there is no such file.

    `revision` is the hub id's branch, tag or commit; None is its main branch. Files from the hub
    are downloaded into its cache. Raises `PretrainedError` when `source` is neither a folder nor
    shaped like a hub id, for a folder with a revision, and when the hub refuses or is unreachable.
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise PretrainedError(f"{source}: a folder; revision={revision!r} is for a hub id")
        return folder / name if (folder / name).is_file() else None
    if folder.exists():
        raise PretrainedError(f"{source}: a file; expected a folder or a hub id")
    if not HUB_ID.fullmatch(str(source)):
        raise PretrainedError(f"{source}: neither a folder nor a hub id such as 'owner/name'")
    return _find_on_hub(str(source), name, revision)


def _find_on_hub(hub_id: str, name: str, revision: str | None) -> Path | None:
    # Imported here, because a local folder needs no network library.
    from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, name, revision=revision))
    except Exception as error:  # the client raises many types: no repository, no access, no network
        absent = isinstance(error, EntryNotFoundError)
        if isinstance(error, LocalEntryNotFoundError):
            # The file is not in the cache, and the hub was not asked. It counts as absent if the
            # user wants no network, or if the hub said so before. Otherwise we do not know.
            cached = try_to_load_from_cache(hub_id, name, revision=revision)
            absent = cached is _CACHED_NO_EXIST or constants.HF_HUB_OFFLINE
        if absent:
            return None
        raise PretrainedError(
            f"{with_revision(hub_id, revision)}: no folder has this name, and the hub gives "
            f"no {name}: {first_line(error)}"
        ) from error


def with_revision(source: str | Path, revision: str | None) -> str:
    return str(source) if revision is None else f"{source}, revision {revision}"


def require_file(source: str | Path, name: str, revision: str | None = None) -> Path:
    """`find_file`, but raises `PretrainedError` when there is no such file."""
    path = find_file(source, name, revision)
    if path is None:
        where = "in this folder" if Path(source).is_dir() else "on the hub, or in its cache"
        raise PretrainedError(f"{with_revision(source, revision)}: no {name} {where}")
    return path


def refuse_pointer(path: Path) -> None:
    """Raise `PretrainedError` for a Git LFS pointer: Git leaves one for a file not yet fetched."""
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs.github.com/spec"):
            raise PretrainedError(f"{path}: a Git LFS pointer, not the file: git lfs pull gets it")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `PretrainedError` when the file holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PretrainedError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise PretrainedError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value
