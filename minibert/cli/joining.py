"""Parts of a file's answers, each made by `answer --shard`, in; all answers in order out."""

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import complete_files, only_job
from ..identity import differences
from .lines import Shard, about_file, open_lines, read_about, require_new


def join_parts(paths: Sequence[Path], output: Path) -> None:
    """Write the lines of all parts of one file to a new file, in the order of their questions.

    Lines are copied one by one, so the memory in use does not grow with their number. Raises
    `InputError` if parts are missing, doubled, incomplete or of different jobs.
    """
    require_new(output)
    parts, questions = parts_of_one_job(paths)
    with only_job(output), complete_files(output.parent) as draft, ExitStack() as stack:
        files = [stack.enter_context(open_lines(path)) for path in parts]
        with (draft / output.name).open("xb") as joined:
            for path, file in islice(cycle(zip(parts, files, strict=True)), questions):
                line = file.readline()
                if not line.endswith(b"\n"):
                    raise InputError(f"{path}: incomplete, lines at its end are missing")
                joined.write(line)
        for path, file in zip(parts, files, strict=True):
            if file.read(1):
                raise InputError(f"{path}: more lines than its shard has")
        require_new(output)


def parts_of_one_job(paths: Sequence[Path]) -> tuple[list[Path], int]:
    """The parts in the order of their shards, and the number of all questions."""
    jobs = {path: made_by(path) for path in paths}
    first, job = next(iter(jobs.items()))
    parts: dict[int, Path] = {}
    for path in paths:
        if changed := differences(job, jobs[path], ignored=["shard"]):
            what = "; ".join(changed.values())
            raise InputError(f"{path}: not a part of the same job as {first}: {what}")
        shard = Shard(jobs[path]["shard"], jobs[path]["shards"])
        if shard.shard in parts:
            raise InputError(f"{parts[shard.shard]} and {path}: both are shard {shard}")
        parts[shard.shard] = path
    shards = range(1, job["shards"] + 1)
    missing = [str(Shard(shard, len(shards))) for shard in shards if shard not in parts]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise InputError(f"missing: shard {missing[0]}{others}")
    return [parts[shard] for shard in shards], job["questions"]


def made_by(path: Path) -> dict[str, Any]:
    """Which shard a part is, and what it was made by. Raises `InputError`."""
    if not path.exists() and path.with_name(f"{path.name}.partial").exists():
        raise InputError(f"{path}: incomplete: --resume continues the job that writes it")
    about = about_file(path)
    if path.exists() and not about.exists():
        raise InputError(f"{path}: not a part that --shard wrote: {about.name} is missing")
    with open_lines(path):  # an error now is better than one after the copying has begun
        job = read_about(about)
    match [job.get(name) for name in ("shard", "shards", "questions")]:
        case [int(shard), int(shards), int()] if 1 <= shard <= shards:
            return job
    raise InputError(f"{about}: not about a part that --shard wrote")
