"""Requests per second of `minibert serve`: read in batches or one at a time, over kept connections
or new ones. The client is a process of this machine, so it takes a little of the processor's time.
"""

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from urllib.parse import urlsplit

from ..data.examples import load_squad
from ..errors import InputError
from .turns import Work, by_turns, median_seconds, times_as_fast

CLIENTS = 50
HEADERS = {"Content-Type": "application/json"}
# A server with this code reads one request at a time.
ONE_AT_A_TIME = "from minibert.serve import endpoint; endpoint.BATCH_CHARACTERS = 1"


def bench_serve(source: str, data: str, turns: int = 5, requests: int = 200) -> dict[str, float]:
    """Requests per second, and how many times as fast batches are. Figures are medians of turns.

    The requests are random questions of the split validation. "One client" sends each request after
    the answer to the last one.
    """
    examples = load_squad(data, "validation")
    chosen = random.Random(0).sample(examples, min(requests, len(examples)))
    bodies = [
        json.dumps({"inputs": {"question": example.question, "context": example.context}})
        for example in chosen
    ]
    many, one = f"{CLIENTS} clients", f"{CLIENTS} clients, one request at a time"
    kept = "one client"
    with served(source, "pass", ONE_AT_A_TIME) as (batches, single):
        engines: dict[str, Work] = {
            many: partial(ask_all, batches, bodies, CLIENTS),
            one: partial(ask_all, single, bodies, CLIENTS),
            kept: partial(ask_all, batches, bodies),
            "one client, new connections": partial(ask_all, batches, bodies, kept=False),
        }
        measured, _ = by_turns(engines, turns)
    figures = {name: len(bodies) / median_seconds(each) for name, each in measured.items()}
    return figures | {
        f"{many}: times as fast as one request at a time": times_as_fast(
            measured[one], measured[many]
        ),
        f"{many}: times as fast as one client": times_as_fast(measured[kept], measured[many]),
    }


@contextmanager
def served(source: str, *codes: str) -> Iterator[list[str]]:
    """A process with `minibert serve` for each code, which runs first. Gives their addresses."""
    options = ["serve", "--no-page", "--port", "0", "--model", source]
    with ExitStack() as stack:
        processes = []
        for code in codes:
            command = [sys.executable, "-c", f"{code}; from minibert.cli import main; main()"]
            process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.terminate)
            processes.append(process)
        lines = [process.stdout.readline() for process in processes if process.stdout]
        if not all(lines):
            raise InputError("`minibert serve` did not start: see its message")
        yield [line.split()[0] for line in lines]


def ask_all(address: str, bodies: Sequence[str], clients: int = 1, kept: bool = True) -> None:
    """Send every body, with several clients at a time. Raises `InputError` if one is refused."""
    with ThreadPoolExecutor(clients) as threads:
        shares = [bodies[client::clients] for client in range(clients)]
        list(threads.map(lambda share: ask(address, share, kept), shares))


def ask(address: str, bodies: Sequence[str], kept: bool) -> None:
    url = urlsplit(address)
    assert url.hostname is not None
    with closing(HTTPConnection(url.hostname, url.port)) as connection:
        for body in bodies:
            connection.request("POST", url.path, body, HEADERS)
            response = connection.getresponse()
            text = response.read()
            if response.status != 200:
                raise InputError(f"the server answered {response.status}: {text.decode()}")
            if not kept:
                connection.close()  # the next request opens it again
