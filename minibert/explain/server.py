"""The live page: question and passage in, the same explanation out, as lines of JSON.

Every program on this computer can ask, also one of another user. Other computers cannot, because
the server listens on the loopback address. Other web pages cannot, because the server refuses
requests with another Host or Origin. It writes no file.
"""

import asyncio
import json
import os
import re
import signal
import socket
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import InputError, MinibertError
from ..reader import QuestionAnswerer
from .explanation import BOTH_WAYS, STEPS, Explanation, attribute
from .page import asset, linked, scripts

ADDRESS = "127.0.0.1"
MAX_QUESTION, MAX_CONTEXT = 2_000, 200_000  # characters; reading takes at most a minute
MAX_BYTES = 6 * (MAX_QUESTION + MAX_CONTEXT) + 1_000  # in JSON "\\u0000" has 6 bytes
MAX_ANSWERS = 50
WAITING = 8  # requests that wait while the server works on another one
BODY_SECONDS = 60  # for sending a question, also through a slow tunnel
KINDS: dict[Any, str] = {str: "text", int: "a whole number", bool: "true or false"}

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Stopped(Exception):
    """The browser no longer waits for the answer."""


class Refused(Exception):
    """A request that the server does not accept: the HTTP status and the reason."""

    def __init__(self, status: int, reason: str, close: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = {"Connection": "close"} if close else {}


@dataclass(frozen=True)
class Asked:
    """The question that the page sends. Raises `Refused` for wrong types and sizes."""

    question: str
    context: str
    top_k: int = 10
    no_answer: bool = False
    attribution: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            # not isinstance: it accepts True as an int
            if type(getattr(self, field.name)) is not field.type:
                raise Refused(400, f"{field.name}: expected {KINDS[field.type]}")
        for name, limit in (("question", MAX_QUESTION), ("context", MAX_CONTEXT)):
            if (length := len(getattr(self, name))) > limit:
                what = "passage" if name == "context" else name
                raise Refused(
                    413,
                    f"the {what} has {length:,} characters; this page reads up to {limit:,}. "
                    "The command `minibert answer` has no limit",
                )
        if not 1 <= self.top_k <= MAX_ANSWERS:
            wanted = f"from 1 to {MAX_ANSWERS}"
            raise Refused(400, f"Choose a number of answers {wanted}, instead of {self.top_k}.")


def address_of(host: str) -> str:
    """A Host header in one form: in lower case, and without the port that browsers leave out.

    >>> address_of("LOCALHOST:80"), address_of("localhost:8123")
    ('localhost', 'localhost:8123')
    """
    return host.lower().removesuffix(":80")


class Guard:
    """Refuses requests of other pages, and adds the security headers to every response.

    A browser may reach the page through a tunnel, by another address. `allowed` has such addresses.
    Raises `InputError` for one that is not a host, or a host with a port.
    """

    def __init__(self, app: ASGIApp, port: int, allowed: Sequence[str] = ()) -> None:
        for host in allowed:
            if not re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]+)?", host):
                raise InputError(f"allow_host={host!r}: expected HOST or HOST:PORT")
        self.app = app
        own = [address_of(f"{name}:{port}") for name in (ADDRESS, "localhost")]
        others = [address_of(host) for host in allowed]
        self.hosts = {*own, *others}
        # a tunnel may encrypt
        self.origins = {f"http://{host}" for host in self.hosts} | {f"https://{h}" for h in others}

    def accepts(self, headers: Headers) -> bool:
        """Whether a request comes from this page, or from no page."""
        origin = headers.get("origin")
        own = origin is None or address_of(origin) in self.origins
        return own and address_of(headers.get("host", "")) in self.hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self.app
        if not self.accepts(Headers(scope=scope)):
            message = "this server answers only its own page; for a tunnel, see --allow-host"
            app = JSONResponse({"error": message}, 403)
        await app(scope, receive, send_guarded)


class Job:
    """A question of one browser. `put` sends the browser a line of the answer; None is the end."""

    def __init__(
        self, asked: Asked, put: Callable[[dict[str, Any] | None], None], closing: threading.Event
    ) -> None:
        self.asked, self.put = asked, put
        self.left, self.closing = threading.Event(), closing  # the browser left; the server ends

    def check(self) -> None:
        """Raise `Stopped` if nobody waits for the answer any more."""
        if self.left.is_set() or self.closing.is_set():
            raise Stopped

    def tell(self, line: dict[str, Any]) -> None:
        self.check()
        self.put(line)


class Queue:
    """The questions that have no answer yet. The server works on the first one."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.changed = threading.Condition()

    def join(self, job: Job) -> None:
        with self.changed:
            if self.jobs:
                job.put({"waiting": len(self.jobs)})
            self.jobs.append(job)

    def leave(self, job: Job) -> None:
        """Remove a question, and tell the others how many questions are before them now."""
        with self.changed:
            self.jobs.remove(job)
            for place, other in enumerate(self.jobs):
                other.put({"waiting": place})
            self.changed.notify_all()

    def wake(self) -> None:
        """Let `let_pass` look again whether somebody waits for its attribution."""
        with self.changed:
            self.changed.notify_all()

    def let_pass(self, job: Job) -> None:
        """Wait until there is no question. `job` has its answer already."""
        with self.changed:
            while self.jobs:
                job.tell({"waiting": len(self.jobs)})
                self.changed.wait()


class Live:
    """Answers one question at a time, in a thread. A few more questions can wait.

    Another thread computes attributions, one at a time, while there are no questions.
    """

    def __init__(self, qa: QuestionAnswerer) -> None:
        self.qa = qa
        self.thread, self.later = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.places = threading.Semaphore(1 + WAITING)
        self.queue = Queue()
        self.closing = threading.Event()

    def app(self, port: int, allowed: Sequence[str] = ()) -> ASGIApp:
        names = scripts("server.js")
        page = linked(None, names)  # its security policy is in HEADERS
        parts = {
            "/": (page, "text/html"),
            "/page.css": (asset("page.css"), "text/css"),
            **{f"/{name}": (asset(name), "text/javascript") for name in names},
        }

        async def part(request: Request) -> Response:
            text, kind = parts[request.url.path]
            return Response(text, media_type=kind)

        routes = [Route(path, part) for path in parts]
        routes.append(Route("/ask", self.ask, methods=["POST"]))
        return Guard(Starlette(routes=routes), port, allowed)

    async def ask(self, request: Request) -> Response:
        try:
            asked = await read_question(request)
            if not self.places.acquire(blocking=False):
                raise Refused(503, f"{WAITING} questions are waiting already: ask again later")
        except Refused as refused:
            return JSONResponse({"error": str(refused)}, refused.status, refused.headers)
        lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(line: dict[str, Any] | None) -> None:
            if not self.closing.is_set():  # otherwise the loop may have ended
                loop.call_soon_threadsafe(lines.put_nowait, line)

        job = Job(asked, put, self.closing)
        self.queue.join(job)

        async def stream() -> AsyncIterator[str]:
            try:
                while (line := await lines.get()) is not None:
                    yield json.dumps(line, allow_nan=False) + "\n"
            finally:
                job.left.set()  # or it has every line
                self.queue.wake()

        self.thread.submit(self.work, job)
        return StreamingResponse(stream(), media_type="application/x-ndjson")

    def work(self, job: Job) -> None:
        """Answer a question. An attribution, if it asks for one, comes later."""
        explanation = None
        with self.until_told(job):
            explanation = self.answer(job)
        self.queue.leave(job)
        if explanation and job.asked.attribution:
            self.later.submit(self.attribute, job, explanation)
        else:
            self.end(job)

    def answer(self, job: Job) -> Explanation:
        begin, asked = time.perf_counter(), job.asked
        job.check()
        explanation = self.qa.explain(
            asked.question,
            asked.context,
            asked.top_k,
            no_answer=asked.no_answer,
            attribution=False,
            on_progress=lambda done, total: job.tell({"reading": (done, total)}),
        )
        job.tell({"explanation": explanation.to_dict()})
        if not asked.attribution:
            job.tell({"skipped": BOTH_WAYS * STEPS * (time.perf_counter() - begin)})
        return explanation

    def attribute(self, job: Job, explanation: Explanation) -> None:
        """Compute an attribution. It takes long, so it waits whenever there is a question."""

        def tell(done: int, total: int) -> None:
            self.queue.let_pass(job)
            job.tell({"progress": (done, total)})

        with self.until_told(job):
            self.queue.let_pass(job)
            job.tell({"attribution": asdict(attribute(self.qa, explanation, tell))})
        self.end(job)

    @contextmanager
    def until_told(self, job: Job) -> Iterator[None]:
        """Tell the browser what went wrong."""
        try:
            yield
        except Stopped:
            pass
        except MinibertError as error:
            job.put({"error": " ".join(str(error).split())})
        except Exception as error:  # our mistake: tell the page, so it does not wait for ever
            job.put({"error": f"{type(error).__name__}: {error}"})

    def end(self, job: Job) -> None:
        self.places.release()
        job.put(None)

    def close(self) -> None:
        """End the work, at the next line that it tells."""
        self.closing.set()
        self.queue.wake()
        for thread in (self.thread, self.later):
            thread.shutdown(cancel_futures=True)


async def read_question(request: Request) -> Asked:
    """The question in the body of a request.

    Raises `Refused`, also for a body that is too long or does not end.
    """
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise Refused(415, "expected application/json")
    try:
        body = await asyncio.wait_for(read_body(request), BODY_SECONDS)
    except asyncio.TimeoutError:
        reason = f"the question was not complete after {BODY_SECONDS} s"
        raise Refused(408, reason, close=True) from None
    wrong = "not a question in the page's format: "
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, f"{wrong}it is not JSON") from None
    if not isinstance(given, dict):
        raise Refused(400, f"{wrong}expected an object with question and context")
    if unknown := given.keys() - {field.name for field in fields(Asked)}:
        raise Refused(400, f"{wrong}it has an unknown field, {min(unknown)!r}")
    if lacks := {"question", "context"} - given.keys():
        raise Refused(400, f"{wrong}it has no {min(lacks)}")
    return Asked(**given)


async def read_body(request: Request) -> bytes:
    """The body of a request. Raises `Refused` if it is too long."""
    body, size = b"", 0
    async for part in request.stream():
        size += len(part)
        # Much of a body that is too long is read and dropped; otherwise no browser shows our error.
        if size <= MAX_BYTES:
            body += part
        elif size > 100 * MAX_BYTES:
            break
    if size > MAX_BYTES:
        limits = f"{MAX_BYTES:,} bytes; this page reads up to {MAX_CONTEXT:,} characters"
        raise Refused(413, f"more than {limits}")
    return body


def serve(
    qa: QuestionAnswerer, port: int, on_ready: Callable[[str], None], allowed: Sequence[str] = ()
) -> None:
    """Serve the page on the loopback address until Ctrl-C or SIGTERM. Port 0 chooses a free port.

    `on_ready` gets the page's address. `allowed` is explained at `Guard`. Raises `InputError` for a
    port that cannot be used, and for a wrong item in `allowed`.
    """
    with socket.socket() as listener:
        if os.name == "posix":  # on Windows this would share the port with another program
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, port))
        except OSError as error:
            reason = f"{error.strerror}; --port 0 takes any free port"
            raise InputError(f"port {port} cannot be used: {reason}") from error
        listener.listen()
        port = listener.getsockname()[1]
        live = Live(qa)
        config = uvicorn.Config(
            live.app(port, allowed),
            lifespan="off",
            log_level="critical",
            timeout_graceful_shutdown=0,
        )
        on_ready(f"http://{ADDRESS}:{port}/")
        try:
            with warnings.catch_warnings(), sigterm_as_ctrl_c():
                # the page itself says which part of a long question was not read
                warnings.simplefilter("ignore", UserWarning)
                uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn raises it again after closing everything
            pass
        finally:
            live.close()


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM raise `KeyboardInterrupt`. Only a main thread can do this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
