"""The commands that show why an answer was chosen: `explain` and `serve`."""

import webbrowser
from pathlib import Path

from typer import Option, echo

from ..errors import InputError
from ..settings import AnswerSettings
from .answering import read_text
from .lines import file_errors, require_new
from .options import ReaderOptions, with_settings
from .printing import progress_bars, table


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
