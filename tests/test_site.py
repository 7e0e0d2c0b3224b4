"""`minibert site`: the model in the page, from a static server and from a file, in a real browser.

The page must give what Python gives with the same weights, key for key, and send no request to any
other place.
"""

import functools
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import minibert
from minibert.explain import site
from minibert.explain.explanation import Explanation

PATIENCE = 600  # seconds: a wait ends a test only when something hangs, not on a slow machine
QUESTION, CONTEXT = (
    "Who lit the lamp?",
    "At dusk the keeper, Ada, lit the lamp. 😀 Bo rang the bell.",
)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Python's own static server, without its log."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Path], str]]:
    """Serve a folder as `python -m http.server` does -> its address."""
    servers = []

    def serve(folder: Path) -> str:
        handler = functools.partial(Handler, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


class Opened:
    """An open page, with its requests and the messages of its console."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE)
        self.requests: list[str] = []
        self.messages: list[str] = []
        # of the context, because workers send requests too
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.goto(address)

    def ready(self) -> "Opened":
        self.page.evaluate("minibert.ready")
        return self

    def explain(self, question: str, context: str, **options: Any) -> dict[str, Any]:
        call = "([question, context, options]) => minibert.explain(question, context, options)"
        return self.page.evaluate(call, [question, context, options])

    def tokenize(self, text: str) -> dict[str, Any]:
        return self.page.evaluate("(text) => minibert.tokenize(text)", text)

    def status(self) -> str:
        return self.page.locator("#status").text_content()


@pytest.fixture(scope="module")
def opening(browser: Any) -> Iterator[Callable[..., Opened]]:
    opened: list[Opened] = []

    def opening(address: str, **options: Any) -> Opened:
        opened.append(Opened(browser, address, **options))
        return opened[-1]

    yield opening
    for page in opened:
        page.context.close()


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the tiny model."""
    folder = tmp_path_factory.mktemp("site") / "folder"
    site.write_folder(folder, site.load(tiny))
    return folder


@pytest.fixture(scope="module")
def page(serve, opening, folder) -> Opened:
    return opening(serve(folder)).ready()


@pytest.fixture(scope="module")
def qa(folder: Path) -> minibert.QuestionAnswerer:
    """The same weights in Python."""
    return minibert.QuestionAnswerer.from_pretrained(
        folder / "model", precision="fp32", device="cpu"
    )


def differences(here: Any, wanted: Any, place: str = "") -> Iterator[str]:
    """Where the data of the page differs from Python's, beyond the tolerance of float32."""
    if isinstance(wanted, dict) and isinstance(here, dict):
        for key in here.keys() | wanted.keys():
            yield from differences(
                here.get(key, "no key"), wanted.get(key, "no key"), f"{place}.{key}"
            )
    elif isinstance(wanted, list) and isinstance(here, list) and len(here) == len(wanted):
        for k, pair in enumerate(zip(here, wanted, strict=True)):
            yield from differences(*pair, f"{place}[{k}]")
    elif isinstance(wanted, float):
        if not abs(here - wanted) <= 1e-3:
            yield f"{place}: {here}, not {wanted}"
    elif isinstance(wanted, int) and place.startswith((".attention", ".embeddings")):
        if abs(here - wanted) > 1:  # thousandths
            yield f"{place}: {here}, not {wanted}"
    elif here != wanted:
        yield f"{place}: {here!r}, not {wanted!r}"


def assert_equal(here: dict[str, Any], explanation: Explanation) -> None:
    """The page's explanation is Python's. Only what it was made with has another place."""
    wanted = json.loads(json.dumps(explanation.to_dict()))
    wanted["made_with"] = {**here["made_with"], "version": explanation.made_with["version"]}
    assert list(differences(here, wanted)) == []


def long_context(field_notes: list[minibert.Example], paragraphs: int) -> str:
    return " ".join(dict.fromkeys(example.context for example in field_notes[::4][:paragraphs]))
