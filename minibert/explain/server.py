"""The live page: question and passage in, the same explanation out, as lines of JSON.

Every program on this computer can ask, also one of another user. Other computers cannot, because
the server listens on the loopback address. Other web pages cannot, because the server refuses
requests with another Host or Origin. It writes no file.
"""

import asyncio
import json
import os
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from .explanation import attribute
from .page import asset, linked, scripts

ADDRESS = "127.0.0.1"
MAX_QUESTION, MAX_CONTEXT = 2_000, 200_000  # characters; reading takes at most a minute
MAX_BYTES = 6 * (MAX_QUESTION + MAX_CONTEXT) + 1_000  # in JSON "\\u0000" has 6 bytes
MAX_ANSWERS = 50
WAITING = 8  # requests that wait while the server works on another one
UNASKED_WINDOWS = 4  # up to this number, attribution takes seconds and starts by itself
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

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


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
            raise Refused(400, f"number of answers: {self.top_k}; expected 1 to {MAX_ANSWERS}")


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


class Live:
    """Works on one question at a time, in a thread. A few more questions can wait."""

    def __init__(self, qa: QuestionAnswerer) -> None:
        self.qa = qa
        self.thread = ThreadPoolExecutor(1)
        self.places = threading.Semaphore(1 + WAITING)
        self.closing = threading.Event()

    def app(self, port: int, allowed: Sequence[str] = ()) -> ASGIApp:
        names = scripts("server.js")
        page = linked(None, names)  # the security policy is in HEADERS
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
            return JSONResponse({"error": str(refused)}, refused.status)
        lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        loop, stop = asyncio.get_running_loop(), threading.Event()

        def put(line: dict[str, Any] | None) -> None:
            if not self.closing.is_set():  # otherwise the loop may have ended
                loop.call_soon_threadsafe(lines.put_nowait, line)

        def tell(line: dict[str, Any]) -> None:
            if stop.is_set() or self.closing.is_set():
                raise Stopped
            put(line)

        def work() -> None:
            try:
                self.answer(asked, tell)
            except Stopped:
                pass
            except MinibertError as error:
                put({"error": " ".join(str(error).split())})
            except Exception as error:  # our mistake: tell the page, so it does not wait for ever
                put({"error": f"{type(error).__name__}: {error}"})
            finally:
                self.places.release()
                put(None)

        async def stream() -> AsyncIterator[str]:
            try:
                while (line := await lines.get()) is not None:
                    yield json.dumps(line, allow_nan=False) + "\n"
            finally:
                stop.set()  # the browser left, or has every line

        self.thread.submit(work)
        return StreamingResponse(stream(), media_type="application/x-ndjson")

    def answer(self, asked: Asked, tell: Callable[[dict[str, Any]], None]) -> None:
        """Call `tell` with the explanation, then its attribution, and the progress of both."""
        explanation = self.qa.explain(
            asked.question,
            asked.context,
            asked.top_k,
            no_answer=asked.no_answer,
            attribution=False,
            on_progress=lambda done, total: tell({"reading": (done, total)}),
        )
        tell({"explanation": explanation.to_dict()})
        if not asked.attribution and len(explanation.windows) > UNASKED_WINDOWS:
            tell({"skipped": True})
            return
        parts = attribute(
            self.qa, explanation, lambda done, total: tell({"progress": (done, total)})
        )
        tell({"attribution": asdict(parts)})


async def read_question(request: Request) -> Asked:
    """The question in the body of a request. Raises `Refused`, also for a body that is too long."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise Refused(415, "expected application/json")
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
    try:
        return Asked(**json.loads(body))
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused(400, f"not a question in the page's format: {error}") from error


def serve(
    qa: QuestionAnswerer, port: int, on_ready: Callable[[str], None], allowed: Sequence[str] = ()
) -> None:
    """Serve the page on the loopback address until Ctrl-C. Port 0 chooses a free port.

    `on_ready` gets the page's address. `allowed` is explained at `Guard`. Raises `InputError` for a
    port that cannot be used, and for a wrong item in `allowed`.
    """
    with socket.socket() as listener:
        if os.name == "posix":  # on Windows this would share the port with another program
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, port))
        except OSError as error:
            raise InputError(f"port {port} cannot be used: {error.strerror}") from error
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
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn raises it again after closing everything
            pass
        finally:
            live.closing.set()
            live.thread.shutdown(cancel_futures=True)
