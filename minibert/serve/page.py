"""The live page: question and passage in, the same explanation out, as lines of JSON.

It writes no file.
"""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ..errors import MinibertError
from ..explain.explanation import BOTH_WAYS, STEPS, Explanation, attribute
from ..explain.page import asset, linked, scripts
from ..reader import QuestionAnswerer
from .requests import (
    MAX_CONTEXT,
    MAX_QUESTION,
    Refused,
    one_line,
    read_json,
    require_kind,
    require_length,
    require_object,
    require_top_k,
)

WAITING = 8  # questions that wait while the server works on another one
CUT = {"cut": True}  # instead of a line: the server ends before the answer is complete


class Stopped(Exception):
    """The browser no longer waits for the answer."""


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
            require_kind(field.name, getattr(self, field.name), field.type)
        require_length("question", len(self.question), MAX_QUESTION)
        require_length("passage", len(self.context), MAX_CONTEXT)
        require_top_k(self.top_k)


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
    """Answers the page's questions, each at its turn, in the thread of `turns`.

    A few questions can wait. Another thread computes attributions, one at a time, and only while no
    question of the page waits.
    """

    def __init__(self, qa: QuestionAnswerer, turns: ThreadPoolExecutor) -> None:
        self.qa = qa
        self.turns, self.later = turns, ThreadPoolExecutor(1)
        self.places = threading.Semaphore(1 + WAITING)
        self.queue = Queue()
        self.closing = threading.Event()
        self.open: set[asyncio.Queue[dict[str, Any] | None]] = set()  # the lines of each browser

    def routes(self) -> list[Route]:
        """The page with its parts, and the path that it asks."""
        names = scripts("server.js")
        page = linked(None, names)  # its security policy is in `guard.HEADERS`
        parts = {
            "/": (page, "text/html"),
            "/page.css": (asset("page.css"), "text/css"),
            **{f"/{name}": (asset(name), "text/javascript") for name in names},
        }

        async def part(request: Request) -> Response:
            text, kind = parts[request.url.path]
            return Response(text, media_type=kind)

        return [*(Route(path, part) for path in parts), Route("/ask", self.ask, methods=["POST"])]

    async def ask(self, request: Request) -> Response:
        try:
            asked = await read_question(request)
            if self.closing.is_set() or not self.places.acquire(blocking=False):
                raise Refused(503, f"{WAITING} questions are waiting already: ask again later")
        except Refused as refused:
            return refused.response()
        lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(line: dict[str, Any] | None) -> None:
            if not self.closing.is_set():  # otherwise the loop may have ended
                loop.call_soon_threadsafe(lines.put_nowait, line)

        job = Job(asked, put, self.closing)
        self.queue.join(job)
        self.open.add(lines)

        async def stream() -> AsyncIterator[str]:
            try:
                while (line := await lines.get()) is not None:
                    if line is CUT:
                        raise Stopped
                    yield json.dumps(line, allow_nan=False) + "\n"
            finally:
                self.open.discard(lines)
                job.left.set()  # or it has every line
                self.queue.wake()

        self.turns.submit(self.work, job)
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
            job.put({"error": one_line(error)})
        except Exception as error:  # our mistake: tell the page, so it does not wait for ever
            job.put({"error": f"{type(error).__name__}: {error}"})

    def end(self, job: Job) -> None:
        self.places.release()
        job.put(None)

    def stop(self) -> None:
        """End the work at the next line that it tells, and cut all answers. Called in the loop."""
        self.closing.set()
        self.queue.wake()
        for lines in self.open:
            lines.put_nowait(CUT)


async def read_question(request: Request) -> Asked:
    """The question in the body of a request. Raises `Refused`."""
    wrong = "not a question in the page's format"
    given = await read_json(request, wrong)
    names = [field.name for field in fields(Asked)]
    require_object(given, wrong, names[:2], names[2:])
    return Asked(**given)
