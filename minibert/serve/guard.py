"""Who may ask: the Host, the Origin and the token of a request are checked before all else.

A server on the loopback address answers every program on this computer, also one of another user.
Other web pages cannot ask, because the server refuses requests with another Host or Origin. A
server on another address answers every computer that knows the token.
"""

import base64
import hmac
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import InputError

LOOPBACK = "127.0.0.1"
HEALTH = "/health"  # the only path that never needs a token

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Access:
    """Where a server listens, and who may ask.

    `host` is an address of this computer or a name for one. A browser may reach the page by another
    address, for example through a tunnel: `allowed` has such addresses. Raises `InputError` for an
    item in `allowed` that is not a host, or a host with a port, for a token that a header cannot
    hold, and for an address that other computers reach without a token.
    """

    host: str = LOOPBACK
    port: int = 8123  # 0: any free port
    allowed: Sequence[str] = ()
    token: str | None = field(default=None, repr=False)  # a secret

    def __post_init__(self) -> None:
        for host in self.allowed:
            if not re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]+)?", host):
                raise InputError(f"allow_host={host!r}: expected HOST or HOST:PORT")
        if self.token is not None and not re.fullmatch("[!-~]+", self.token):
            raise InputError("token: expected ASCII characters without spaces, one or more")
        if self.is_open and self.token is None:
            raise InputError(
                f"host={self.host}: other computers reach this address, so --token is necessary, "
                "or the environment variable MINIBERT_TOKEN"
            )

    @property
    def address(self) -> str:
        """The address that `host` names."""
        try:
            return str(socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)[0][4][0])
        except (OSError, UnicodeError) as error:
            raise InputError(f"host={self.host!r}: not an address or a name of one") from error

    @property
    def is_open(self) -> bool:
        """Whether other computers may reach the address."""
        return not ipaddress.ip_address(self.address.partition("%")[0]).is_loopback


def in_url(host: str) -> str:
    """A host as a URL has it: an IPv6 address is in brackets."""
    return f"[{host}]" if ":" in host else host


def address_of(host: str) -> str:
    """A Host header in one form: in lower case, and without the port that browsers leave out.

    >>> address_of("LOCALHOST:80"), address_of("localhost:8123")
    ('localhost', 'localhost:8123')
    """
    return host.lower().removesuffix(":80")


def token_in(authorization: str) -> str:
    """The token of an Authorization header, or "".

    Programs send it after "Bearer". Browsers ask their user for it, and send it as the password of
    "Basic", with any name.
    """
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    except ValueError:  # not base64, or not text
        return ""


class Guard:
    """Refuses requests without the token and of other pages. Every response gets `HEADERS`.

    `access.port` is the port in the page's address.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.token, self.is_open = app, access.token, access.is_open
        own = [address_of(f"{in_url(n)}:{access.port}") for n in (access.address, "localhost")]
        others = [address_of(host) for host in access.allowed]
        self.hosts = {*own, *others}
        # a tunnel may encrypt
        self.origins = {f"http://{host}" for host in self.hosts} | {f"https://{h}" for h in others}

    def accepts(self, headers: Headers) -> bool:
        """Whether a request comes from this page, or from no page."""
        host, origins = address_of(headers.get("host", "")), self.origins
        if self.is_open:  # by any name: a page of another name does not know the token
            origins = {*origins, f"http://{host}", f"https://{host}"}
        elif host not in self.hosts:
            return False
        origin = headers.get("origin")
        return origin is None or address_of(origin) in origins

    def knows_token(self, headers: Headers) -> bool:
        given = token_in(headers.get("authorization", ""))
        return hmac.compare_digest(given.encode(), (self.token or "").encode())

    def refusal(self, scope: Scope) -> Response | None:
        """The response to a request that may not ask."""
        headers = Headers(scope=scope)
        if not self.accepts(headers):
            message = "this server answers only its own page; for a tunnel, see --allow-host"
            return JSONResponse({"error": message}, 403)
        if self.token is None or scope["path"] == HEALTH or self.knows_token(headers):
            return None
        message = "this server needs its token, in a header: Authorization: Bearer TOKEN"
        response = JSONResponse({"error": message}, 401)
        for scheme in ("Bearer", 'Basic realm="minibert: the token is the password"'):
            response.headers.append("WWW-Authenticate", scheme)
        return response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await (self.refusal(scope) or self.app)(scope, receive, send_guarded)
