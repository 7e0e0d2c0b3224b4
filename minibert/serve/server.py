"""The server: its paths, its start and its end.

The page and the endpoint share one thread for the model. Each question of the page and each batch
of the endpoint is one turn, and the turns come in the order in which they were asked for.
"""

import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..reader import QuestionAnswerer
from .connections import KEPT_SECONDS, Protocol, listening
from .endpoint import PATH, Endpoint
from .guard import HEALTH, LOOPBACK, Access, Guard, in_url
from .page import Live

OPENAPI = Path(__file__).parent / "openapi.json"
END_SECONDS = 60  # for answers that are being read or sent when the server ends


class Service:
    """The page and the endpoint, with the thread that they share."""

    def __init__(self, qa: QuestionAnswerer, has_page: bool = True) -> None:
        self.turns = ThreadPoolExecutor(1)
        self.endpoint = Endpoint(qa, self.turns)
        self.page = Live(qa, self.turns)
        self.has_page = has_page

    def app(self, access: Access) -> ASGIApp:
        async def health(request: Request) -> Response:
            return JSONResponse({"status": "ok"})

        async def openapi(request: Request) -> Response:
            return Response(OPENAPI.read_bytes(), media_type="application/json")

        routes = [Route(HEALTH, health), Route("/openapi.json", openapi)]
        # also "/", because an endpoint of Hugging Face answers there
        routes += [Route(path, self.endpoint.answer, methods=["POST"]) for path in (PATH, "/")]
        routes += self.page.routes() if self.has_page else []
        return Guard(Starlette(routes=routes), access)

    def stop(self) -> None:
        """Begin to end: finish what the endpoint reads, refuse or cut all else."""
        self.endpoint.stop()
        self.page.stop()

    def close(self) -> None:
        """Wait until the threads have ended."""
        for thread in (self.turns, self.page.later):
            thread.shutdown(cancel_futures=True)


class Server(uvicorn.Server):
    """uvicorn's server, which tells the service first when it ends."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.stop()
        await super().shutdown(sockets)


def server_for(service: Service, access: Access) -> Server:
    """A server for requests to this address. `access.port` is the port that it listens on."""
    config = uvicorn.Config(
        service.app(access),
        http=Protocol,
        ws="none",
        lifespan="off",
        log_level="critical",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEPT_SECONDS,
        timeout_graceful_shutdown=END_SECONDS,
    )
    return Server(config, service)


def serve(
    qa: QuestionAnswerer, access: Access, on_ready: Callable[[str], None], has_page: bool = True
) -> None:
    """Serve until Ctrl-C or SIGTERM. `on_ready` gets the address of the page or of the endpoint.

    Raises `InputError` for an address or port that cannot be used.
    """
    with listening(access) as listener:
        access = replace(access, port=listener.getsockname()[1])
        service = Service(qa, has_page)
        everywhere = {"0.0.0.0": LOOPBACK, "::": "::1"}  # no addresses to open
        shown = in_url(everywhere.get(access.address, access.address))
        on_ready(f"http://{shown}:{access.port}{'/' if has_page else PATH}")
        try:
            with warnings.catch_warnings(), sigterm_as_ctrl_c():
                # the page itself says which part of a long question was not read
                warnings.simplefilter("ignore", UserWarning)
                server_for(service, access).run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn raises it again after closing everything
            pass
        finally:
            service.close()


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
