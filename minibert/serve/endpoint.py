"""`POST /question-answering`: the task of Hugging Face, with the answers of `minibert.pipeline`.

The body is {"inputs": {"question", "context"}, "parameters": {...}}. `inputs` may also be a list of
such objects. The parameters are `PARAMETERS`. The answer to a question is what the pipeline
returns: {"score", "start", "end", "answer"}, or with `top_k` > 1 a list of these. For a list of
inputs the response is a list. (`huggingface_hub`, inference/_generated/types/question_answering.py)
"""

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..answers import answers_of
from ..batches import QUESTION_CHARACTERS
from ..data.examples import Example
from ..dropin import DEFAULTS, checked, pipeline, shaped, to_example
from ..engine import Engine
from ..errors import MinibertError
from ..reader import QuestionAnswerer
from ..settings import AnswerSettings, WindowSettings
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

PATH = "/question-answering"
PARAMETERS = (
    *("top_k", "doc_stride", "max_answer_len", "max_seq_len", "max_question_len"),
    *("handle_impossible_answer", "align_to_words"),
)
MAX_INPUTS = 1_000  # in one request
# For one request. 200,000 characters have fewer with the default settings.
MAX_TOKENS = 500_000  # in all windows
MAX_SPANS = 10_000_000  # each needs about 40 bytes while they are compared
WAITING = 128  # requests that wait while the server reads others
# Waiting requests with this many characters together are read as one batch: about 50 SQuAD
# questions, for which two cores need about a second.
BATCH_CHARACTERS = 50_000

WRONG = "not a request for question answering"  # the beginning of a message
GONE = 499  # nginx's status for a client that did not wait; nobody receives it


@dataclass(frozen=True, eq=False)
class Call:
    """A request, checked: its questions, how to read them, and which answers are wanted."""

    examples: list[Example]
    several: bool  # the inputs are a list
    engine: Engine
    wanted: AnswerSettings
    # The questions' answers as JSON, or the error; cancelled when the client has gone. An error is
    # a result too: an exception that nobody reads would be printed.
    result: "Future[list[Any] | Exception]" = field(default_factory=Future)

    @property
    def characters(self) -> int:
        texts = (len(e.question) + len(e.context) for e in self.examples)
        return sum(texts) + QUESTION_CHARACTERS * len(self.examples)

    def require_readable(self) -> None:
        """Raise the error that reading would raise, and `Refused` if there is too much to read."""
        longest = min(self.wanted.max_answer_len, self.engine.window_settings.max_length)
        tokens = spans = 0
        for windows in self.engine.windows_of(self.examples, {}):
            tokens += sum(map(len, windows))
            spans += len(windows[0].context) * longest
        if tokens > MAX_TOKENS:
            reason = f"the windows have {tokens:,} tokens; this server reads up to {MAX_TOKENS:,}"
            raise Refused(413, f"{reason}. A smaller doc_stride makes fewer windows")
        if spans > MAX_SPANS:
            reason = f"{spans:,} spans can be the answer; this server compares up to {MAX_SPANS:,}"
            raise Refused(413, f"{reason}. A smaller max_answer_len makes fewer spans")


class Endpoint:
    """Answers requests, in the thread of `turns`.

    At a turn, the requests that wait are read together. A request whose client has gone is not
    read. The turns come in the order in which they were asked for, and the page's questions have
    turns of their own.
    """

    def __init__(self, qa: QuestionAnswerer, turns: ThreadPoolExecutor) -> None:
        self.pipe = pipeline(model=qa)
        self.turns = turns
        self.lock = threading.Lock()  # for what follows
        self.waiting: list[Call] = []
        self.has_turn = False  # a turn is coming, or is now
        self.closing = False

    async def answer(self, request: Request) -> Response:
        try:
            call = self.call_of(await read_json(request, WRONG))
            self.join(call)
            answers = await self.outcome(call, request)
        except Refused as refused:
            return refused.response()
        except MinibertError as error:
            return JSONResponse({"error": one_line(error)}, 400)
        except Exception as error:  # our mistake
            return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 500)
        if answers is None:
            return Response(status_code=GONE)
        return JSONResponse(answers if call.several else answers[0])

    def call_of(self, body: Any) -> Call:
        """A body as a call. Raises `Refused` and `InputError`."""
        require_object(body, WRONG, ["inputs"], ["parameters"])
        inputs, parameters = body["inputs"], body.get("parameters")
        parameters = {} if parameters is None else parameters
        require_object(parameters, "parameters", optional=PARAMETERS)
        for name, value in parameters.items():
            if value is not None:
                require_kind(name, value, bool if isinstance(DEFAULTS[name], bool) else int)
        chosen = self.pipe.defaults | checked(parameters)
        require_top_k(chosen["top_k"])
        several = isinstance(inputs, list)
        pairs = inputs if several else [inputs]
        if not 1 <= len(pairs) <= MAX_INPUTS:
            raise Refused(400, f"inputs has {len(pairs):,} items; expected 1 to {MAX_INPUTS:,}")
        examples = []
        for index, pair in enumerate(pairs):
            name = f"inputs[{index}]" if several else "inputs"
            require_object(pair, name, ["question", "context"])
            examples.append(to_example(name, pair))
            require_length("question", len(pair["question"]), MAX_QUESTION)
        what = "list of contexts" if several else "context"
        require_length(what, sum(len(e.context) for e in examples), MAX_CONTEXT)
        return Call(examples, several, *self.pipe.reading(chosen))

    def join(self, call: Call) -> None:
        """Let a call wait for its turn. Raises `Refused` if too many wait."""
        with self.lock:
            if self.closing:
                raise Refused(503, "the server ends: ask again later")
            if len(self.waiting) >= WAITING:
                raise Refused(503, f"{WAITING} requests are waiting already: ask again later")
            self.waiting.append(call)
            if not self.has_turn:
                self.has_turn = True
                self.turns.submit(self.turn)

    async def outcome(self, call: Call, request: Request) -> list[Any] | None:
        """The answers to a call. None: the client has gone. Raises the errors of reading."""
        result = asyncio.wrap_future(call.result)
        gone = asyncio.ensure_future(request.receive())  # after the body, this is its leaving
        try:
            await asyncio.wait((result, gone), return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                return None
            answers = result.result()
        finally:
            gone.cancel()
            call.result.cancel()  # without effect if its turn has begun
            with self.lock, suppress(ValueError):
                self.waiting.remove(call)
        if isinstance(answers, Exception):
            raise answers
        return answers

    def take(self) -> list[Call]:
        """The calls of this turn: all that wait, up to `BATCH_CHARACTERS`."""
        characters, count = 0, 0
        with self.lock:
            while count < len(self.waiting) and characters < BATCH_CHARACTERS:
                characters += self.waiting[count].characters
                count += 1
            calls, self.waiting = self.waiting[:count], self.waiting[count:]
        return [call for call in calls if call.result.set_running_or_notify_cancel()]

    def turn(self) -> None:
        """Read the calls that wait. Those that come meanwhile ask for another turn."""
        try:
            batches: dict[WindowSettings, list[Call]] = {}
            for call in self.take():
                try:
                    call.require_readable()
                except Exception as error:
                    call.result.set_result(error)
                else:
                    batches.setdefault(call.engine.window_settings, []).append(call)
            for calls in batches.values():
                read(calls)
        finally:
            with self.lock:
                self.has_turn = bool(self.waiting)
                if self.has_turn:
                    self.turns.submit(self.turn)

    def stop(self) -> None:
        """Refuse what waits. What is being read still gets its answer."""
        with self.lock:
            self.closing, calls, self.waiting = True, self.waiting, []
        for call in calls:
            if call.result.set_running_or_notify_cancel():
                call.result.set_result(Refused(503, "the server ends: ask again later"))


def read(calls: list[Call]) -> None:
    """Read calls as one batch, and set their results. An error sends each call through alone."""
    try:
        readings = calls[0].engine.read([e for call in calls for e in call.examples])
        for call in calls:
            answers = [answers_of(next(readings), call.wanted) for _ in call.examples]
            call.result.set_result([shaped(best, call.wanted.top_k) for best in answers])
    except Exception as error:
        left = [call for call in calls if not call.result.done()]
        if len(calls) == 1:
            left[0].result.set_result(error)
            return
        for call in left:
            read([call])
