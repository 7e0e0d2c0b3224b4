"""JSON lines of questions in, the same lines with their answers out; a job that stops can go on."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..data.examples import Example, validated_example
from ..errors import InputError
from ..identity import differences, tensors_digest
from ..reader import QuestionAnswerer
from ..settings import AnswerSettings


@dataclass(frozen=True)
class LineSettings:
    """How the questions of a file are answered: as `QuestionAnswerer.answer_examples` does it."""

    top_k: int = 1
    max_answer_len: int = 30
    no_answer: bool = False
    text_score: bool = False

    @property
    def key(self) -> str:
        """The name under which a line gets its answer, or its answers."""
        return "prediction" if self.top_k == 1 else "predictions"


def answer_lines(
    qa: QuestionAnswerer,
    lines: Iterable[bytes],
    source: str,
    written: BinaryIO,
    settings: LineSettings,
    answered: Iterable[bytes] = (),
    on_line: Callable[[], None] = lambda: None,
    on_batch: Callable[[int], None] = lambda windows: None,
) -> None:
    """Write each line, a JSON object with question and context, with its answer at the end.

    Lines come back in their order, character for character but for white space around them; the
    answer is one more field, `settings.key`. Blank lines are left out. Each line is written and
    flushed as soon as its answer is there. Memory does not grow with the number of lines. The first
    lines may be `answered` already, by the same settings: these are compared, and not read again.

    Raises `InputError` naming the line (`source` and its number), after the answers to those before
    it.
    """
    opened = questions(lines, source, settings.key)
    for line in answered:
        example, beginning = next(opened, (None, ""))
        if example is None or not line.startswith(beginning.encode()):
            where = source if example is None else example.id
            raise InputError(f"{where}: not the input that the answers so far are to")
        on_line()
    waiting: deque[str] = deque()  # beginnings of lines that are read, and not yet answered

    def examples() -> Iterator[Example]:
        for example, beginning in opened:
            waiting.append(beginning)
            yield example

    wanted = AnswerSettings(
        settings.top_k, settings.max_answer_len, settings.no_answer, text_score=settings.text_score
    )
    n_best = qa.answer_examples(examples(), wanted, on_batch)
    for answers in n_best:
        rows = [answer.to_dict() for answer in answers[: settings.top_k]]
        value = json.dumps(rows[0] if settings.top_k == 1 else rows, ensure_ascii=False)
        written.write(f"{waiting.popleft()}{value}}}\n".encode())
        written.flush()
        on_line()


def questions(lines: Iterable[bytes], source: str, key: str) -> Iterator[tuple[Example, str]]:
    """Each line as an example, and how the line that answers it begins: `{..., "key": `."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = f"{source}: line {number}"
        try:
            text = line.decode("utf-8-sig").strip()
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name}: not readable as JSON: {error}") from error
        if not isinstance(record, dict) or not {"question", "context"} <= record.keys():
            raise InputError(f"{name}: expected an object with 'question' and 'context'")
        if key in record:
            raise InputError(f"{name}: its {key!r} is where the answer goes: rename that field")
        example = validated_example(name, record["question"], record["context"])
        # the text as it came: numbers and names of the other fields keep their spelling
        yield example, f'{text[:-1].rstrip()}, "{key}": '


def identity(qa: QuestionAnswerer, settings: LineSettings) -> dict[str, Any]:
    """All that the answers to a question depend on."""
    return {
        "model": tensors_digest(qa.model.state_dict(), qa.tokenizer.backend.to_str()),
        **asdict(qa.window_settings),
        "precision": qa.precision,
        **asdict(qa.calibration),
        **asdict(settings),
    }


@contextmanager
def partial_file(path: Path, made_by: dict[str, Any], resume: bool) -> Iterator[BinaryIO]:
    """A file to append answers to, which gets its name `path` when the block ends without error.

    Until then it is `path` + ".partial", with `made_by` in ".partial.json" beside it. With `resume`
    it goes on with what a stopped job left there, cut after its last whole line, and begins anew
    where there is nothing. The file stands at its beginning, to be read first.

    Raises `InputError` when `path` exists, when a stopped job's answers do and `resume` is not
    asked for, when `made_by` differs from theirs, and where nothing can be written.
    """
    partial, about = (path.with_name(f"{path.name}.partial{end}") for end in ("", ".json"))
    try:
        if path.exists():
            raise FileExistsError(0, "File exists", str(path))
        if not partial.exists():
            about.write_text(json.dumps(made_by, indent=1) + "\n", encoding="utf-8")
        elif not resume:
            raise InputError(
                f"{partial}: holds the answers of a job that was stopped: --resume goes on with it"
            )
        else:
            require_same_job(partial, json.loads(about.read_text(encoding="utf-8")), made_by)
        file = partial.open("a+b")
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be opened: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{about}: not readable as JSON: {error}") from error
    try:
        with file:
            file.seek(0)
            file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))
            file.seek(0)
            yield file
        if path.exists():
            raise FileExistsError(0, "File exists", str(path))
        partial.rename(path)
        about.unlink()
    except OSError as error:
        raise InputError(f"{partial}: cannot be written: {error.strerror}") from error


def require_same_job(partial: Path, was: Any, now: dict[str, Any]) -> None:
    """Raises `InputError` for a difference that would give other answers."""
    changed = differences(was if isinstance(was, dict) else {}, now)
    if changed:
        raise InputError(f"{partial}: not the job to resume: {'; '.join(changed.values())}")
