"""The commands that answer, `demo` and `answer`, and that explain, `explain` and `serve`."""

import json
import webbrowser
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from typer import Option, echo

from ..answers import Answer
from ..data.examples import validated_example
from ..engine import CHUNK_CHARACTERS
from ..errors import InputError
from ..features import prepare_features
from ..passages import PassageAnswer
from ..reader import QuestionAnswerer
from ..settings import AnswerSettings
from .lines import answer_file, file_errors, open_lines, passages_of, require_new
from .options import ReaderOptions, with_settings
from .printing import progress_bars, table


@with_settings()
def demo(*, reader: ReaderOptions) -> None:
    """Answer the demo's questions, and show the ten best answers to one question."""
    qa = reader.load()
    for passage in demo_passages():
        echo(passage["context"])
        top_k = passage["top_k"]
        for question in passage["questions"]:
            echo(question if top_k == 1 else f"{question} (the {top_k} best spans)")
            echo(table(ask(qa, question, passage["context"], AnswerSettings(top_k))))


def demo_passages() -> list[dict[str, Any]]:
    """The demo's passages, each with its source, its questions and how many answers to show."""
    text = Path(__file__).with_name("demo.json").read_text(encoding="utf-8")
    passages: list[dict[str, Any]] = json.loads(text)["passages"]
    return passages


@with_settings(leave_out=["align_to_words"])
def answer(
    *,
    question: str | None = Option(None, help="The question."),
    context: str | None = Option(None, help="The text to search."),
    context_file: Path | None = Option(None, help="A file with the text to search."),
    passages: Path | None = Option(None, help="JSON lines of texts to search; - is stdin."),
    input_file: Path | None = Option(None, "--input", help="JSON lines of questions; - is stdin."),
    output: Path | None = Option(
        None, help="A new file for the answers to --input.", show_default="stdout"
    ),
    resume: bool = Option(False, "--resume", help="Continue the stopped job that wrote --output."),
    as_json: bool = Option(False, "--json", help="Print a JSON list instead of a table."),
    settings: AnswerSettings,
    reader: ReaderOptions,
) -> None:
    """Answer a question from a text. The answer is a part of the text, with its score and place.

    Many questions: each line of --input is a JSON object with "question" and "context". The output
    is the same objects in the same order, each with one more field. This is "prediction", an object
    with the answer, its score, start and end; if --top-k is above 1, it is "predictions", a list of
    such objects. The answers are written to OUTPUT.partial, which gets the name OUTPUT when all
    questions are answered. If the job stops earlier, the same command with --resume continues it.

    One question, many texts: each line of --passages is a JSON string, or an object with "context".
    All answers are ranked together, always including "no answer". The column "passage" is the
    number of the text, counted from 0.
    """
    if input_file is not None:
        if any(given is not None for given in (question, context, context_file, passages)):
            raise InputError("--input excludes --question, --context, --context-file, --passages")
        answer_file(reader.load(), input_file, output, resume, settings)
        return
    if output is not None or resume:
        raise InputError("--output and --resume need --input")
    if question is None:
        raise InputError("give --question, or --input")
    if sum(given is not None for given in (context, context_file, passages)) != 1:
        raise InputError("give one of --context, --context-file and --passages")
    if passages is not None and (settings.no_answer or settings.text_score):
        reason = '("no answer" always competes there) and no --text-score'
        raise InputError(f"--passages has no --no-answer {reason}")
    if context_file is not None:
        context = read_text(context_file)
    qa = reader.load()
    answers: Sequence[Answer]
    if passages is not None:
        # lines are read when they are needed
        with open_lines(passages) as lines, progress_bars({"windows": None}) as (on_batch,):
            limits = settings.top_k, settings.max_answer_len
            answers = qa.best_of(question, passages_of(lines, str(passages)), *limits, on_batch)
    else:
        answers = ask(qa, question, context or "", settings)
    if as_json:
        rows = [
            a.to_dict() | ({"passage": a.passage} if isinstance(a, PassageAnswer) else {})
            for a in answers
        ]
        echo(json.dumps(rows, ensure_ascii=False))
    else:
        echo(table(answers))
    echo(qa.computes_with, err=True)  # at the end, because an error must be one line


def read_text(path: Path) -> str:
    """The text of a file. Each character keeps its offset in the file."""
    try:
        # not read_text, which turns "\r\n" into "\n" and so changes the offsets
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as text: {error}") from error


def ask(
    qa: QuestionAnswerer, question: str, context: str, settings: AnswerSettings
) -> list[Answer]:
    """The best answers. A long text has a progress bar."""
    example = validated_example("", question, context)
    total = 0
    if len(context) > CHUNK_CHARACTERS // 16:  # cutting the windows twice is 1 % of the work
        total = len(prepare_features([example], qa.tokenizer, **asdict(qa.window_settings)))
    with progress_bars({"windows": total}, shown=total > 0) as (on_batch,):
        return next(qa.answer_examples([example], settings, on_batch))[: settings.top_k]


@with_settings(leave_out=["align_to_words", "text_score"], top_k=10)
def explain(
    *,
    question: str = Option(..., help="The question."),
    context_file: Path = Option(..., help="A file with the text to search."),
    output: Path = Option(..., help="The new HTML file."),
    attribution: bool = Option(True, help="Show which words matter most. This takes much longer."),
    settings: AnswerSettings,
    reader: ReaderOptions,
) -> None:
    """Show why an answer was chosen, in one HTML page that needs no other file."""
    context = read_text(context_file)
    require_new(output)  # before the long work
    qa = reader.load()
    with progress_bars({"windows": None}) as (advance,):
        explanation = qa.explain(
            *(question, context, settings.top_k, settings.max_answer_len, settings.no_answer),
            attribution=attribution,
            on_progress=lambda done, total: advance(0, completed=done, total=total),
        )
    with file_errors(output, "written"), output.open("x", encoding="utf-8") as file:  # a new file
        file.write(explanation.to_html())
    echo(table(explanation.answers))


@with_settings()
def serve(
    *,
    port: int = Option(8123, min=0, max=65535, help="The page's port; 0 takes any free one."),
    browser: bool = Option(True, help="Open the page in the browser."),
    reader: ReaderOptions,
) -> None:
    """Open a page in the browser to ask questions and see why each answer was chosen.

    Only this computer can open the page. Ctrl-C stops the server.
    """
    try:
        from ..explain.server import serve as serve_page
    except ImportError as error:
        raise InputError(f"{error}; serve needs: pip install 'minibert-qa[serve]'") from error

    def ready(url: str) -> None:
        echo(f"{url}  (Ctrl-C stops the server)")
        if browser:
            webbrowser.open(url)

    serve_page(reader.load(), port, ready)
