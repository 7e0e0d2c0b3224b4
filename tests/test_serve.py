"""The live page: the answers of the server, the requests it refuses, and the page in a browser."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import minibert
from minibert.explain.page import CONTEXT, QUESTION

httpx = pytest.importorskip("httpx", reason="pip install -e '.[test]'")
server = pytest.importorskip(
    "minibert.serve.server", reason="the live page: pip install -e '.[serve]'"
)
from minibert.serve import page as live_page  # noqa: E402
from minibert.serve import requests  # noqa: E402
from minibert.serve.guard import LOOPBACK, Access  # noqa: E402

ASKED = {"question": "Who lit the lamp?", "context": "At dusk the keeper, Ada, lit the lamp."}
PATIENCE = 600  # seconds: a wait ends a test only when something hangs, not on a slow machine
LONG = "At dusk the keeper, Ada, lit the lamp. " * 4000  # 156,000 characters


def start(tiny: Path, folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Start `minibert serve` with the tiny model in an empty folder -> process, address."""
    command = [sys.executable, "-m", "minibert", "serve", "--model", str(tiny.absolute())]
    process = subprocess.Popen(
        [*command, "--port", "0", "--no-browser"],
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    match = re.match(r"http://127\.0\.0\.1:\d+/", line)
    assert match, line + process.stderr.read()
    return process, match[0]


@pytest.fixture(scope="module")
def address(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server. At the end, Ctrl-C stops it, and it has written no file."""
    folder = tmp_path_factory.mktemp("served")
    process, url = start(tiny, folder)
    yield url
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0 and process.stderr.read() == ""
    assert list(folder.iterdir()) == []


def lines(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def post(address: str, body: Any = ASKED, **options: Any) -> Any:
    return httpx.post(f"{address}ask", json=body, timeout=PATIENCE, **options)


def test_the_answer_comes_first_then_the_rest(address, tiny):
    told = lines(post(address, ASKED | {"attribution": True}))
    kinds = [key for line in told for key in line]
    assert kinds[0] == "reading" and kinds[-1] == "attribution"
    assert kinds.index("explanation") < kinds.index("progress")
    qa = minibert.QuestionAnswerer.from_pretrained(tiny)
    wanted = json.loads(json.dumps(qa.explain(*ASKED.values()).to_dict()))
    explanation = next(line["explanation"] for line in told if "explanation" in line)
    assert explanation | {"attribution": told[-1]["attribution"]} == wanted


def test_its_switches(address):
    asked = ASKED | {"top_k": 3, "no_answer": True}
    told = lines(post(address, asked))
    explanation = next(line["explanation"] for line in told if "explanation" in line)
    assert explanation["no_answer"] and "" in [a["answer"] for a in explanation["answers"]]
    # "no answer" is a fourth answer if it is not among the best three
    assert len(explanation["answers"]) in (3, 4)


def test_an_attribution_comes_on_request(address):
    """Otherwise the last line has the time that it would take, in seconds."""
    for context in (ASKED["context"], LONG[:12_000]):
        told = lines(post(address, ASKED | {"context": context}))
        assert list(told[-1]) == ["skipped"] and told[-1]["skipped"] > 0
        assert not [line for line in told if "attribution" in line or "progress" in line]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:PORT"}, 200),
        ({"Host": "LocalHost:PORT", "Origin": "HTTP://LOCALHOST:PORT"}, 200),
        ({"Origin": "http://127.0.0.1:PORT"}, 200),
        ({"Host": "example.org"}, 403),
        ({"Host": "example.org:PORT"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Origin": "http://example.org"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "https://127.0.0.1:PORT"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_only_its_own_page_can_ask(address, headers, status):
    port = address.strip("/").rpartition(":")[2]
    sent = {name: value.replace("PORT", port) for name, value in headers.items()}
    for response in (httpx.get(address, headers=sent), post(address, headers=sent)):
        assert response.status_code == status
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert not [name for name in response.headers if name.startswith("access-control")]
    if status == 403:
        assert "only its own page" in response.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (ASKED | {"context": "Ada lit it. " * 90_000}, 413, "up to 200,000"),
        (ASKED | {"context": "Ada lit it. " * 17_000}, 413, "has 204,000 characters"),
        (ASKED | {"question": "Who? " * 1000}, 413, "the question has 5,000 characters"),
        (ASKED | {"top_k": 0}, 400, "Choose a number of answers from 1 to 50, instead of 0."),
        (ASKED | {"top_k": True}, 400, "top_k: expected a whole number"),
        (ASKED | {"no_answer": 1}, 400, "no_answer: expected true or false"),
        (ASKED | {"context": None}, 400, "context: expected text"),
        (ASKED | {"more": 1}, 400, "not a question in the page's format: it has an unknown field"),
        ({"question": "Who?"}, 400, "not a question in the page's format: it has no context"),
        ([1], 400, "not a question in the page's format: expected an object with question"),
    ],
)
def test_bad_requests_are_refused(address, body, status, named):
    response = post(address, body)
    assert response.status_code == status and named in response.json()["error"]


def test_a_body_without_a_question_is_refused(address):
    for body in (b"{", b"\xff", b"[" * 100_000):
        response = httpx.post(
            f"{address}ask", content=body, headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 400 and "not a question" in response.json()["error"]
    # a form on another page could send this without a check by the browser
    response = httpx.post(f"{address}ask", content=json.dumps(ASKED))
    assert response.status_code == 415
    for question, context, named in (
        (" ", "Ada", "no words in the question"),
        ("Who?", "\u200b", "no words in the context"),
        ("Who?", "\ud800", "lone surrogate"),
    ):
        body = json.dumps({"question": question, "context": context})
        response = httpx.post(
            f"{address}ask", content=body, headers={"Content-Type": "application/json"}
        )
        assert named in lines(response)[-1]["error"]


def test_fifty_at_once(address):
    """The server answers each request, or refuses it with a message, and then continues."""
    body = ASKED | {"attribution": True}
    with ThreadPoolExecutor(50) as threads:
        responses = list(threads.map(lambda _: post(address, body), range(50)))
    answered = refused = 0
    for response in responses:
        if response.status_code == 503:
            assert "waiting already" in response.json()["error"]
            refused += 1
        else:
            assert "attribution" in lines(response)[-1]
            answered += 1
    assert answered >= 1 + live_page.WAITING and answered + refused == 50
    assert "attribution" in lines(post(address, body))[-1]


def test_work_ends_when_the_browser_leaves(address):
    """The next question does not wait until the long work of a closed page is complete."""
    body = ASKED | {"context": LONG, "attribution": True}
    with httpx.stream("POST", f"{address}ask", json=body, timeout=PATIENCE) as response:
        assert response.status_code == 200
        next(response.iter_lines())
    assert "attribution" in lines(post(address, ASKED | {"attribution": True}))[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_during_work(tiny, tmp_path, number):
    """Ctrl-C, and what service managers send."""
    process, url = start(tiny, tmp_path)
    body = ASKED | {"context": LONG, "attribution": True}
    with httpx.stream("POST", f"{url}ask", json=body, timeout=PATIENCE) as response:
        told = response.iter_lines()
        next(told)
        process.send_signal(number)
        with pytest.raises(httpx.HTTPError):
            list(told)
    assert process.wait(PATIENCE) == 0 and process.stderr.read() == ""


@pytest.mark.filterwarnings("ignore:Using `httpx` with")
def test_within_this_process(tiny):
    """The same without a network: an answer, refusals, and a request of another page."""
    from starlette.testclient import TestClient

    service = server.Service(minibert.QuestionAnswerer.from_pretrained(tiny, precision="fp32"))
    client = TestClient(service.app(Access()), base_url="http://127.0.0.1:8123")
    assert client.get("/").status_code == client.get("/page.js").status_code == 200
    asked = ASKED | {"attribution": True}
    assert "attribution" in lines(client.post("/ask", json=asked))[-1]
    assert "no words" in lines(client.post("/ask", json=ASKED | {"question": " "}))[-1]["error"]
    assert client.post("/ask", json=ASKED | {"top_k": 0}).status_code == 400
    assert client.get("/", headers={"Origin": "http://example.org"}).status_code == 403
    for _ in range(1 + live_page.WAITING):
        service.page.places.acquire()
    assert client.post("/ask", json=ASKED).status_code == 503
    service.close()


class Told:
    """What a browser would get: the lines, and whether one came."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any] | None] = []
        self.changed = threading.Condition()

    def put(self, line: dict[str, Any] | None) -> None:
        with self.changed:
            self.lines.append(line)
            self.changed.notify_all()

    def wait_for(self, key: str) -> None:
        def came() -> bool:
            return any(line and key in line for line in self.lines)

        with self.changed:
            assert self.changed.wait_for(came, PATIENCE), self.lines


def test_questions_come_before_an_attribution(tiny):
    """An attribution waits while there are questions, and questions hear how many are first."""
    service = server.Service(minibert.QuestionAnswerer.from_pretrained(tiny, precision="fp32"))
    live = service.page
    told = [Told() for _ in range(3)]
    asked = live_page.Asked(**ASKED, attribution=True)
    jobs = [live_page.Job(asked, each.put, live.closing) for each in told]
    live.queue.join(jobs[0])
    live.queue.join(jobs[1])
    live.queue.join(jobs[2])
    assert [each.lines for each in told] == [[], [{"waiting": 1}], [{"waiting": 2}]]
    explanation = live.answer(jobs[0])
    live.queue.leave(jobs[0])
    assert told[1].lines[-1] == {"waiting": 0} and told[2].lines[-1] == {"waiting": 1}

    live.places.acquire()
    done = live.later.submit(live.attribute, jobs[0], explanation)
    told[0].wait_for("waiting")  # for the two questions
    assert told[0].lines[-1] == {"waiting": 2} and not done.done()
    for job in jobs[1:]:
        live.queue.leave(job)
    done.result(PATIENCE)
    kinds = [next(iter(line)) for line in told[0].lines if line]
    assert kinds[-1] == "attribution" and "progress" in kinds[kinds.index("waiting") :]

    live.queue.join(jobs[1])
    waits = live.later.submit(live.attribute, jobs[0], explanation)
    jobs[0].left.set()  # the browser leaves, while the attribution waits
    live.queue.wake()
    waits.result(PATIENCE)
    assert told[0].lines[-1] is None
    service.close()


def test_a_body_that_never_ends(tiny, monkeypatch):
    """The server does not wait for it for ever, and closes the connection."""
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.2)
    service = server.Service(minibert.QuestionAnswerer.from_pretrained(tiny, precision="fp32"))
    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    uvicorn = server.server_for(service, Access(port=port))
    with listener, ThreadPoolExecutor(1) as thread:
        served = thread.submit(uvicorn.run, sockets=[listener])
        heads = (
            f"POST /ask HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            "Content-Length: 1000\r\n\r\n{"
        ).encode()
        connections = [socket.create_connection((LOOPBACK, port)) for _ in range(200)]
        for connection in connections:
            connection.settimeout(PATIENCE)
            connection.sendall(heads)
        for connection in connections:
            with connection:
                answer = b"".join(iter(partial(connection.recv, 65536), b""))  # until it closes
                assert answer.startswith(b"HTTP/1.1 408") and b"was not complete after" in answer
        monkeypatch.setattr(requests, "BODY_SECONDS", PATIENCE)
        assert "skipped" in lines(post(f"http://{LOOPBACK}:{port}/"))[-1]
        uvicorn.should_exit = True
        served.result(PATIENCE)
    service.close()


def client_of(tiny: Path, port: int, address: str, allowed: list[str]) -> Any:
    from starlette.testclient import TestClient

    service = server.Service(minibert.QuestionAnswerer.from_pretrained(tiny, precision="fp32"))
    return TestClient(service.app(Access(port=port, allowed=allowed)), base_url=address)


@pytest.mark.filterwarnings("ignore:Using `httpx` with")
@pytest.mark.parametrize(
    ("port", "allowed", "address", "status"),
    [
        (80, [], "http://127.0.0.1", 200),  # browsers leave out the port 80
        (80, [], "http://localhost:80", 200),
        (80, [], "http://127.0.0.1:8123", 403),
        (8123, [], "http://127.0.0.1", 403),
        (8123, [], "http://localhost:9000", 403),  # ssh -L 9000:127.0.0.1:8123
        (8123, ["LOCALHOST:9000"], "http://localhost:9000", 200),
        (8123, ["localhost:9000"], "http://localhost:9001", 403),
        (8123, ["qa.example.org"], "http://qa.example.org", 200),
        (8123, ["qa.example.org"], "https://qa.example.org", 200),
        (8123, ["qa.example.org"], "http://127.0.0.1:8123", 200),
        (8123, ["qa.example.org"], "http://other.example.org", 403),
        (8123, ["[::1]:9000"], "http://[::1]:9000", 200),
    ],
)
def test_the_page_has_only_its_own_addresses(tiny, port, allowed, address, status):
    client = client_of(tiny, port, address, allowed)
    for headers in ({}, {"Origin": address.removesuffix(":80")}):
        assert client.get("/", headers=headers).status_code == status
    assert client.get("/", headers={"Origin": "http://example.org"}).status_code == 403


@pytest.mark.parametrize("host", ["*", "", "http://localhost:9000", "a/b", "localhost:"])
def test_what_is_not_a_host_is_refused(tiny, host):
    with pytest.raises(minibert.InputError, match="expected HOST or HOST:PORT"):
        client_of(tiny, 8123, "http://127.0.0.1:8123", [host])


def test_a_port_in_use_is_named(tiny):
    qa = minibert.QuestionAnswerer.from_pretrained(tiny)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            minibert.InputError, match=f"port {port} cannot be used: Address.*--port 0"
        ):
            server.serve(qa, Access(port=port), print)


# --- in the browser


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect  # only where a browser is installed

    expect.set_options(timeout=1000 * PATIENCE)
    return expect(locator)


@pytest.fixture
def live(address: str, browser: Any) -> Iterator[Any]:
    page = browser.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.messages, page.requests = [], []
    page.on("console", lambda message: page.messages.append(message.text))
    page.on("pageerror", lambda error: page.messages.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(address)
    yield page
    page.close()


def test_ask_and_ask_again(live, address):
    page = live
    assert not page.locator("main").is_visible()
    page.keyboard.type(ASKED["question"])  # the cursor is in this field
    page.locator("#ask-context").fill(ASKED["context"])
    page.locator("#ask-question").press("Enter")
    page.locator("#passage mark.chosen").first.wait_for()
    before = "".join(page.locator("#passage mark.chosen").all_text_contents())
    assert before in ASKED["context"] and not page.locator("#before").is_visible()
    page.get_by_text("Compute it").click()
    page.locator("#occlusions tbody tr").first.wait_for()

    page.locator("#ask-question").fill("Who kept it?")
    page.locator("#ask-question").press("Enter")
    page.locator("#before").wait_for()
    assert ASKED["question"] in page.locator("#changes tr").first.text_content()
    assert "Who kept it?" in page.locator("#changes tr").nth(1).text_content()
    assert before in page.locator("#changes tr").first.text_content()

    page.locator("#bars").press("ArrowRight")  # remove a word with the keyboard
    word = page.locator("#bars .here").text_content()
    side = "context" if "passage" in page.locator("#word").text_content() else "question"
    text = page.locator(f"#ask-{side}").input_value()
    page.locator("#strike").press("Enter")
    expect(page.locator(f"#ask-{side}")).not_to_have_value(text)
    assert len(page.locator(f"#ask-{side}").input_value()) <= len(text) - len(word)
    expect(page.locator("#message")).to_have_text("")  # the new answer is here
    page.locator("#pending button").click()
    page.locator("#occlusions button").first.wait_for()
    page.locator("#occlusions button").first.click()
    expect(page.locator("#struck")).to_be_visible()
    expect(page.locator("#message")).to_have_text("")
    assert page.messages == [] and {url.startswith(address) for url in page.requests} == {True}


def test_a_passage_that_is_too_long_gets_a_message(live):
    live.locator("#ask-question").fill("Who?")
    for times, named in ((90_000, "has 1,080,000 characters"), (900_000, "1,213,000 bytes")):
        fill = (
            "(times) => document.getElementById('ask-context').value = 'Ada lit it. '.repeat(times)"
        )
        live.evaluate(fill, times)
        live.locator("button.ask").click()
        live.get_by_text(named).wait_for()
    assert [text for text in live.messages if "413" not in text] == []


def test_dropping_a_file_fills_the_passage(live):
    drop = """([name, text]) => {
      const data = new DataTransfer();
      data.items.add(new File([text], name));
      document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
    }"""
    live.evaluate(drop, ["notes.md", "Ada lit it. <script>"])
    expect(live.locator("#ask-context")).to_have_value("Ada lit it. <script>")
    live.evaluate(drop, ["notes.exe", "MZ"])
    live.get_by_text("notes.exe: expected a .txt or .md").wait_for()


def ask(page: Any, question: str, context: str = ASKED["context"]) -> None:
    """Ask, and wait for the answer."""
    page.locator("#ask-question").fill(question)
    page.locator("#ask-context").fill(context)
    page.locator("button.ask").click()
    expect(page.locator("#question")).to_have_text(question)
    expect(page.locator("#message")).to_have_text("")


def test_the_first_page_says_what_it_is(live):
    """A title, an example that can be asked at once, and where the text stays."""
    assert live.locator("h1:visible").all_text_contents() == ["Ask a question about a text"]
    assert "Your text stays on this machine" in live.locator("#private").text_content()
    live.locator("button.ask").click()
    live.locator("#passage mark.chosen").first.wait_for()
    assert live.locator("h1:visible").all_text_contents() == [QUESTION]
    assert live.locator("#passage").text_content() == CONTEXT


def in_view(page: Any, selector: str) -> bool:
    inside = """(node) => {
      const box = node.getBoundingClientRect();
      return box.top >= 0 && box.bottom <= innerHeight;
    }"""
    return page.locator(selector).evaluate(inside)


def test_a_word_is_left_out_and_put_back(live):
    """A click on a word of the question or of the passage asks again; one more puts it back."""
    page = live
    ask(page, ASKED["question"])
    answer = page.locator("#answer").text_content()
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))

    page.locator("#question").get_by_text("lit").click()
    expect(page.locator("#question")).to_have_text("Who the lamp?")
    assert page.locator("#struck-word").text_content() == "lit is left out of the question."
    assert in_view(page, "#answer") and in_view(page, "#put-back")

    page.locator("#bars").focus()  # a word of the passage, with the keyboard
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Delete")
    expect(page.locator("#passage")).to_have_text("At dusk the keeper, Ada, lit the .")
    assert page.locator("#struck-word").text_content() == "lamp is left out of the passage."
    assert in_view(page, "#answer") and in_view(page, "#put-back")
    page.locator("#bars").get_by_text("keeper").click()  # and with the pointer
    expect(page.locator("#passage")).to_have_text("At dusk the , Ada, lit the .")
    assert len(sent) == 3

    for question, context in (
        ("Who the lamp?", "At dusk the keeper, Ada, lit the ."),
        ("Who the lamp?", ASKED["context"]),
        (ASKED["question"], ASKED["context"]),
    ):
        page.keyboard.press("Enter")  # the focus is on the button
        assert page.locator("#question").text_content() == question
        assert page.locator("#passage").text_content() == context
        assert page.locator("#ask-question").input_value() == question
        assert page.locator("#ask-context").input_value() == context
    assert not page.locator("#struck").is_visible() and not page.locator("#before").is_visible()
    assert page.locator("#answer").text_content() == answer and len(sent) == 3
    assert page.messages == []


def test_the_focus_moves_when_the_answer_is_shown(live):
    """Not when the server closes the connection: the visitor may have gone on until then."""
    page = live
    ask(page, ASKED["question"])
    page.evaluate("""() => {  // a connection that is never closed
      const {ask} = transport;
      transport = {...transport, ask: async (...given) => {
        await ask(...given);
        await new Promise(() => {});
      }};
    }""")
    page.locator("#question").get_by_text("lit").click()
    expect(page.locator("#question")).to_have_text("Who the lamp?")
    assert page.evaluate("document.activeElement.id") == "put-back"
    page.locator("#bars").focus()
    page.locator("#bars").get_by_text("keeper").click()
    expect(page.locator("#passage")).to_have_text("At dusk the , Ada, lit the lamp.")
    assert page.evaluate("document.activeElement.id") == "put-back"


def test_the_only_word_cannot_be_left_out(live):
    """The answer before stays, and so does the text of the form."""
    ask(live, "Who")
    live.locator("#question button").first.click()
    live.get_by_text("no words in the question").wait_for()
    assert live.locator("#question").text_content() == "Who"
    assert live.locator("#ask-question").input_value() == "Who"
    assert in_view(live, "#message") and not live.locator("#struck").is_visible()


def test_two_questions_side_by_side(live):
    page = live
    ask(page, ASKED["question"])
    page.locator("#pin").click()
    assert not page.locator("#pinned").is_visible()
    ask(page, "Who kept it?")
    cards = page.locator("#pinned .card")
    questions = [ASKED["question"], "Who kept it?"]
    assert cards.locator("h3").all_text_contents() == questions
    for text in page.locator("#answer b").all_text_contents():
        assert text in cards.nth(1).text_content()
    page.get_by_text("Show this one on the whole page").click()
    assert cards.locator("h3").all_text_contents() == questions[::-1]
    assert page.locator("#question").text_content() == questions[0]
    assert page.locator("#ask-question").input_value() == questions[0]
    page.get_by_text("Unpin", exact=True).click()
    assert not page.locator("#pinned").is_visible() and page.messages == []


def test_a_reload_and_a_link_ask_again(live, browser):
    page, question = live, "Who kept <b>it</b> & the lamp? 😀"
    ask(page, question)
    page.reload()
    expect(page.locator("#question")).to_have_text(question)
    assert page.locator("#passage").text_content() == ASKED["context"]
    assert not page.locator("#before").is_visible() and "#" not in page.url

    page.locator("#link").click()
    page.get_by_text("does not send them to a server").wait_for()
    other = browser.new_page()  # with an empty storage
    other.goto(page.url)
    expect(other.locator("#question")).to_have_text(question)
    assert other.locator("#passage").text_content() == ASKED["context"]
    other.close()


def test_the_page_is_saved_as_a_file(live, browser, tmp_path):
    """It shows the same, needs no server, and asks nothing."""
    page, question = live, "Who kept </script><b>it</b> & the lamp? 😀"
    ask(page, question)
    page.get_by_text("Compute it").click()
    page.locator("#occlusions tbody tr").first.wait_for()
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "Who-kept-script-b-it-b-the-lamp.html"
    download.value.save_as(tmp_path / "saved.html")
    saved = browser.new_page()
    messages: list[str] = []
    requests: list[str] = []
    saved.on("console", lambda message: messages.append(message.text))
    saved.on("pageerror", lambda error: messages.append(str(error)))
    saved.on("request", lambda request: requests.append(request.url))
    saved.goto((tmp_path / "saved.html").as_uri())
    # the other texts of the page depend on whether it can ask
    for place in ("#question", "#answer", "#passage", "#answers", "#lens", "#attended", "#made"):
        assert saved.locator(place).text_content() == page.locator(place).text_content()
    rows = [p.locator("#occlusions tbody tr").count() for p in (saved, page)]
    assert rows[0] == rows[1] > 0
    assert not saved.locator("form").is_visible() and not saved.locator("#keep").is_visible()
    policy = saved.locator("meta[http-equiv]").get_attribute("content")
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert messages == [] and len(requests) == 1
    saved.close()


def test_plain_words_for_what_goes_wrong(live):
    """Instead of the browser's own words, such as "Failed to fetch"."""
    page = live
    page.route("**/ask", lambda route: route.abort())
    page.locator("button.ask").click()
    page.get_by_text("The server does not answer. Is `minibert serve` still running?").wait_for()
    page.unroute("**/ask")
    page.locator("#ask-top").fill("0")
    page.locator("#ask-context").press("Control+Enter")  # without the browser's own check
    page.get_by_text("Choose a number of answers from 1 to 50, instead of 0.").wait_for()
    page.evaluate("take({waiting: 1})")
    assert page.locator("#message").text_content() == "Waiting behind 1 other question …"
    page.evaluate("take({waiting: 3})")
    assert page.locator("#message").text_content() == "Waiting behind 3 other questions …"


def test_a_long_question_is_cut_and_the_page_says_so(live):
    question = "Who lit the lamp " + "of the old tower on the hill " * 20 + "at dusk?"
    ask(live, question)
    assert live.locator("#unread").is_visible()
    told = live.locator("#unread").text_content()
    unread = told.partition("“")[2].rstrip("”")
    assert unread.endswith("at dusk?") and question.endswith(unread)


def test_the_server_says_nothing_about_a_long_question(tiny, tmp_path):
    """Its error output stays empty: the page says what was not read."""
    process, url = start(tiny, tmp_path)
    told = lines(post(url, ASKED | {"question": "Who lit the lamp? " * 40}))
    explanation = next(line["explanation"] for line in told if "explanation" in line)
    assert explanation["question_unread"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0 and process.stderr.read() == ""


def test_axe_finds_no_violation_in_the_live_page(live):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python"
    )
    live.locator("#ask-question").fill("Who?")
    live.locator("#ask-context").fill(ASKED["context"])
    results = axe.Axe().run(live)  # the first page
    assert results.violations_count == 0, results.generate_report()
    live.locator("button.ask").click()
    live.locator("#pin").click()
    live.locator("#ask-question").fill("Who kept it?")
    live.locator("button.ask").click()
    expect(live.locator("#pinned")).to_be_visible()
    live.locator("#question button").first.click()
    expect(live.locator("#struck")).to_be_visible()
    live.locator("#pending button").click()
    live.locator("#occlusions tbody tr").first.wait_for()
    results = axe.Axe().run(live)
    assert results.violations_count == 0, results.generate_report()
