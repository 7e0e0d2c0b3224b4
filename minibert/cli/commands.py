"""The command line: `minibert` demo, answer, explain, serve, show, check-data, train, evaluate,
calibrate, bench, inspect."""

import codecs
import io
import json
import os
import random
import signal
import sys
import warnings
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, BinaryIO, cast

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typer.core import TyperGroup

from ..answers import Answer
from ..bench.answering import bench_answer
from ..bench.doubt import bench_doubt
from ..bench.parity import TOLERANCE, first_divergence, parity
from ..bench.parts import bench_parts
from ..bench.training import bench_train
from ..bench.turns import table_of
from ..config import Attention
from ..data.examples import load_squad, validated_example
from ..data.negatives import make_negatives, negatives_report
from ..engine import CHUNK_CHARACTERS
from ..errors import DataError, InputError, Interrupted, MinibertError, report_lines
from ..fast.memory import keep_freed_memory
from ..fast.processor import Precision
from ..features import data_report, has_outer_white_space, prepare_features
from ..files import complete_files, make_folder
from ..passages import PassageAnswer
from ..pretrained import empty_model, map_tensors, read_config, read_tensors
from ..qa import BertForQuestionAnswering
from ..reader import (
    BUNDLED,
    QuestionAnswerer,
    stored_calibration,
)
from ..scoring.calibration import calibrate, require_empty, save_calibrated
from ..scoring.evaluation import evaluate
from ..settings import AnswerSettings
from ..tokenization import Tokenizer
from ..training.config import TrainingConfig
from ..training.finetune import train
from ..training.masked_lm import adapt
from .lines import LineSettings, answer_lines, identity, partial_file

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)

CLOSED_PIPE = 141  # 128 + SIGPIPE, as shells report it


class Commands(TyperGroup):
    """The commands; one whose output is no longer read ends quietly, as others do."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # what is left in the buffer has nowhere to go, also when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(CLOSED_PIPE)


app = typer.Typer(
    cls=Commands,
    help="BERT for question answering, by hand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

bench = typer.Typer(help="minibert beside others, by turns.", no_args_is_help=True)
app.add_typer(bench, name="bench")

Model = Annotated[str, typer.Option(help="Folder or hub id.", show_default="the bundled one")]
Revision = Annotated[str | None, typer.Option(help="The hub id's branch, tag or commit.")]
Negatives = Annotated[
    float, typer.Option(help="Share of the questions to ask also of a text without the answer.")
]
DocStride = Annotated[int | None, typer.Option(help="Tokens that two windows share.")]
PrecisionName = Annotated[str, typer.Option("--precision", help="auto, fp32, bf16 or int8")]
TrainingPrecision = Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]


def main() -> None:
    """Run the command line; a `MinibertError` is one line on stderr and its `exit_code`."""
    keep_freed_memory()
    write_any_character(sys.stdout)
    warnings.showwarning = lambda message, *place: typer.echo(f"warning: {message}", err=True)
    # the hub's client otherwise announces each of its retries above our one line
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        app()
    except MinibertError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(error.exit_code)


def write_any_character(stream: Any) -> None:
    """Have a stream escape, as JSON does, what its encoding lacks, instead of failing.

    On Windows the output of a command into a file or a pipe is often in cp1252, which has no emoji.
    JSON stays JSON: its text outside of strings is ASCII.
    """

    def escape(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)  # an output is not decoded
        return json.dumps(error.object[error.start : error.end])[1:-1], error.end

    codecs.register_error("json_escape", escape)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="json_escape")


@app.command()
def demo(model: Model = str(BUNDLED), revision: Revision = None) -> None:
    """Answer the demo's questions, and show the runners-up of one."""
    qa = QuestionAnswerer.from_pretrained(model, revision=revision)
    for passage in demo_passages():
        typer.echo(passage["context"])
        top_k = passage["top_k"]
        for question in passage["questions"]:
            typer.echo(question if top_k == 1 else f"{question} (the {top_k} best spans)")
            typer.echo(table(ask(qa, question, passage["context"], top_k)))


def demo_passages() -> list[dict[str, Any]]:
    """The demo's passages, each with its source, its questions and how many answers to show."""
    text = Path(__file__).with_name("demo.json").read_text(encoding="utf-8")
    passages: list[dict[str, Any]] = json.loads(text)["passages"]
    return passages


@app.command()
def answer(
    question: Annotated[str | None, typer.Option(help="The question.")] = None,
    context: Annotated[str | None, typer.Option(help="The text to search.")] = None,
    context_file: Annotated[Path | None, typer.Option(help="A file with that text.")] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", help="JSON lines of question and context; - is standard input."),
    ] = None,
    passages: Annotated[
        Path | None,
        typer.Option(help="JSON lines: strings, or objects with context; - is standard input."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where --input's answers go.")] = None,
    model: Model = str(BUNDLED),
    revision: Revision = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many answers.")] = 1,
    max_answer_len: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 30,
    no_answer: Annotated[bool, typer.Option("--no-answer", help='"" may be the answer.')] = False,
    text_score: Annotated[
        bool, typer.Option("--text-score", help="Also how likely the text is, wherever it stands.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --output's answers.")
    ] = False,
    precision: PrecisionName = "auto",
    device: Device = "cpu",
) -> None:
    """Answer a question from a text: the text's own words, where they stand, and how sure.

    Or many: each line of --input is a JSON object with question and context; the same object comes
    back, in the same order, with one more field, "prediction": its answer, score, start and end
    (with --top-k, "predictions": a list of them). --output gets its name when all are answered;
    until then it is NAME.partial, which the same command with --resume goes on with.

    Or one question from many texts: each line of --passages is one. Their answers are ranked
    together, "no answer" among them, and passage counts the texts from 0.
    """
    if input_file is not None:
        if any(given is not None for given in (question, context, context_file, passages)):
            raise InputError("--input has its own questions and contexts")
        qa = load_reader(model, revision, precision, device)
        settings = LineSettings(top_k, max_answer_len, no_answer, text_score)
        answer_file(qa, input_file, output, resume, settings)
        return
    if output is not None or resume:
        raise InputError("--output and --resume are for --input")
    if question is None:
        raise InputError("give --question, or --input")
    if sum(given is not None for given in (context, context_file, passages)) != 1:
        raise InputError("give one of --context, --context-file and --passages")
    if passages is not None:
        qa = load_reader(model, revision, precision, device)
        ranked = best_of_lines(qa, question, passages, top_k, max_answer_len)
        if as_json:
            rows = [{**a.to_dict(), "passage": a.passage} for a in ranked]
            typer.echo(json.dumps(rows, ensure_ascii=False))
        else:
            typer.echo(table(ranked))
        return
    if context_file is not None:
        context = read_text(context_file)
    assert context is not None
    qa = load_reader(model, revision, precision, device)
    answers = ask(qa, question, context, top_k, max_answer_len, no_answer, text_score)
    if as_json:
        typer.echo(json.dumps([a.to_dict() for a in answers], ensure_ascii=False))
    else:
        typer.echo(table(answers))
    typer.echo(qa.computes_with, err=True)  # last: what goes wrong is one line


def read_text(path: Path) -> str:
    """A file's text, in which every character is where it is in the file."""
    try:
        # not read_text, which turns "\r\n" into "\n": offsets are the file's own
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as text: {error}") from error


def load_reader(model: str, revision: str | None, precision: str, device: str) -> QuestionAnswerer:
    return QuestionAnswerer.from_pretrained(
        model, device=device, precision=cast(Precision, precision), revision=revision
    )


def ask(
    qa: QuestionAnswerer,
    question: str,
    context: str,
    top_k: int,
    max_answer_len: int = 30,
    no_answer: bool = False,
    text_score: bool = False,
) -> list[Answer]:
    """The best answers, with progress where the text is long."""
    example = validated_example("", question, context)
    total = 0
    if len(context) > CHUNK_CHARACTERS // 16:  # making windows twice is a hundredth of the work
        total = len(prepare_features([example], qa.tokenizer, **asdict(qa.window_settings)))
    with Progress(*COLUMNS, console=Console(stderr=True), disable=not total) as bar:
        advance = partial(bar.advance, bar.add_task("windows", total=total))
        settings = AnswerSettings(top_k, max_answer_len, no_answer, text_score=text_score)
        return next(qa.answer_examples([example], settings, advance))[:top_k]


def answer_file(
    qa: QuestionAnswerer, source: Path, output: Path | None, resume: bool, settings: LineSettings
) -> None:
    """`answer_lines` from one file to another, with progress."""
    with ExitStack() as stack:
        lines: BinaryIO = sys.stdin.buffer
        total = None
        if str(source) != "-":
            try:
                lines = stack.enter_context(source.open("rb"))
            except OSError as error:
                raise InputError(f"{source}: cannot be opened: {error.strerror}") from error
            if lines.seekable():
                total = sum(1 for line in lines if line.strip())
                lines.seek(0)
        written: BinaryIO = sys.stdout.buffer
        answered: Iterable[bytes] = ()
        if output is not None:
            made_by = identity(qa, settings)
            answered = written = stack.enter_context(partial_file(output, made_by, resume))
        bar = stack.enter_context(Progress(*COLUMNS, console=Console(stderr=True)))
        done, windows = (
            bar.add_task("questions", total=total),
            bar.add_task(f"windows ({qa.computes_with})", total=None),
        )
        try:
            answer_lines(
                qa,
                lines,
                str(source),
                written,
                settings,
                answered,
                partial(bar.advance, done),
                partial(bar.advance, windows),
            )
        except KeyboardInterrupt:
            if output is None:
                raise
            raise Interrupted(
                f"stopped: {output}.partial has the answers so far, and --resume goes on",
                signal.SIGINT,
            ) from None


def best_of_lines(
    qa: QuestionAnswerer, question: str, source: Path, top_k: int, max_answer_len: int
) -> list[PassageAnswer]:
    """`best_of` for the passages of JSON lines, read as they come."""

    def texts(lines: BinaryIO) -> Iterator[str]:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{source}: line {number}: not readable as JSON: {error}"
                ) from error
            text = record.get("context") if isinstance(record, dict) else record
            if not isinstance(text, str):
                raise InputError(
                    f"{source}: line {number}: expected a string, or an object with 'context'"
                )
            yield text

    with ExitStack() as stack:
        try:
            lines = (
                sys.stdin.buffer if str(source) == "-" else stack.enter_context(source.open("rb"))
            )
        except OSError as error:
            raise InputError(f"{source}: cannot be opened: {error.strerror}") from error
        bar = stack.enter_context(Progress(console=Console(stderr=True)))
        task = bar.add_task("windows", total=None)
        return qa.best_of(question, texts(lines), top_k, max_answer_len, partial(bar.advance, task))


def table(answers: Sequence[Answer]) -> str:
    rows = [f"{a.score:8.4f} {a.start:6} {a.end:6}  {' '.join(a.answer.split())}" for a in answers]
    rows = [f"{'score':>8} {'start':>6} {'end':>6}  answer", *rows]
    scores = [a.text_score for a in answers if a.text_score is not None]
    if scores:
        column = [f"{'text':>8}", *(f"{score:8.4f}" for score in scores)]
        rows = [f"{cell} {row}" for cell, row in zip(column, rows, strict=True)]
    if answers and isinstance(answers[0], PassageAnswer):
        passages = [a.passage for a in answers if isinstance(a, PassageAnswer)]
        column = ["passage", *("none" if p is None else str(p) for p in passages)]
        rows = [f"{cell:>7} {row}" for cell, row in zip(column, rows, strict=True)]
    return "\n".join([*rows, ""])


@app.command("explain")
def explain_command(
    question: Annotated[str, typer.Option(help="The question.")],
    context_file: Annotated[Path, typer.Option(help="A file with the text to search.")],
    output: Annotated[Path, typer.Option(help="The HTML file to write.")],
    model: Model = str(BUNDLED),
    revision: Revision = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many answers.")] = 10,
    max_answer_len: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 30,
    no_answer: Annotated[bool, typer.Option("--no-answer", help='"" may be the answer.')] = False,
    attribution: Annotated[
        bool, typer.Option(help="What the answer hangs on: reads the text many times more.")
    ] = True,
    precision: PrecisionName = "fp32",
    device: Device = "cpu",
) -> None:
    """Show why a question is answered so: one HTML page that needs nothing else."""
    context = read_text(context_file)
    qa = load_reader(model, revision, precision, device)
    if output.exists():  # before the minutes are spent
        raise InputError(f"{output}: cannot be written: File exists")
    bar = Progress(console=Console(stderr=True))
    task = bar.add_task("windows", total=None)
    with ExitStack() as stack:

        def on_progress(done: int, total: int) -> None:
            if not bar.live.is_started:  # a question without words is one line, without a bar
                stack.enter_context(bar)
            bar.update(task, completed=done, total=total)

        arguments = (question, context, top_k, max_answer_len, no_answer, attribution)
        found = qa.explain(*arguments, on_progress=on_progress)
    try:
        with output.open("x", encoding="utf-8") as file:  # "x": no file is overwritten
            file.write(found.to_html())
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from error
    typer.echo(
        table(
            [
                Answer(a.answer, a.score, a.start, a.end, a.start_logit, a.end_logit)
                for a in found.answers
            ]
        )
    )


@app.command()
def serve(
    model: Model = str(BUNDLED),
    revision: Revision = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8123,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    precision: PrecisionName = "auto",
    device: Device = "cpu",
) -> None:
    """Ask in a page of your own browser, and see why. Ctrl-C ends it."""
    try:
        from ..explain.server import serve as serve_page
    except ImportError as error:
        raise InputError(f"{error}; serve needs: pip install 'minibert-qa[serve]'") from error

    def ready(url: str) -> None:
        typer.echo(f"{url}  (Ctrl-C ends it)")
        if browser:
            webbrowser.open(url)

    serve_page(load_reader(model, revision, precision, device), port, ready)


@app.command()
def show(
    data: Annotated[str, typer.Argument(help="SQuAD file, folder of them, or hub id.")],
    split: Annotated[str, typer.Option(help="train or validation")] = "validation",
    count: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 10,
    seed: Annotated[int | None, typer.Option(help="The same choice again.")] = None,
) -> None:
    """Print random examples of a data set."""
    examples = load_squad(data, split)
    for example in random.Random(seed).sample(examples, min(count, len(examples))):
        typer.echo(f"context:  {example.context}")
        typer.echo(f"question: {example.question}")
        for gold in example.answers:
            typer.echo(f"answer:   {gold.text!r} at {gold.char_start}")
        if example.is_impossible:
            typer.echo("answer:   none in this context")
        typer.echo("-" * 80)


@app.command("check-data")
def check_data(
    data: Annotated[str, typer.Argument(help="Data file, folder of them, or hub id.")],
    tokenizer: Model = str(BUNDLED),
    revision: Revision = None,
    split: Annotated[str, typer.Option(help="train or validation")] = "train",
    max_length: Annotated[int, typer.Option(help="Tokens a window.")] = 384,
    doc_stride: DocStride = 128,
    all_: Annotated[
        bool, typer.Option("--all", help="Print all that is wrong, not 20 of a kind.")
    ] = False,
    negatives: Negatives = 0.0,
    seed: Annotated[int, typer.Option(help="Of the negatives.")] = 42,
) -> None:
    """Check every question of a data set, and count what windows of it would hold.

    With --negatives the questions that `train` would add with the same seed are counted too.
    """
    skipped: list[DataError] = []
    vocabulary = Tokenizer.from_pretrained(tokenizer, revision)
    limit = None if all_ else 20
    try:
        examples = load_squad(data, split, skipped)
        made = make_negatives(examples, negatives, seed)
        counts = negatives_report(made, negatives, examples) if negatives else {}
        examples = [*examples, *chain(*made.values())]
        report = data_report(examples, vocabulary, max_length, doc_stride, skipped)
    except DataError:
        if len({problem.kind for problem in skipped}) > 1:  # one kind alone is in the error itself
            print_problems(skipped, limit)
        raise
    print_problems(skipped, limit)
    for name, value in (report | counts).items():
        typer.echo(f"{name:30} {value:,.6g}")
    untidy = [example for example in examples if has_outer_white_space(example)]
    if untidy:
        first = next(a for a in untidy[0].answers if a.text != a.text.strip())
        typer.echo(
            f"warning: {len(untidy):,} questions have an answer that begins or ends in white space,"
            f" the first {first.text!r} of {untidy[0].id}; labels leave it out",
            err=True,
        )
    if skipped:
        raise DataError(f"{data}: {len(skipped):,} questions are wrong")


def print_problems(problems: list[DataError], limit: int | None = 20, err: bool = False) -> None:
    for line in report_lines(problems, limit):
        typer.echo(line, err=err)


@app.command("train")
def train_command(
    train_file: Annotated[str, typer.Option(help="Data file, folder of them, or hub id.")],
    output: Annotated[str, typer.Option(help="Folder to write.")],
    init: Model = str(BUNDLED),
    revision: Revision = None,
    dev_file: Annotated[str | None, typer.Option(help="Evaluated after each epoch.")] = None,
    max_answer_len: Annotated[int, typer.Option(help="Longest dev answer, in tokens.")] = 30,
    epochs: Annotated[float, typer.Option()] = 3,
    batch_size: Annotated[int, typer.Option(help="Windows a step.")] = 16,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Padded tokens a pass.", show_default="by the device"),
    ] = None,
    learning_rate: Annotated[float, typer.Option()] = 2e-5,
    warmup_ratio: Annotated[float, typer.Option(help="Part of the steps.")] = 0.0,
    dropout: Annotated[float | None, typer.Option(help="Default: the encoder's own.")] = None,
    max_train_examples: Annotated[int | None, typer.Option(help="A random sample.")] = None,
    max_length: Annotated[int, typer.Option(help="Tokens a window.")] = 384,
    doc_stride: DocStride = 128,
    attention: Annotated[
        str | None, typer.Option(help="eager or sdpa", show_default="by the device")
    ] = None,
    negatives: Negatives = 0.0,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="A model to learn from beside the labels; may be repeated."),
    ] = None,
    precision: TrainingPrecision = "auto",
    device: Device = "auto",
    seed: Annotated[int, typer.Option()] = 42,
    checkpoint_every: Annotated[int, typer.Option(help="Steps.")] = 500,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Train on the rest.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in there.")] = False,
    allow_other_machine: Annotated[
        bool, typer.Option("--allow-other-machine", help="Resume also where the bits may differ.")
    ] = False,
) -> None:
    """Fine-tune an encoder on SQuAD. Ctrl-C stops; the same command with --resume goes on."""
    config = TrainingConfig(
        init=init,
        revision=revision,
        train_file=train_file,
        output_dir=output,
        dev_file=dev_file,
        max_answer_len=max_answer_len,
        epochs=epochs,
        batch_size=batch_size,
        max_tokens=max_tokens,
        learning_rate=learning_rate,
        warmup_ratio=warmup_ratio,
        dropout=dropout,
        max_train_examples=max_train_examples,
        max_length=max_length,
        doc_stride=doc_stride,
        attention=cast(Attention | None, attention),
        negatives=negatives,
        teachers=tuple(teacher or ()),
        precision=cast(Precision, precision),
        device=device,
        seed=seed,
        checkpoint_every=checkpoint_every,
        skip_invalid=skip_invalid,
    )
    metrics = train(config, resume, allow_other_machine)
    if os.environ.get("RANK", "0") == "0":  # under torchrun one speaks
        typer.echo(json.dumps({"output": output} | metrics))


@app.command("adapt")
def adapt_command(
    train_file: Annotated[str, typer.Option(help="Data file, folder of them, or hub id.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    init: Annotated[str, typer.Option(help="Folder or hub id of the encoder.")],
    revision: Revision = None,
    epochs: Annotated[float, typer.Option(help="Times over the passages.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Windows a step.")] = 32,
    learning_rate: Annotated[float, typer.Option()] = 5e-4,
    warmup_ratio: Annotated[float, typer.Option(help="Part of the steps.")] = 0.06,
    dropout: Annotated[float, typer.Option()] = 0.0,
    max_length: Annotated[int, typer.Option(help="Tokens a window.")] = 384,
    doc_stride: DocStride = 128,
    precision: TrainingPrecision = "auto",
    device: Device = "auto",
    seed: Annotated[int, typer.Option()] = 42,
    checkpoint_every: Annotated[int, typer.Option(help="Steps.")] = 500,
    skip_invalid: Annotated[bool, typer.Option("--skip-invalid", help="Read the rest.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in there.")] = False,
) -> None:
    """Have an encoder guess hidden words of a data set's passages, as in its pretraining.

    `train --init` OUTPUT begins with what it has learned. Ctrl-C and --resume as there.
    """
    adapt(
        TrainingConfig(
            init=init,
            revision=revision,
            train_file=train_file,
            output_dir=str(output),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_ratio=warmup_ratio,
            dropout=dropout,
            max_length=max_length,
            doc_stride=doc_stride,
            precision=cast(Precision, precision),
            device=device,
            seed=seed,
            checkpoint_every=checkpoint_every,
            skip_invalid=skip_invalid,
        ),
        resume,
    )
    if os.environ.get("RANK", "0") == "0":
        typer.echo(json.dumps({"output": str(output)}))


@app.command("evaluate")
def evaluate_command(
    data: Annotated[str, typer.Option(help="Data file, folder of them, or hub id.")],
    output: Annotated[Path, typer.Option(help="Folder for predictions and metrics.")],
    model: Model = str(BUNDLED),
    revision: Revision = None,
    n_best: Annotated[int, typer.Option(min=1, help="Answers kept for each question.")] = 20,
    max_answer_len: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 30,
    max_length: Annotated[int | None, typer.Option(help="Tokens a window.")] = None,
    doc_stride: DocStride = None,
    version_2: Annotated[
        bool, typer.Option("--version-2", help="A question may have no answer.")
    ] = False,
    null_threshold: Annotated[
        float | None,
        typer.Option(help="Null odds beyond which it has none.", show_default="the model's own"),
    ] = None,
    tune_threshold: Annotated[
        bool, typer.Option("--tune-threshold", help="Choose it on one half, report on the other.")
    ] = False,
    precision: PrecisionName = "fp32",
    device: Device = "auto",
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave out what is wrong, and score the rest.")
    ] = False,
) -> None:
    """Answer a whole data set and score it with the official metric.

    Only an answer's text is scored: one that is not at its answer_start is named, and counts.
    """
    if (tune_threshold or null_threshold is not None) and not version_2:
        raise InputError("a threshold is for --version-2")
    skipped: list[DataError] = []
    misplaced: list[DataError] = []
    examples = load_squad(data, "validation", skipped if skip_invalid else None, misplaced)
    if skipped:
        print_problems(skipped, err=True)
        typer.echo(f"warning: {len(skipped):,} questions are left out", err=True)
    if misplaced:
        print_problems(misplaced, err=True)
        typer.echo(
            f"warning: {len(misplaced):,} answers are not where the data says; "
            "they are scored by their text",
            err=True,
        )
    qa = QuestionAnswerer.from_pretrained(
        model,
        device=device,
        max_length=max_length,
        doc_stride=doc_stride,
        precision=cast(Precision, precision),
        revision=revision,
    )
    make_folder(output)  # before the bar
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(f"windows ({qa.computes_with})", total=None)
        advance = partial(bar.advance, task)
        metrics = evaluate(
            qa,
            examples,
            output,
            n_best,
            max_answer_len,
            advance,
            version_2,
            null_threshold,
            tune_threshold,
        )
    typer.echo(json.dumps(metrics))


@app.command("calibrate")
def calibrate_command(
    data: Annotated[str, typer.Option(help="Data that the model was not trained on.")],
    output: Annotated[Path, typer.Option(help="Folder for the copy of the model.")],
    model: Model = str(BUNDLED),
    revision: Revision = None,
    split: Annotated[str, typer.Option(help="train or validation")] = "validation",
    max_answer_len: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 30,
    precision: PrecisionName = "fp32",
    device: Device = "auto",
) -> None:
    """Fit the temperatures of scores and the threshold of "no answer", in a copy of the model.

    Where no question of the data is unanswerable, each is also asked of the most similar paragraph
    of its article that does not hold its answer, and the threshold is the lowest that costs the
    questions with an answer at most one point of F1; else it is that of the best F1 over all.
    """
    examples = load_squad(data, split)
    qa = load_reader(model, revision, precision, device)
    require_empty(output)  # before the long work
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("windows", total=None)
        calibration, report = calibrate(qa, examples, max_answer_len, partial(bar.advance, task))
    save_calibrated(model, output, calibration, revision)
    typer.echo(json.dumps(asdict(calibration) | report))


@bench.command("doubt")
def bench_doubt_command(
    data: Annotated[str, typer.Option(help="SQuAD dev file, folder of them, or hub id.")],
    model: Model = str(BUNDLED),
    questions: Annotated[int, typer.Option(min=2, help="A random sample.")] = 2000,
    long_questions: Annotated[int, typer.Option(min=1, help="Asked of whole articles.")] = 300,
    searches: Annotated[int, typer.Option(min=1, help="Asked of 20 passages.")] = 500,
) -> None:
    """What scores are worth, beside the rule of the pipeline that transformers had."""
    report = bench_doubt(model, data, questions, long_questions, searches)
    typer.echo(json.dumps(report, indent=1))


@bench.command("train")
def bench_train_command(
    init: Annotated[str, typer.Option(help="Folder or hub id of the encoder.")],
    data: Annotated[str, typer.Option(help="SQuAD training file, folder of them, or hub id.")],
    turns: Annotated[int, typer.Option(min=1)] = 5,
    output: Annotated[Path | None, typer.Option(help="A JSON file for all the figures.")] = None,
) -> None:
    """Training: how many windows a second, beside transformers where it is installed."""
    write_report(lambda: bench_train(init, data, turns), output)


@bench.command("answer")
def bench_answer_command(
    data: Annotated[str, typer.Option(help="SQuAD dev file, folder of them, or hub id.")],
    model: Model = str(BUNDLED),
    turns: Annotated[int, typer.Option(min=1)] = 5,
    questions: Annotated[int | None, typer.Option(min=1, help="100; 40 without bfloat16.")] = None,
    output: Annotated[Path | None, typer.Option(help="A JSON file for all the figures.")] = None,
) -> None:
    """Answering: how many questions a second, and how well, beside other engines that are
    installed."""
    write_report(lambda: bench_answer(model, data, turns, questions), output)


@bench.command("parts")
def bench_parts_command(
    data: Annotated[str, typer.Option(help="Folder with SQuAD's train and dev, or hub id.")],
    model: Model = str(BUNDLED),
    turns: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """What must not take long beside the model: the search, the windows, the start."""
    for name, figure in bench_parts(model, data, turns).items():
        typer.echo(f"{name:32} {figure:.2f}")


def write_report(measure: Callable[[], dict[str, Any]], output: Path | None) -> None:
    """Measure and print; a file that cannot be written is met before the minutes are spent.

    An old report stays until the new one is whole.
    """
    if output is None:
        typer.echo(table_of(measure()))
        return
    if output.is_dir():
        raise InputError(f"{output}: a folder; expected a file to write")
    with complete_files(output.parent) as draft:
        report = measure()
        typer.echo(table_of(report))
        text = json.dumps(report, indent=1)
        (draft / output.name).write_text(text + "\n", encoding="utf-8")


@app.command()
def inspect(
    source: Annotated[
        str, typer.Argument(help="Folder or hub id.", show_default="the bundled model")
    ] = str(BUNDLED),
    revision: Revision = None,
    compare: Annotated[
        bool, typer.Option("--parity", help="Compare each layer with transformers.")
    ] = False,
    reference: Annotated[Path | None, typer.Option(help="Or with what a file holds of it.")] = None,
    output: Annotated[Path | None, typer.Option(help="A picture of the differences.")] = None,
) -> None:
    """Print a checkpoint's configuration, parameter count and loading report."""
    if compare:
        inspect_parity(source, reference, output)
        return
    if reference is not None or output is not None:
        raise InputError("--reference and --output are for --parity")
    model, expected = empty_model(BertForQuestionAnswering, source, "eager", revision)
    tensors, report = map_tensors(read_tensors(source, revision), expected, model.config.model_type)
    calibration = stored_calibration(read_config(source, revision))
    for name, value in (asdict(model.config) | asdict(calibration)).items():
        typer.echo(f"{name:30} {value}")
    typer.echo(f"{'parameters':30} {sum(t.numel() for t in tensors.values()):,}")
    typer.echo(str(report))


def inspect_parity(source: str, reference: Path | None, output: Path | None) -> None:
    """The largest difference of each layer, and the first that is too large; exit code 1 then."""
    if output is not None and output.exists():
        raise InputError(f"{output}: cannot be written: File exists")
    differences = parity(source, reference)
    for name, value in differences.items():
        verdict = "exact" if value == 0 else "within" if value <= TOLERANCE else "DIVERGES"
        typer.echo(f"{name:20} {value:10.3g}  {verdict}")
    diverged = first_divergence(differences)
    typer.echo(f"tolerance {TOLERANCE:g}; first divergence: {diverged or 'none'}")
    if output is not None:
        try:
            from ..viz import error_by_layer

            states = [v for k, v in differences.items() if k.startswith("hidden_states")]
            picture = error_by_layer({Path(source).name: states}, TOLERANCE)
            picture.savefig(output)
        except ImportError as error:
            raise InputError(f"{error}; a picture needs: pip install matplotlib") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{output}: cannot be written: {error}") from error
    if diverged:
        raise typer.Exit(1)
