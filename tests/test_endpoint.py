"""`POST /question-answering`: the pipeline's answers, batches, limits, the token, and the end."""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from machine import HANG, needs_proc, needs_signals

import minibert
from minibert.engine import Engine

httpx = pytest.importorskip("httpx", reason="pip install -e '.[test]'")
server = pytest.importorskip("minibert.serve.server", reason="pip install -e '.[serve]'")
from minibert.serve import connections, endpoint, requests  # noqa: E402
from minibert.serve.guard import LOOPBACK, Access, token_in  # noqa: E402

PAIR = {"question": "Who lit the lamp?", "context": "At dusk the keeper, Ada, lit the lamp."}
OTHER = {"question": "Who rang the bell?", "context": "Her brother Bo rang the fog bell. " * 30}
TOKEN = "s3cret"


class Running:
    """A server in this process: its address, and the parts that a test looks at."""

    def __init__(self, qa: minibert.QuestionAnswerer, access: Access, has_page: bool) -> None:
        self.qa, self.pipe = qa, minibert.pipeline(model=qa)
        self.listener = connections.listening(access)
        port = self.listener.getsockname()[1]
        self.service = server.Service(qa, has_page)
        self.endpoint = self.service.endpoint
        self.server = server.server_for(self.service, Access(port=port, token=access.token))
        self.address = (LOOPBACK, port)
        self.url = f"http://{LOOPBACK}:{port}"
        self.client = httpx.Client(timeout=HANG, verify=False)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.thread.start()

    def post(self, body: Any, path: str = endpoint.PATH, **options: Any) -> Any:
        return self.client.post(f"{self.url}{path}", json=body, **options)

    def half(self, text: str) -> socket.socket:
        """A connection that has sent a part of a request."""
        connection = socket.create_connection(self.address, timeout=HANG)
        connection.sendall(text.replace("HOST", self.url.removeprefix("http://")).encode())
        return connection

    def send(self, body: Any) -> socket.socket:
        """A connection that has sent a request, and does not read the response."""
        text = json.dumps(body)
        return self.half(
            f"POST {endpoint.PATH} HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(text)}\r\n\r\n{text}"
        )

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Keep the thread of the model busy, so that requests wait."""
        release = threading.Event()
        self.service.turns.submit(release.wait, HANG)
        try:
            yield
        finally:
            release.set()

    def stop(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(HANG)
        self.listener.close()
        self.service.close()
        assert not self.thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is true that another thread does."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < HANG
        time.sleep(0.01)


@pytest.fixture(scope="module")
def qa(tiny: Path) -> minibert.QuestionAnswerer:
    return minibert.QuestionAnswerer.from_pretrained(tiny, precision="fp32")


@pytest.fixture(scope="module")
def shared(qa: minibert.QuestionAnswerer) -> Iterator[Running]:
    running = Running(qa, Access(port=0), has_page=False)
    yield running
    running.stop()


@pytest.fixture
def own(qa: minibert.QuestionAnswerer) -> Iterator[Running]:
    """A server of one test, with the page, which the test may stop."""
    running = Running(qa, Access(port=0), has_page=True)
    yield running
    running.stop()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The questions of each batch that is read."""
    read, log = Engine.read, []

    def logged(self: Engine, examples: Any, *rest: Any) -> Any:
        log.append([example.question for example in examples])
        return read(self, examples, *rest)

    monkeypatch.setattr(Engine, "read", logged)
    return log


# --- answers


@pytest.mark.filterwarnings("ignore:.*max_question_len=3")
@pytest.mark.parametrize(
    "parameters",
    [
        None,
        {},
        {"top_k": 3},
        {"top_k": None, "align_to_words": False},
        {"max_answer_len": 2, "max_question_len": 3},
        {"handle_impossible_answer": True, "top_k": 2},
        {"doc_stride": 8, "max_seq_len": 40},
    ],
)
def test_answers_are_the_pipelines(shared, parameters):
    wanted = [shared.pipe(pair, **(parameters or {})) for pair in (PAIR, OTHER)]
    body = {} if parameters is None else {"parameters": parameters}
    assert shared.post({"inputs": PAIR} | body).json() == wanted[0]
    assert shared.post({"inputs": PAIR} | body, "/").json() == wanted[0]
    assert shared.post({"inputs": [PAIR, OTHER]} | body).json() == wanted
    assert shared.post({"inputs": [OTHER]} | body).json() == wanted[1:]


@pytest.mark.parametrize("path", ["", "/", endpoint.PATH])
def test_the_client_of_the_hub(shared, path):
    client = InferenceClient(model=shared.url + path)
    answer = client.question_answering(**PAIR)
    assert vars(answer) == shared.pipe(PAIR)
    answers = client.question_answering(**OTHER, top_k=2, doc_stride=8, max_seq_len=40)
    wanted = shared.pipe(OTHER, top_k=2, doc_stride=8, max_seq_len=40)
    assert [vars(answer) for answer in answers] == wanted
    with pytest.raises(HfHubHTTPError, match="no words in the question"):
        client.question_answering(question=" ", context="Ada")


def test_curl(shared):
    if shutil.which("curl") is None:
        pytest.skip("apt-get install curl")
    body = json.dumps({"inputs": PAIR})
    command = ["curl", "-s", "-H", "Content-Type: application/json", "-d", body]
    result = subprocess.run([*command, shared.url + endpoint.PATH], capture_output=True)
    assert json.loads(result.stdout) == shared.pipe(PAIR)


def test_its_other_paths(shared, own):
    assert httpx.get(f"{shared.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{shared.url}/openapi.json").json()["openapi"] == "3.1.0"
    assert httpx.get(f"{shared.url}/").status_code == 405  # there is no page
    assert httpx.get(f"{shared.url}/page.js").status_code == 404
    assert "<html" in httpx.get(f"{own.url}/").text
    assert own.post({"inputs": PAIR}, "/").json() == own.pipe(PAIR)


def test_openapi_says_what_the_code_does(shared):
    api = json.loads(server.OPENAPI.read_text(encoding="utf-8"))
    schemas = api["components"]["schemas"]
    parameters = schemas["Parameters"]["properties"]
    assert list(parameters) == list(endpoint.PARAMETERS)
    for name, schema in parameters.items():
        kind = bool if "boolean" in schema["type"] else int
        default = shared.pipe.defaults[name]
        assert kind is (int if default is None else type(default))
        assert schema.get("default") == default
    assert parameters["top_k"]["maximum"] == requests.MAX_ANSWERS
    texts = schemas["Input"]["properties"]
    assert texts["question"]["maxLength"] == requests.MAX_QUESTION
    assert texts["context"]["maxLength"] == requests.MAX_CONTEXT
    inputs = schemas["Request"]["properties"]["inputs"]["oneOf"][1]
    assert inputs["maxItems"] == endpoint.MAX_INPUTS
    assert list(schemas["Answer"]["properties"]) == list(shared.pipe(PAIR))
    assert list(api["paths"]) == [endpoint.PATH, "/health", "/openapi.json"]


# --- what it refuses

LONG = "At dusk the keeper, Ada, lit the lamp. " * 4000  # 156,000 characters
WRONG = "not a request for question answering: "


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ([PAIR], 400, WRONG + "expected an object with inputs"),
        (PAIR, 400, WRONG + "it has an unknown field, 'context'; expected inputs, parameters"),
        ({"parameters": {}}, 400, WRONG + "it has no inputs"),
        ({"inputs": None}, 400, "inputs: expected an object with question, context"),
        ({"inputs": "Who?"}, 400, "inputs: expected an object with question, context"),
        ({"inputs": []}, 400, "inputs has 0 items; expected 1 to 1,000"),
        ({"inputs": [PAIR] * 1001}, 400, "inputs has 1,001 items"),
        ({"inputs": {"question": "Who?"}}, 400, "inputs: it has no context"),
        ({"inputs": [PAIR, {"context": "Ada"}]}, 400, "inputs[1]: it has no question"),
        ({"inputs": PAIR | {"id": 1}}, 400, "inputs: it has an unknown field, 'id'"),
        ({"inputs": PAIR | {"context": 1}}, 400, "inputs: the context is a int"),
        ({"inputs": PAIR | {"question": " "}}, 400, "inputs: no words in the question"),
        ({"inputs": [PAIR, PAIR | {"context": "\u200b"}]}, 400, "inputs[1]: no words in the con"),
        ({"inputs": PAIR, "parameters": []}, 400, "parameters: expected an object with top_k"),
        ({"inputs": PAIR, "parameters": {"topk": 1}}, 400, "parameters: it has an unknown field"),
        ({"inputs": PAIR, "parameters": {"batch_size": 1}}, 400, "unknown field, 'batch_size'"),
        ({"inputs": PAIR, "parameters": {"top_k": True}}, 400, "top_k: expected a whole number"),
        ({"inputs": PAIR, "parameters": {"top_k": 1.0}}, 400, "top_k: expected a whole number"),
        ({"inputs": PAIR, "parameters": {"top_k": 0}}, 400, "top_k=0: expected a whole number, 1"),
        ({"inputs": PAIR, "parameters": {"top_k": 51}}, 400, "from 1 to 50, instead of 51"),
        ({"inputs": PAIR, "parameters": {"align_to_words": 1}}, 400, "expected true or false"),
        ({"inputs": PAIR, "parameters": {"max_seq_len": 9999}}, 400, "9999, but this model has"),
        ({"inputs": PAIR, "parameters": {"max_seq_len": 6}}, 400, "inputs: max_length=6 leaves"),
        ({"inputs": PAIR | {"question": "Who? " * 401}}, 413, "the question has 2,005 characters"),
        ({"inputs": PAIR | {"context": LONG * 2}}, 413, "the context has 312,000 characters"),
        ({"inputs": [PAIR | {"context": LONG}] * 2}, 413, "list of contexts has 312,000"),
        ({"inputs": PAIR | {"context": LONG * 9}}, 413, "more than 1,213,000 bytes"),
        (
            {
                "inputs": PAIR | {"context": LONG},
                "parameters": {"max_seq_len": 64, "doc_stride": 50},
            },
            413,
            "A smaller doc_stride makes fewer windows",
        ),
        (
            {"inputs": PAIR | {"context": LONG}, "parameters": {"max_answer_len": 10**6}},
            413,
            "A smaller max_answer_len makes fewer spans",
        ),
    ],
)
def test_bad_requests_get_one_sentence(shared, body, status, named):
    response = shared.post(body)
    assert response.status_code == status and list(response.json()) == ["error"]
    assert named in response.json()["error"] and "\n" not in response.json()["error"]


def test_a_body_that_is_no_json(shared):
    headers = {"Content-Type": "application/json; charset=utf-8"}
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000):
        response = httpx.post(shared.url + endpoint.PATH, content=body, headers=headers)
        assert response.status_code == 400 and response.json()["error"].startswith(WRONG[:-2])
    response = httpx.post(shared.url + endpoint.PATH, data={"inputs": "x"})  # a form
    assert response.status_code == 415
    body = b'{"inputs": {"question": "Who?", "context": "\\ud800"}}'
    response = httpx.post(shared.url + endpoint.PATH, content=body, headers=headers)
    assert response.status_code == 400 and "lone surrogate" in response.json()["error"]


# --- many at once


def test_two_hundred_at_once(shared):
    """Fifty at a time, one bad in ten, one in seven cancelled: each gets its own response."""
    bad = [
        ({"inputs": PAIR | {"question": " "}}, "no words in the question"),
        ({"inputs": PAIR, "parameters": {"max_seq_len": 6}}, "max_length=6 leaves"),
        ({"inputs": PAIR, "parameters": {"n": 1}}, "unknown field, 'n'"),
    ]
    pairs = [
        {"question": f"Who lit lamp {k}?", "context": f"Ada lit lamp {k}. " * (1 + k % 30)}
        for k in range(200)
    ]
    answers = shared.pipe(pairs)

    def ask(k: int) -> None:
        if k % 10 == 9:
            body, named = bad[k // 10 % len(bad)]
            response = shared.post(body)
            assert response.status_code == 400 and named in response.json()["error"]
        elif k % 7 == 0:
            shared.send({"inputs": pairs[k]}).close()
        else:
            response = shared.post({"inputs": pairs[k]})
            assert response.status_code == 200
            given = response.json()
            assert given.pop("score") == pytest.approx(answers[k]["score"], abs=1e-5)
            assert given == {name: answers[k][name] for name in given}

    with ThreadPoolExecutor(50) as threads:
        assert list(threads.map(ask, range(200))) == [None] * 200
    until(lambda: not shared.endpoint.waiting and not shared.endpoint.has_turn)
    assert shared.post({"inputs": PAIR}).json() == shared.pipe(PAIR)


def waiting(running: Running, number: int) -> None:
    until(lambda: len(running.endpoint.waiting) == number)


def test_requests_that_wait_are_one_batch(shared, batches):
    """Without the bad one and the cancelled one. Settings of windows make batches of their own."""
    bodies = [
        {"inputs": PAIR},
        {"inputs": PAIR | {"question": " "}},
        {"inputs": [PAIR, OTHER], "parameters": {"top_k": 2, "max_answer_len": 5}},
        {"inputs": OTHER, "parameters": {"doc_stride": 8}},
        {"inputs": OTHER},
    ]
    with ThreadPoolExecutor(len(bodies)) as threads:
        with shared.busy():
            cancelled = shared.send({"inputs": PAIR | {"question": "Who left?"}})
            waiting(shared, 1)
            results = []
            for number, body in enumerate(bodies, start=2):
                results.append(threads.submit(shared.post, body))
                waiting(shared, number)
            cancelled.close()
            waiting(shared, len(bodies))  # the place is free at once
        responses = [result.result(HANG) for result in results]
    lamp, bell = PAIR["question"], OTHER["question"]
    assert batches == [[lamp, lamp, bell, bell], [bell]]
    assert [r.status_code for r in responses] == [200, 400, 200, 200, 200]
    assert responses[4].json()["answer"] == shared.pipe(OTHER)["answer"]
    assert [len(answers) for answers in responses[2].json()] == [2, 2]


def test_a_batch_has_a_size(shared, batches, monkeypatch):
    monkeypatch.setattr(endpoint, "BATCH_CHARACTERS", 600)  # two short ones, and one long one
    with ThreadPoolExecutor(6) as threads:
        with shared.busy():
            results = []
            for number, pair in enumerate([PAIR, PAIR, PAIR, OTHER, OTHER, PAIR], start=1):
                results.append(threads.submit(shared.post, {"inputs": pair}))
                waiting(shared, number)
        assert {result.result(HANG).status_code for result in results} == {200}
    assert [len(batch) for batch in batches] == [3, 1, 1, 1]


def test_an_error_of_one_harms_no_neighbour(shared, monkeypatch):
    """Also one that only reading shows, as when memory is too small."""
    read = Engine.read

    def failing(self: Engine, examples: Any, *rest: Any) -> Any:
        if any(example.question == "Who fails?" for example in examples):
            raise RuntimeError("it failed")
        return read(self, examples, *rest)

    monkeypatch.setattr(Engine, "read", failing)
    questions = ["Who lit it?", "Who fails?", "Who rang it?"]
    with ThreadPoolExecutor(3) as threads:
        with shared.busy():
            bodies = [{"inputs": PAIR | {"question": question}} for question in questions]
            results = [threads.submit(shared.post, body) for body in bodies]
            waiting(shared, 3)
        responses = [result.result(HANG) for result in results]
    assert [response.status_code for response in responses] == [200, 500, 200]
    assert responses[1].json() == {"error": "RuntimeError: it failed"}


def test_too_many_requests_wait(shared, monkeypatch):
    monkeypatch.setattr(endpoint, "WAITING", 2)
    with ThreadPoolExecutor(2) as threads:
        with shared.busy():
            results = [threads.submit(shared.post, {"inputs": PAIR}) for _ in range(2)]
            waiting(shared, 2)
            response = shared.post({"inputs": PAIR})
            assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
            assert "2 requests are waiting already" in response.json()["error"]
            assert httpx.get(f"{shared.url}/health").status_code == 200
        assert [result.result(HANG).status_code for result in results] == [200, 200]


def test_the_page_and_the_endpoint_take_turns(own, batches):
    """In the order in which they ask. What comes while a turn is awaited is read in it."""
    with ThreadPoolExecutor(5) as threads:
        with own.busy():
            first = threads.submit(own.post, {"inputs": PAIR | {"question": "Who was first?"}})
            waiting(own, 1)
            page = threads.submit(own.post, PAIR, "/ask")
            until(lambda: len(own.service.page.queue.jobs) == 1)
            second = threads.submit(own.post, {"inputs": PAIR | {"question": "Who was second?"}})
            waiting(own, 2)
        assert {r.result(HANG).status_code for r in (first, page, second)} == {200}
    assert batches == [["Who was first?", "Who was second?"]]


# --- slow clients, and connections


def closes(connection: socket.socket) -> bytes:
    """What a connection receives until the server closes it."""
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_half_a_request_is_not_waited_for(shared, monkeypatch):
    """Neither for the rest of its head, nor of its body. Others are answered meanwhile."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 2.0)  # for the client below, this is plenty
    monkeypatch.setattr(requests, "BODY_SECONDS", 2.0)
    head = "POST /question-answering HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\n"
    nothing, half = shared.half(""), shared.half(head)
    body = shared.half(head + "Content-Length: 1000\r\n\r\n{")
    assert shared.post({"inputs": PAIR}).status_code == 200
    assert closes(nothing) == closes(half) == b""
    response = closes(body)
    assert response.startswith(b"HTTP/1.1 408") and b"was not complete after" in response


@pytest.mark.parametrize("body", ["", "Content-Length: 10000\r\n"])
def test_what_comes_byte_by_byte(shared, monkeypatch, body):
    """The limit is for a whole head, also after a response, and for a body that nobody reads."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    connection = shared.half(f"GET /health HTTP/1.1\r\nHost: HOST\r\n{body}\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    connection.settimeout(0.05)
    for _ in range(2000):
        try:
            connection.sendall(b"G")
            if connection.recv(65536) == b"":
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    else:
        pytest.fail("it waits for ever")


def test_a_connection_without_a_request_is_kept_for_a_while(shared, monkeypatch):
    monkeypatch.setattr(shared.server.config, "timeout_keep_alive", 0.5)
    connection = shared.half("GET /health HTTP/1.1\r\nHost: HOST\r\n\r\n")
    assert closes(connection).endswith(b'{"status":"ok"}')


def test_a_response_is_sent_at_once(shared):
    """Without TCP_NODELAY, each response on a kept connection waits 40 ms for the client."""
    with httpx.Client() as client:
        assert client.get(f"{shared.url}/health").status_code == 200
        states = [
            connection.transport.get_extra_info("socket")
            for connection in shared.server.server_state.connections
        ]
        assert states and all(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for s in states)


# --- the token


@pytest.fixture(scope="module")
def locked(qa: minibert.QuestionAnswerer) -> Iterator[Running]:
    running = Running(qa, Access(port=0, token=TOKEN), has_page=True)
    yield running
    running.stop()


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
        (basic(f":{TOKEN}"), 200),
        (basic(f"anyone:{TOKEN}"), 200),
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer wrong", 401),
        (f"Bearer {TOKEN}x", 401),
        (TOKEN, 401),
        (f"Digest {TOKEN}", 401),
        (basic(f"{TOKEN}:"), 401),
        ("Basic not base64", 401),
        ("Bearer \xe9", 401),
    ],
)
def test_every_request_needs_the_token(locked, authorization, status):
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    responses = [
        locked.post({"inputs": PAIR}, headers=headers),
        locked.post(PAIR, "/ask", headers=headers),
        httpx.get(f"{locked.url}/", headers=headers),
        httpx.get(f"{locked.url}/openapi.json", headers=headers),
    ]
    assert [response.status_code for response in responses] == [status] * 4
    assert httpx.get(f"{locked.url}/health", headers=headers).status_code == 200
    if status == 401:
        assert "needs its token" in responses[0].json()["error"]
        assert TOKEN not in responses[0].text
        schemes = [s.split()[0] for s in responses[0].headers.get_list("www-authenticate")]
        assert schemes == ["Bearer", "Basic"]


def test_the_client_of_the_hub_sends_the_token(locked):
    client = InferenceClient(model=locked.url, token=TOKEN)
    assert vars(client.question_answering(**PAIR)) == locked.pipe(PAIR)
    with pytest.raises(HfHubHTTPError, match="401"):
        InferenceClient(model=locked.url, token="other").question_answering(**PAIR)


def test_a_browser_asks_for_the_token(locked, browser):
    """Its own dialog does: the token is the password, with any name."""
    stranger = browser.new_context()
    with pytest.raises(Exception, match="AUTH_CREDENTIALS"):  # the dialog, closed
        stranger.new_page().goto(locked.url)
    stranger.close()
    context = browser.new_context(http_credentials={"username": "", "password": TOKEN})
    page = context.new_page()
    page.set_default_timeout(1000 * HANG)
    assert page.goto(locked.url).status == 200
    page.locator("button.ask").click()
    page.locator("#passage mark.chosen").first.wait_for()
    context.close()


def test_a_token_in_no_form():
    assert token_in("Bearer a b") == "a b" and token_in("Basic ====") == ""


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"host": "0.0.0.0"}, "host=0.0.0.0: other computers reach this address, so --token"),
        ({"host": "::"}, "so --token is necessary"),
        ({"host": "192.0.2.1"}, "so --token is necessary"),
        ({"host": "a host"}, "not an address"),
        ({"host": "0.0.0.0", "token": ""}, "token: expected ASCII characters"),
        ({"token": "with space"}, "token: expected ASCII characters"),
        ({"token": "é"}, "token: expected ASCII characters"),
    ],
)
def test_what_cannot_be_opened(given, named):
    with pytest.raises(minibert.InputError, match=re.escape(named)) as error:
        Access(**given)
    assert "with space" not in str(error.value)  # it is a secret
    for host in ("127.0.0.1", "127.0.0.2", "localhost", "::1"):
        assert not Access(host).is_open
    assert "secret" not in repr(Access(token="secret"))


def test_an_address_of_another_computer():
    with pytest.raises(minibert.InputError, match="not an address of this computer"):
        connections.listening(Access("192.0.2.1", 0, token=TOKEN))


@pytest.mark.filterwarnings("ignore:Using `httpx` with")
@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("qa.example.org", None, 200),  # by every name, because the token is necessary
        ("qa.example.org:8123", "http://qa.example.org:8123", 200),
        ("qa.example.org", "https://qa.example.org", 200),
        ("qa.example.org", "http://other.example.org", 403),
        ("qa.example.org", "null", 403),
        ("internal:8123", "https://public.example.org", 200),  # --allow-host
    ],
)
def test_an_open_address(qa, host, origin, status):
    from starlette.testclient import TestClient

    service = server.Service(qa)
    access = Access("0.0.0.0", 8123, ["public.example.org"], TOKEN)
    client = TestClient(service.app(access))
    headers = {"Host": host} | ({"Origin": origin} if origin else {})
    with_token = headers | {"Authorization": f"Bearer {TOKEN}"}
    assert client.post("/", json={"inputs": PAIR}, headers=with_token).status_code == status
    refused = client.post("/", json={"inputs": PAIR}, headers=headers).status_code
    assert refused == (401 if status == 200 else 403)
    service.close()


# --- the end


def test_the_end_waits_for_what_is_read(own, monkeypatch):
    """What is being read gets its answer, and what waits or comes later is refused."""
    read, reading, release = Engine.read, threading.Event(), threading.Event()

    def held(self: Engine, *given: Any) -> Any:
        reading.set()
        assert release.wait(HANG)
        return read(self, *given)

    monkeypatch.setattr(Engine, "read", held)
    slow = own.half("POST / HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\n")
    body = own.half(
        "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\n"
        "Content-Length: 1000\r\n\r\n{"
    )
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(own.post, {"inputs": PAIR})
        assert reading.wait(HANG)
        second = threads.submit(own.post, {"inputs": PAIR})
        waiting(own, 1)
        own.server.should_exit = True
        response = second.result(HANG)
        assert response.status_code == 503 and "the server ends" in response.json()["error"]
        assert closes(slow) == closes(body) == b""  # they delay nothing
        assert own.thread.is_alive() and not first.done()
        release.set()
        assert first.result(HANG).json() == own.pipe(PAIR)
    own.thread.join(HANG)
    assert not own.thread.is_alive()
    with pytest.raises(httpx.ConnectError):
        own.post({"inputs": PAIR})


def start(tiny: Path, folder: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """`minibert serve` with the tiny model and a token in the environment -> process, address."""
    command = [sys.executable, "-m", "minibert", "serve", "--model", str(tiny.absolute())]
    ours = {"HOME": str(folder), "PYTHONPATH": os.pathsep.join(sys.path), "MINIBERT_TOKEN": TOKEN}
    process = subprocess.Popen(
        [*command, "--port", "0", "--no-page", *options],
        cwd=folder,
        env=os.environ | ours,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    match = re.match(r"(http://127\.0\.0\.1:\d+/question-answering) ", line)
    assert match, line + process.stderr.read()
    return process, match[1]


@needs_signals
def test_a_server_for_other_computers(tiny, tmp_path):
    """It says what it opens. SIGTERM during a long answer ends it after this answer."""
    process, url = start(tiny, tmp_path, "--host", "0.0.0.0")
    body = {"inputs": PAIR}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert httpx.post(url, json=body, timeout=HANG).status_code == 401
    assert httpx.post(url, json=body, headers=headers, timeout=HANG).status_code == 200
    assert httpx.get(url.replace(endpoint.PATH, "/health")).status_code == 200
    long = {"inputs": PAIR | {"context": LONG}}
    result: Future[Any]
    with ThreadPoolExecutor(1) as threads:
        result = threads.submit(httpx.post, url, json=long, headers=headers, timeout=HANG)
        time.sleep(0.5)  # it is probably being read; if not, it is refused
        process.send_signal(signal.SIGTERM)
        assert result.result(HANG).status_code in (200, 503)
    assert process.wait(HANG) == 0
    [line] = process.stderr.read().splitlines()
    assert "every computer that reaches this one and knows the token can ask" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@needs_proc
def test_memory_stays_flat(tiny, tmp_path):
    """5,000 requests, over 500 connections. They have one length, because torch keeps a kernel for
    each shape of a batch: with many lengths, memory grows until all shapes have come.
    """
    process, url = start(tiny, tmp_path)

    def memory() -> float:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # MB

    def ask(number: int) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(headers=headers, timeout=HANG) as client:
            for _ in range(number):
                response = client.post(url, json={"inputs": PAIR})
                assert response.status_code == 200

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(ask, [10] * 100))  # 100 connections
        before = memory()
        list(threads.map(ask, [10] * 400))
    after = memory()
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG) == 0
    print(f"{before:.0f} MB after 1,000 requests, {after:.0f} MB after 5,000")
    assert after < before + 20
