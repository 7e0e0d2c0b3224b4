"""Connections: a listening socket, and a time limit for the head of a request."""

import asyncio
import errno
import os
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import InputError
from .guard import Access

HEAD_SECONDS = 20  # for the first line and the headers of a request
KEPT_SECONDS = 75  # without a request, as in nginx: longer than most proxies keep a connection


def listening(access: Access) -> socket.socket:
    """A socket that listens. Raises `InputError` for an address or port that cannot be used."""
    family = socket.AF_INET6 if ":" in access.address else socket.AF_INET
    # asyncio sets TCP_NODELAY only for connections of a socket with this protocol. Without it, each
    # response on a kept connection waits 40 ms until the client confirms the headers.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # on Windows this would share the port with another program
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((access.address, access.port))
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"host={access.host!r}: not an address of this computer") from error
        reason = f"{error.strerror}; --port 0 takes any free port"
        raise InputError(f"port {access.port} cannot be used: {reason}") from error
    return listener


class Protocol(H11Protocol):
    """uvicorn's connection, which also closes when the head of a request takes too long.

    uvicorn alone waits for ever for the rest of a head, and for the rest of a body that was refused
    before its end. A body that is being read has its own limit: see `requests.BODY_SECONDS`.
    """

    limit: asyncio.TimerHandle | None = None

    @property
    def is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.set_limit()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.set_limit()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.limit is not None:
            self.limit.cancel()

    def set_limit(self) -> None:
        """Begin to wait for a head, if nothing is being answered."""
        if self.is_answering and self.limit is not None:
            self.limit.cancel()
            self.limit = None
        elif not self.is_answering and self.limit is None:
            self.limit = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def shutdown(self) -> None:
        """Called when the server ends: it does not wait for the rest of a body."""
        super().shutdown()
        if self.is_answering and self.cycle.more_body:
            self.transport.close()
