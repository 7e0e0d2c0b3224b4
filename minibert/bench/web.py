"""The model inside a page, in a headless Chromium: how fast it reads, and how much memory it needs.

onnxruntime-web reads the same windows, if a folder with its files is given. All times are measured
inside the page, with weights from a server on this machine.
"""

import shutil
import statistics
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from ..data.examples import Example, load_squad
from ..errors import InputError
from ..explain.page import FOLDER
from ..explain.site import ENGINE
from ..export.graph import model_graph, save_graph
from ..features import Feature, prepare_features
from ..qa import BertForQuestionAnswering
from ..settings import MAX_QUESTION_LEN
from ..tokenization import Tokenizer
from .turns import by_turns

SHORT, LONG, MANY = 160, 384, 10  # tokens of a window, tokens of a full window, windows
WORDS = 10_000  # of a long text

# Each page loads an engine and defines `read(windows)`. `given` are its settings.
START_OURS = """async (given) => {
    const [config, weights] = await Promise.all([
        fetch("model/config.json").then((file) => file.json()),
        fetch("model/model.safetensors").then((file) => file.arrayBuffer())]);
    const engine = await startEngine({config, weights, ...given});
    window.read = (windows) => engine.read(windows);
}"""
START_ONNX = """async (given) => {
    ort.env.wasm.numThreads = given.threads;
    const session = await ort.InferenceSession.create("model.onnx");
    const tensor = (numbers) =>
        new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
    window.read = async (windows) => {
        for (const {inputIds, tokenTypeIds} of windows) await session.run({
            input_ids: tensor(inputIds), token_type_ids: tensor(tokenTypeIds),
            attention_mask: tensor(inputIds.map(() => 1))});
    };
}"""
SECONDS = """async ([code, given]) => {
    const began = performance.now();
    await eval(code)(given);
    return (performance.now() - began) / 1000;
}"""
# In the page of `minibert site`
READY = "async () => { await window.minibert.ready; return performance.now() / 1000; }"
EXPLAIN = "([question, context]) => window.minibert.explain(question, context, {})"
LONGEST_TASK = """async ([question, context]) => {
    let longest = 0;
    const observer = new PerformanceObserver((list) => {
        for (const {duration} of list.getEntries()) longest = Math.max(longest, duration / 1000);
    });
    observer.observe({entryTypes: ["longtask"]});
    await window.minibert.explain(question, context, {});
    await new Promise((resolve) => setTimeout(resolve, 100));
    return longest;
}"""


class Material(NamedTuple):
    """What the engines read."""

    windows: dict[str, list[Feature]]  # name of a task -> its windows
    short: Example  # with one window, of about 160 tokens
    long: Example  # with 10,000 words


def bench_web(
    source: str,
    data: str,
    turns: int = 5,
    onnxruntime_web: Path | None = None,
    site: Path | None = None,
) -> dict[str, float]:
    """Seconds (medians of alternating turns) and megabytes, each under a name that says what it is.

    `onnxruntime_web` is the folder `dist` of that npm package. `site` is what `minibert site`
    wrote; then this page is measured too. Raises `InputError` if playwright or Chromium is missing.
    """
    material = choose(source, data)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_engine(folder)
        (folder / "model").symlink_to(Path(source).resolve())
        address = stack.enter_context(served(folder))
        scripts: Sequence[str] = ()  # the engine's scripts are in the page
        starts: dict[str, tuple[str, Sequence[str], str, dict[str, Any]]] = {
            "minibert, WebAssembly": (address, scripts, START_OURS, {}),
            "minibert, plain JavaScript": (address, scripts, START_OURS, {"plain": True}),
        }
        if onnxruntime_web is not None:
            model = BertForQuestionAnswering.from_pretrained(source)
            save_graph(model_graph(model), folder / "model.onnx")
            (folder / "ort").symlink_to(onnxruntime_web.resolve())
            # without isolation, as on most servers, it has one thread
            isolated = stack.enter_context(served(folder, isolated=True))
            for threads, place in ((1, address), (2, isolated)):
                name = f"onnxruntime-web, {threads} thread{'s' * (threads > 1)}"
                given = {"threads": threads}
                starts[name] = place, ["ort/ort.wasm.min.js"], START_ONNX, given
        driver = stack.enter_context(playwright())
        report, pages = {}, {}
        for name, (place, extra, code, given) in starts.items():
            browser = launched(driver)
            page = pages[name] = browser.new_page()
            page.goto(place)
            for script in extra:
                page.add_script_tag(url=script)
            report[f"{name}: start"] = page.evaluate(SECONDS, [code, given])
            first = [given_to(feature) for feature in material.windows[f"{SHORT} tokens"]]
            report[f"{name}: first window"] = page.evaluate(SECONDS, ["read", first])
        report |= reading(pages, material.windows, turns)
        for name, page in pages.items():
            report |= memory(name, page.context.browser)
        if site is not None:
            report |= page_of_site(driver, site, material)
    return report


def choose(source: str, data: str) -> Material:
    """The windows to read, from the questions of a data set."""
    examples = load_squad(data, "validation")
    tokenizer = Tokenizer.from_pretrained(source)
    features = prepare_features(examples, tokenizer, LONG, max_question_len=MAX_QUESTION_LEN)
    full = [feature for feature in features if len(feature) == LONG]
    several = {feature.example_id for feature in features if feature.window_index > 0}
    single = [feature for feature in features if feature.example_id not in several]
    contexts = dict.fromkeys(example.context for example in examples)
    words = " ".join(contexts).split()
    if len(full) < MANY or not single or len(words) < WORDS:
        raise InputError(f"{data}: too small; the development set of SQuAD is large enough")
    short = min(single, key=lambda feature: abs(len(feature) - SHORT))
    tasks = {f"{SHORT} tokens": [short], f"{LONG} tokens": full[:1], f"{MANY} windows": full[:MANY]}
    example = next(example for example in examples if example.id == short.example_id)
    return Material(tasks, example, Example("", example.question, " ".join(words[:WORDS])))


def reading(
    pages: Mapping[str, Any], windows: Mapping[str, Sequence[Feature]], turns: int
) -> dict[str, float]:
    """The seconds that each page needs to read the windows of each task."""
    works = {
        f"{name}: {task}": partial(
            page.evaluate, SECONDS, ["read", [given_to(feature) for feature in features]]
        )
        for task, features in windows.items()
        for name, page in pages.items()
    }
    measured, _ = by_turns(works, turns)
    return {
        name: statistics.median(turn.result for turn in results)
        for name, results in measured.items()
    }


def page_of_site(driver: Any, site: Path, material: Material) -> dict[str, float]:
    """The page that `minibert site` wrote: a folder, which a server sends, or a file."""
    with ExitStack() as stack:
        address = stack.enter_context(served(site)) if site.is_dir() else site.resolve().as_uri()
        browser = launched(driver)
        page = browser.new_page()
        page.goto(address)
        report = {"page: ready": page.evaluate(READY)}
        asked = [material.short.question, material.short.context]
        for name in ("first answer", "second answer"):
            report[f"page: {name}, {SHORT} tokens"] = page.evaluate(SECONDS, [EXPLAIN, asked])
        asked = [material.long.question, material.long.context]
        report[f"page: longest task, {WORDS} words"] = page.evaluate(LONGEST_TASK, asked)
        return report | memory("page", browser)


def given_to(feature: Feature) -> dict[str, list[int]]:
    """A window as the engine in the page reads it."""
    return {"inputIds": feature.input_ids, "tokenTypeIds": feature.token_type_ids}


def write_engine(folder: Path) -> None:
    """Write the engine's scripts, and a page that has nothing else."""
    for name in ENGINE:
        shutil.copyfile(FOLDER / name, folder / name)
    scripts = "".join(f'<script data-engine src="{name}"></script>' for name in ENGINE)
    (folder / "index.html").write_text(f"<!doctype html>{scripts}", encoding="utf-8")


class Quiet(SimpleHTTPRequestHandler):
    """Sends files without messages. An isolated page may share memory between its threads."""

    def __init__(self, *arguments: Any, isolated: bool, **named: Any) -> None:
        self.isolated = isolated
        super().__init__(*arguments, **named)

    def end_headers(self) -> None:
        if self.isolated:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path, isolated: bool = False) -> Iterator[str]:
    """Serve a folder on this machine while the block runs. Gives its address."""
    handler = partial(Quiet, directory=str(folder), isolated=isolated)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def playwright() -> Iterator[Any]:
    """The driver of the browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        hint = "pip install playwright && playwright install chromium"
        raise InputError(f"{error}; bench web needs: {hint}") from error
    with sync_playwright() as driver:
        yield driver


def launched(driver: Any) -> Any:
    """A new Chromium: the machine's own, if it has one."""
    try:
        flags = ["--no-sandbox", "--disable-gpu"]  # as root in a container
        return driver.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
    except Exception as error:
        raise InputError(f"Chromium does not start: {str(error).splitlines()[0]}") from error


def memory(name: str, browser: Any) -> dict[str, float]:
    """The most memory that a page's process has held, where the system tells it (Linux)."""
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    peaks = []
    for process in processes:
        status = Path(f"/proc/{process['id']}/status")
        if process["type"] == "renderer" and status.exists():
            lines = status.read_text(encoding="utf-8").splitlines()
            peaks += [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return {f"{name}: memory, MB": max(peaks) / 2**20} if peaks else {}
