"""The body of a request: read with limits of time and size, and checked.

What is wrong raises `Refused`. The limits are the same for the page and for other programs. Reading
a request that keeps them takes about a minute at most.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

MAX_QUESTION, MAX_CONTEXT = 2_000, 200_000  # characters
MAX_BYTES = 6 * (MAX_QUESTION + MAX_CONTEXT) + 1_000  # in JSON "\\u0000" has 6 bytes
MAX_ANSWERS = 50
BODY_SECONDS = 60  # for sending a body, also through a slow tunnel
RETRY_SECONDS = 1  # when a client may ask again that the server had no place for

KINDS: dict[Any, str] = {str: "text", int: "a whole number", bool: "true or false"}


class Refused(Exception):
    """A request that the server does not accept: the HTTP status and the reason."""

    def __init__(self, status: int, reason: str, close: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = {"Connection": "close"} if close else {}
        if status == 503:
            self.headers["Retry-After"] = str(RETRY_SECONDS)

    def response(self) -> Response:
        return JSONResponse({"error": str(self)}, self.status, self.headers)


def one_line(error: Exception) -> str:
    """The message of an error of ours, as the command line prints it."""
    return " ".join(str(error).split())


async def read_json(request: Request, wrong: str) -> Any:
    """What the body of a request holds. `wrong` is the beginning of the message if it is not JSON.

    Raises `Refused`, also for a body that is too long or does not end.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "expected the header Content-Type: application/json")
    try:
        body = await asyncio.wait_for(read_body(request), BODY_SECONDS)
    except asyncio.TimeoutError:
        reason = f"the request was not complete after {BODY_SECONDS} s"
        raise Refused(408, reason, close=True) from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, f"{wrong}: it is not JSON") from None


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
        limits = f"{MAX_BYTES:,} bytes; this server reads up to {MAX_CONTEXT:,} characters"
        raise Refused(413, f"more than {limits}")
    return body


def require_object(
    given: Any, wrong: str, needed: Sequence[str] = (), optional: Sequence[str] = ()
) -> None:
    """Raise `Refused` for a value that is not an object with these fields.

    `wrong` is the beginning of the message.
    """
    known = [*needed, *optional]
    if not isinstance(given, dict):
        raise Refused(400, f"{wrong}: expected an object with {', '.join(needed or known)}")
    if unknown := given.keys() - set(known):
        names = ", ".join(known)
        raise Refused(400, f"{wrong}: it has an unknown field, {min(unknown)!r}; expected {names}")
    if lacks := set(needed) - given.keys():
        raise Refused(400, f"{wrong}: it has no {min(lacks)}")


def require_kind(name: str, value: object, kind: Any) -> None:
    """Raise `Refused` for a value of another type."""
    if type(value) is not kind:  # not isinstance: it accepts True as an int
        raise Refused(400, f"{name}: expected {KINDS[kind]}")


def require_length(name: str, characters: int, limit: int) -> None:
    """Raise `Refused` for a text that is too long."""
    if characters > limit:
        raise Refused(
            413,
            f"the {name} has {characters:,} characters; this server reads up to {limit:,}. "
            "The command `minibert answer` has no limit",
        )


def require_top_k(top_k: int) -> None:
    """Raise `Refused` for a number of answers that is out of range."""
    if not 1 <= top_k <= MAX_ANSWERS:
        wanted = f"from 1 to {MAX_ANSWERS}"
        raise Refused(400, f"Choose a number of answers {wanted}, instead of {top_k}.")
