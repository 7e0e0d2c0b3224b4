"""The commands that answer, `demo` and `answer`, and that explain: `explain`, `serve`, `site`."""

import json
import webbrowser
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from typer import Option, echo

from ..answers import Answer
from ..data.examples import validated_example
from ..data.formats import decoded
from ..engine import CHUNK_CHARACTERS
from ..errors import InputError
from ..explain.site import load, write_file, write_folder
from ..features import prepare_features
from ..files import make_folder
from ..passages import PassageAnswer
from ..reader import QuestionAnswerer
from ..settings import AnswerSettings
from .joining import join_parts
from .lines import Shard, answer_file, file_errors, open_lines, passages_of, require_new
from .options import READER, ReaderOptions, with_settings
from .printing import progress_bars, table


@with_settings()
def demo(*, reader: ReaderOptions) -> None:
    """Answer the demo's questions.

    For one question, it shows the ten best answers.
    """
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


QUESTION = Option(None, help="The question.")
CONTEXT = Option(None, help="The text to search, itself.")
CONTEXT_FILE = Option(None, help="A file with the text to search; - is standard input.")


@with_settings(leave_out=["align_to_words"])
def answer(
    *,
    question: str | None = QUESTION,
    context: str | None = CONTEXT,
    context_file: Path | None = CONTEXT_FILE,
    passages: Path | None = Option(
        None, help="Many texts to search: JSON lines, CSV or TSV; - is standard input."
    ),
    input_file: Path | None = Option(
        None, "--input", help="Many questions: JSON lines, CSV or TSV; - is standard input."
    ),
    output: Path | None = Option(
        None, help="A new file for the answers to --input.", show_default="standard output"
    ),
    resume: bool = Option(False, "--resume", help="Continue the stopped job that wrote --output."),
    shard: str | None = Option(
        None,
        metavar="K/N",
        help="Answer only every N-th question of --input, from number K on.",
        show_default="all questions",
    ),
    join: list[Path] = Option(
        [],
        metavar="PART...",
        help="The outputs of all shards: put their lines in order.",
        show_default="none",
    ),
    as_json: bool = Option(False, "--json", help="Print a JSON list instead of a table."),
    settings: AnswerSettings,
    reader: ReaderOptions,
) -> None:
    """Answer a question from a text.

    The answer is a part of the text, with its score and its place. Give --question and one of
    --context, --context-file and --passages; or give --input; or give --join.

    Many questions: each line of --input is a JSON object with "question" and "context", or a row of
    a table with these columns. The output has one JSON object per question, in the same order, with
    all fields of the input and one more. This is "prediction", an object with the answer, its
    score, start and end; if --top-k is above 1, it is "predictions", a list of such objects. The
    answers are written to OUTPUT.partial, which gets the name OUTPUT when all questions are
    answered. If the job stops earlier, the same command with --resume continues it.

    Many machines: --shard 3/8 answers the questions 3, 11, 19, ... of --input. The file
    OUTPUT.partial.json stays next to the output. It says what the output is a part of. `minibert
    answer --join PART... --output ALL` puts the lines of all parts in order.

    One question, many texts: each line of --passages is a JSON string, a JSON object with
    "context", or a row of a table with this column. All answers are ranked together, always
    including "no answer". The column "passage" is the number of the text, counted from 0.
    """
    if output is not None:
        make_folder(output.parent)  # before the long work
        if join:
            join_parts(join, output)
            return
    if input_file is not None:
        part = None if shard is None else Shard.parsed(shard)
        answer_file(reader.load(), input_file, output, resume, settings, part)
        return
    question = question or ""
    answers: Sequence[Answer]
    if passages is not None:
        qa = reader.load()
        # lines are read when they are needed
        with open_lines(passages) as lines, progress_bars({"windows": None}) as (on_batch,):
            limits = settings.top_k, settings.max_answer_len
            answers = qa.best_of(question, passages_of(lines, str(passages)), *limits, on_batch)
    else:
        text = read_context(context, context_file)
        qa = reader.load()
        answers = ask(qa, question, text, settings)
    if as_json:
        rows = [
            a.to_dict() | ({"passage": a.passage} if isinstance(a, PassageAnswer) else {})
            for a in answers
        ]
        echo(json.dumps(rows, ensure_ascii=False))
    else:
        echo(table(answers))
    echo(qa.computes_with, err=True)  # at the end, because an error must be one line


def read_context(context: str | None, file: Path | None) -> str:
    """The text of --context, or of the file of --context-file, character for character."""
    if file is None:
        warn_of_a_file_name(context or "")
        return context or ""
    with open_lines(file) as lines:
        try:
            # not read_text, which turns "\r\n" into "\n" and so changes the offsets
            return decoded(b"".join(lines))
        except ValueError as error:
            raise InputError(f"{file}: not readable as text: {error}") from error


def warn_of_a_file_name(context: str) -> None:
    """Warn if a text is the name of a file: the user may have meant its content."""
    try:
        is_file = Path(context).is_file()
    except (OSError, ValueError):  # a text cannot be a path, for example because it is too long
        is_file = False
    if is_file:
        hint = "to search the text of this file, use --context-file"
        echo(f"warning: --context is the text {context!r} itself; {hint}", err=True)


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
    context: str | None = CONTEXT,
    context_file: Path | None = CONTEXT_FILE,
    output: Path = Option(..., help="The new HTML file."),
    open_page: bool = Option(False, "--open", help="Open the page in the browser."),
    attribution: bool = Option(True, help="Show which words matter most. This takes much longer."),
    settings: AnswerSettings,
    reader: ReaderOptions,
) -> None:
    """Show why an answer was chosen, in an HTML page.

    The page needs no other file and no network. Give --context or --context-file.
    """
    require_new(output)  # before the long work, as the next line
    make_folder(output.parent)
    text = read_context(context, context_file)
    qa = reader.load()
    with progress_bars({"windows": None}) as (advance,):
        explanation = qa.explain(
            *(question, text, settings.top_k, settings.max_answer_len, settings.no_answer),
            attribution=attribution,
            on_progress=lambda done, total: advance(0, completed=done, total=total),
        )
    with file_errors(output, "written"), output.open("x", encoding="utf-8") as file:  # a new file
        file.write(explanation.to_html())
    echo(table(explanation.answers))
    echo(f"{qa.computes_with}; the page is {output.resolve()}", err=True)
    if open_page:
        webbrowser.open(output.resolve().as_uri())


@with_settings()
def serve(
    *,
    host: str = Option(
        "127.0.0.1",
        help="The address to listen on. Other computers reach any other one, also 0.0.0.0, which "
        "is every address of this computer. Then --token is necessary.",
    ),
    port: int = Option(8123, min=0, max=65535, help="The port; 0 takes any free one."),
    token: str | None = Option(
        None,
        envvar="MINIBERT_TOKEN",
        help="Answer only requests with this token. Other users of this computer can see the "
        "options of a program, so the environment variable is safer.",
        show_default="none",
    ),
    page: bool = Option(True, help="Serve the page too, not only POST /question-answering."),
    browser: bool = Option(True, help="Open the page in the browser."),
    allow_host: list[str] = Option(
        [],
        help="Another address of this page, HOST or HOST:PORT, which a tunnel gives it. May be "
        "repeated.",
        show_default="none",
    ),
    reader: ReaderOptions,
) -> None:
    """Answer questions over HTTP: on a page in the browser, and for other programs.

    The page shows explanations. Programs send POST /question-answering, in the format of Hugging
    Face's task. Ctrl-C stops the server.

    Every program on this computer can ask, but other computers cannot, unless --host gives them an
    address. If you reach the page through a tunnel, such as `ssh -L 9000:127.0.0.1:8123 SERVER`,
    the browser uses another address than the server. Then --allow-host localhost:9000 is necessary.
    """
    try:
        from ..serve.guard import Access
        from ..serve.server import serve as serve_requests
    except ImportError as error:
        raise InputError(f"{error}; serve needs: pip install 'minibert-qa[serve]'") from error
    access = Access(host, port, tuple(allow_host), token)

    def ready(url: str) -> None:
        if access.is_open:
            who = "every computer that reaches this one and knows the token can ask"
            echo(f"{who}; texts and token are sent without encryption", err=True)
        echo(f"{url}  (Ctrl-C stops the server)")
        if browser and page:
            webbrowser.open(url)

    serve_requests(reader.load(), access, ready, page)


def site(
    output: Path | None = Option(None, help="The new folder.", show_default="none"),
    single: Path | None = Option(None, help="The new HTML file.", show_default="none"),
    model: str = READER["model"],
    revision: str | None = READER["revision"],
) -> None:
    """Write the page with the model inside, as a website.

    The page answers questions by itself, in the browser. It needs no server program and no other
    website. Give --output or --single.

    --output writes a folder for any web server, for example `python -m http.server`. Its model has
    the weights in float16. --single writes one file, which opens by double click. It has the
    weights in 8-bit integers, so a few answers differ.
    """
    write, target = (write_file, single) if output is None else (write_folder, output)
    assert target is not None  # see RULES
    require_new(target)  # these two lines come before the long work
    make_folder(target.parent)
    write(target, load(model, revision))
    echo(f"the page is {target.resolve()}", err=True)
