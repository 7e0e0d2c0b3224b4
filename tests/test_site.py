"""`minibert site`: the model in the page, from a static server and from a file, in a real browser.

The page must give what Python gives with the same weights, key for key, and send no request to any
other place.
"""

import functools
import http.server
import json
import random
import re
import shutil
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import minibert
from minibert.cli import main
from minibert.explain import site
from minibert.explain.explanation import Explanation

PATIENCE = 600  # seconds: a wait ends a test only when something hangs, not on a slow machine
QUESTION, CONTEXT = (
    "Who lit the lamp?",
    "At dusk the keeper, Ada, lit the lamp. 😀 Bo rang the bell.",
)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Python's own static server, without its log."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Path], str]]:
    """Serve a folder as `python -m http.server` does -> its address."""
    servers = []

    def serve(folder: Path) -> str:
        handler = functools.partial(Handler, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


class Opened:
    """An open page, with its requests and the messages of its console.

    Requests to any other place than the page's own folder are blocked.
    """

    def __init__(self, browser: Any, address: str, before: str = "", **options: Any) -> None:
        self.address = address
        self.place = address.rpartition("/")[0] + "/"  # the folder of the page
        self.context = browser.new_context(**options)
        self.context.add_init_script(before)
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE)
        self.requests: list[str] = []
        self.messages: list[str] = []
        # of the context, because workers send requests too
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.context.route("**/*", lambda route: self.route(route))
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.goto(address)

    def route(self, route: Any) -> None:
        """Let a request to the page's own folder continue, and block any other."""
        if route.request.url.startswith((self.place, "blob:")):
            route.continue_()
        else:
            route.abort()

    def ready(self) -> "Opened":
        self.page.evaluate("minibert.ready")
        return self

    def explain(self, question: str, context: str, **options: Any) -> dict[str, Any]:
        # as JSON, because playwright itself takes seconds for many values
        call = "(asked) => minibert.explain(...asked).then(JSON.stringify)"
        return json.loads(self.page.evaluate(call, [question, context, options]))

    def ask(self, question: str, context: str) -> None:
        self.page.locator("#ask-question").fill(question)
        self.page.locator("#ask-context").fill(context)
        self.page.locator("#ask-question").press("Enter")

    def wait_for(self, selector: str, text: str) -> None:
        self.page.locator(selector).filter(has_text=text).wait_for()

    def text(self, selector: str) -> str:
        return self.page.locator(selector).text_content()


@pytest.fixture(scope="module")
def opening(browser: Any) -> Iterator[Callable[..., Opened]]:
    opened: list[Opened] = []

    def opening(address: str, **options: Any) -> Opened:
        opened.append(Opened(browser, address, **options))
        return opened[-1]

    yield opening
    for page in opened:
        page.context.close()


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the tiny model."""
    folder = tmp_path_factory.mktemp("site") / "folder"
    site.write_folder(folder, site.load(tiny))
    return folder


@pytest.fixture(scope="module")
def page(serve, opening, folder) -> Opened:
    return opening(serve(folder)).ready()


@pytest.fixture(scope="module")
def qa(folder: Path) -> minibert.QuestionAnswerer:
    """The same weights in Python."""
    return minibert.QuestionAnswerer.from_pretrained(
        folder / "model", precision="fp32", device="cpu"
    )


def differences(here: Any, wanted: Any, place: str = "") -> Iterator[str]:
    """Where the data of the page differs from Python's, beyond the tolerance of float32."""
    if isinstance(wanted, dict) and isinstance(here, dict):
        for key in here.keys() | wanted.keys():
            yield from differences(
                here.get(key, "no key"), wanted.get(key, "no key"), f"{place}.{key}"
            )
    elif isinstance(wanted, list) and isinstance(here, list) and len(here) == len(wanted):
        for k, pair in enumerate(zip(here, wanted, strict=True)):
            yield from differences(*pair, f"{place}[{k}]")
    elif isinstance(wanted, float):
        if not abs(here - wanted) <= 1e-3:
            yield f"{place}: {here}, not {wanted}"
    elif isinstance(wanted, int) and place.startswith((".attention", ".embeddings")):
        if abs(here - wanted) > 1:  # thousandths
            yield f"{place}: {here}, not {wanted}"
    elif here != wanted:
        yield f"{place}: {here!r}, not {wanted!r}"


def assert_equal(here: dict[str, Any], explanation: Explanation) -> None:
    """The page's explanation is Python's. Only what it was made with has another place."""
    wanted = json.loads(json.dumps(explanation.to_dict()))
    wanted["made_with"] = {**here["made_with"], "version": explanation.made_with["version"]}
    assert list(differences(here, wanted)) == []


# --- the same as Python


@pytest.mark.parametrize(
    ("number", "options"),
    [(5, {}), (41, {"n_best": 3, "max_answer_len": 4}), (77, {"n_best": 5, "no_answer": True})],
)
def test_it_explains_as_python_does(page, qa, field_notes, number, options):
    """Key for key: answers, places, order, windows, layers, attention; logits within 1e-3."""
    asked = field_notes[number].question, field_notes[number].context
    settings = {"top_k" if name == "n_best" else name: value for name, value in options.items()}
    wanted = qa.explain(*asked, **settings, attribution=False)
    assert_equal(page.explain(*asked, **options), wanted)


def test_a_long_document_with_a_question_that_is_cut(page, qa, field_notes):
    context = " ".join(example.context for example in field_notes[::8])
    question = "Who kept the lamp? " * 16
    with pytest.warns(UserWarning, match="max_question_len"):
        wanted = qa.explain(question, context, attribution=False)
    assert len(wanted.windows) > 5 and wanted.question_unread
    assert_equal(page.explain(question, context), wanted)


def test_pieces_are_counted_in_code_points(page, qa):
    text = "😀 À la carte, the keeper 🇫🇷 of l\u0301amps"
    pieces = qa.tokenizer.encode(text)
    assert page.page.evaluate("(text) => minibert.tokenize(text)", text) == {
        "ids": pieces.ids.tolist(),
        "offsets": pieces.offsets.tolist(),
    }


@pytest.mark.parametrize("kind", ["distilbert", "electra"])
def test_other_families(serve, opening, tmp_path, kind):
    folder = Path(__file__).parent / "reference" / kind
    site.write_folder(tmp_path / "site", site.load(folder))
    qa = minibert.QuestionAnswerer.from_pretrained(
        tmp_path / "site" / "model", precision="fp32", device="cpu"
    )
    opened = opening(serve(tmp_path / "site")).ready()
    assert_equal(
        opened.explain(QUESTION, CONTEXT), qa.explain(QUESTION, CONTEXT, attribution=False)
    )


def test_a_file_without_a_server(opening, tiny, tmp_path):
    """It opens from the disk, sends no request, and has the model in 8-bit integers."""
    path = tmp_path / "site.html"
    site.write_file(path, site.load(tiny))
    opened = opening(path.as_uri()).ready()
    qa = site.rounded(site.load(tiny), site.in_eight_bit)
    wanted = qa.explain(QUESTION, CONTEXT, attribution=False)
    assert_equal(opened.explain(QUESTION, CONTEXT), wanted)
    assert wanted.answers != site.load(tiny).explain(QUESTION, CONTEXT, attribution=False).answers
    opened.ask(QUESTION, CONTEXT)
    opened.wait_for("h1#question", QUESTION)
    assert [url for url in opened.requests if not url.startswith("blob:")] == [path.as_uri()]
    assert opened.messages == []
    policy = opened.page.locator("meta[http-equiv]").get_attribute("content")
    assert "default-src 'none'" in policy and "connect-src" not in policy
    assert "'unsafe-inline'" not in policy and "'unsafe-eval'" not in policy


def test_no_request_leaves_the_folder(serve, opening, folder):
    """The page, its scripts and its model come from its own server, and nothing else is asked."""
    opened = opening(serve(folder)).ready()
    opened.ask(QUESTION, CONTEXT)
    opened.wait_for("h1#question", QUESTION)
    asked = [url for url in opened.requests if not url.startswith("blob:")]
    assert {url.startswith(opened.address) for url in asked} == {True}
    files = {url.removeprefix(opened.address) for url in asked}
    model = {f"model/{name}" for name in (*site.MODEL_TEXTS, "model.safetensors")}
    scripts = {"page.css", *site.scripts(*site.TRANSPORT)}
    assert {"", *scripts, *model} <= files <= {"", *scripts, *model, *site.ENGINE}
    assert opened.messages == []


# --- the page


def test_the_example_is_answered_at_once(serve, opening, folder, qa):
    """The page shows it before a model is loaded, and the model gives the same."""
    opened = opening(serve(folder), before="delete window.Worker;")
    assert opened.text("h1#question") == site.QUESTION
    assert opened.page.locator("#welcome").is_visible() and opened.page.locator("#ask").is_visible()
    assert "cannot compute this part" in opened.text("#pending")
    shown = opened.page.evaluate("data")
    assert_equal(shown, qa.explain(site.QUESTION, site.CONTEXT, attribution=False))
    opened.wait_for("#status", "This browser has no web workers")
    opened.ask(QUESTION, CONTEXT)
    opened.wait_for("#message", "This browser has no web workers")
    assert opened.text("h1#question") == site.QUESTION and opened.messages == []


def test_ask_and_strike_out_a_word(page, qa, field_notes):
    asked = field_notes[5]
    page.ask(asked.question, asked.context)
    page.wait_for("h1#question", asked.question)
    best = qa(asked.question, asked.context)
    assert page.text("#answer b") == " ".join(best.answer.split())
    word = asked.question.split()[1]
    page.page.locator("#question button").nth(1).click()
    shorter = asked.question.replace(f"{word} ", "", 1)
    page.wait_for("h1#question", shorter)
    assert page.text("#answer b") == " ".join(qa(shorter, asked.context).answer.split())
    page.page.locator("#before").wait_for()


def test_a_new_question_ends_the_old_one(page, field_notes):
    """A long document shows progress. The next question is answered without waiting for it."""
    context = " ".join(example.context for example in field_notes) * 4
    page.ask(QUESTION, context)
    page.wait_for("#message", "windows read")
    page.ask(QUESTION, CONTEXT)
    page.page.locator("#passage").get_by_text("Bo rang the bell").first.wait_for()
    assert page.text("#message") == "" and page.text("#passage") == CONTEXT


def test_without_webassembly(serve, opening, tiny, tmp_path, monkeypatch):
    """The page may not compile WebAssembly, or the browser has none: the plain loop computes."""
    monkeypatch.setitem(site.ALLOWED, "script-src", "")
    site.write_folder(tmp_path / "site", site.load(tiny))
    opened = opening(serve(tmp_path / "site")).ready()
    here = opened.explain(QUESTION, CONTEXT)
    assert "JavaScript" in here["made_with"]["computes_with"]
    qa = minibert.QuestionAnswerer.from_pretrained(
        tmp_path / "site" / "model", precision="fp32", device="cpu"
    )
    assert_equal(here, qa.explain(QUESTION, CONTEXT, attribution=False))


# --- a visitor's model


def drop_folder(opened: Opened, folder: Path) -> None:
    """Drop a folder on the page, as a mouse does."""
    session = opened.context.new_cdp_session(opened.page)
    dropped = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        place = {"type": kind, "x": 300, "y": 300, "data": dropped}
        session.send("Input.dispatchDragEvent", place)


def drop(opened: Opened, folder: Path) -> None:
    """Drop the files of a folder on the page."""
    files = [[path.name, b64encode(path.read_bytes()).decode()] for path in folder.iterdir()]
    opened.page.evaluate(
        """(files) => {
          const dropped = new DataTransfer();
          for (const [name, base64] of files) {
            const bytes = Uint8Array.from(atob(base64), (byte) => byte.charCodeAt(0));
            dropped.items.add(new File([bytes], name));
          }
          const event = new DragEvent("drop", {dataTransfer: dropped, bubbles: true});
          document.body.dispatchEvent(event);
        }""",
        files,
    )


@pytest.mark.parametrize("way", ["drop its files", "drop", "choose"])
def test_a_visitor_s_own_model(serve, opening, folder, way):
    """Its answers replace the page's. The folder has only a vocab.txt, or a tokenizer.json."""
    name = {"drop its files": "tiny", "drop": "distilbert", "choose": "electra"}[way]
    own = Path(__file__).parent / "reference" / name
    opened = opening(serve(folder)).ready()
    if way == "drop its files":
        drop(opened, own)
    elif way == "drop":
        drop_folder(opened, own)
    else:
        opened.page.locator("#folder").set_input_files(own)
    opened.wait_for("#made", f"Model {'your own' if name == 'tiny' else name}, computed with this")
    qa = minibert.QuestionAnswerer.from_pretrained(own, precision="fp32", device="cpu")
    assert_equal(
        opened.explain(QUESTION, CONTEXT), qa.explain(QUESTION, CONTEXT, attribution=False)
    )
    assert opened.messages == []


def broken(source: Path, folder: Path, fault: str) -> Path:
    """A copy of a model's folder with one fault."""
    shutil.copytree(source, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if fault == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "text":
        weights.write_text("version https://git-lfs.github.com/spec/v1")
    elif fault == "json":
        config.write_text("{")
    elif fault == "gpt2":
        config.write_text('{"model_type": "gpt2"}')
    elif fault == "shape":
        config.write_text(config.read_text().replace('"hidden_size": 16', '"hidden_size": 32'))
    else:
        (folder / fault).unlink()
    return folder


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("config.json", "the folder has no config.json."),
        ("model.safetensors", "the folder has no model.safetensors."),
        ("vocab.txt", "the folder has no tokenizer.json or vocab.txt."),
        ("cut", "model.safetensors is not complete"),
        ("text", "model.safetensors is not a safetensors file"),
        ("json", "config.json: not readable as JSON."),
        ("gpt2", 'has the model_type "gpt2", but this page reads bert, distilbert, electra.'),
        ("shape", "but config.json says"),
    ],
)
def test_a_folder_that_is_no_model_gets_one_sentence(page, tiny, tmp_path, fault, named):
    """The page keeps the model that it had."""
    before = page.explain(QUESTION, CONTEXT)
    drop(page, broken(tiny, tmp_path / "model", fault))
    page.wait_for("#status", named)
    told = page.text("#status")
    assert told.startswith("This model cannot be loaded: ") and told.endswith(".")
    assert "\n" not in told and told.count(". ") == 0
    assert page.explain(QUESTION, CONTEXT) == before and page.messages == []


def test_a_text_that_cannot_be_answered_gets_one_sentence(page):
    page.ask("?!", " ")  # the browser itself asks for a passage
    page.ask("...", "\u200b")
    page.wait_for("#message", "no words in the context")
    told = page.page.evaluate("minibert.explain('Who?', ' ').catch((error) => error.message)")
    assert told.startswith("no words in the context")


def test_a_folder_needs_a_server(opening, folder):
    opened = opening((folder / "index.html").as_uri())
    opened.wait_for("#status", "The model cannot be loaded from a file: use")


def test_a_server_without_the_model_is_named(serve, opening, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "model")
    opened = opening(serve(tmp_path / "copy"))
    opened.wait_for("#status", "the server has no model/")
    told = opened.page.evaluate("minibert.ready.catch((error) => error.message)")
    assert told.startswith("The model cannot be loaded: the server has no model/")


# --- its looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_in_the_site(serve, opening, folder, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python"
    )
    opened = opening(serve(folder), color_scheme=scheme).ready()
    opened.page.locator("#ask summary").click()
    results = axe.Axe().run(opened.page)
    assert results.violations_count == 0, results.generate_report()


@pytest.mark.parametrize("width", [375, 1920])
def test_the_site_fits(serve, opening, folder, width):
    opened = opening(serve(folder), viewport={"width": width, "height": 900}).ready()
    opened.page.locator("#ask summary").click()
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


# --- the command


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["minibert", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_command(tiny, tmp_path, monkeypatch, capsys):
    """Both forms; the folder's model is one that `minibert answer` reads too."""
    model = ("--model", str(tiny))
    assert run(monkeypatch, "site", "--output", str(tmp_path / "a" / "site"), *model) == 0
    assert run(monkeypatch, "site", "--single", str(tmp_path / "a" / "site.html"), *model) == 0
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"site", "site.html"}
    assert "the page is " in capsys.readouterr().err
    made = tmp_path / "a" / "site" / "model"
    for path in (tmp_path / "a" / "site").rglob("*"):
        assert path.stat().st_mode & 0o004 or path.is_dir()  # a web server may be another user
    assert run(monkeypatch, "answer", "--model", str(made), "--question", "Who?",
               "--context", "Ada lit it.") == 0  # fmt: skip


def test_the_command_s_errors_are_one_line(tiny, tmp_path, monkeypatch, capsys):
    (tmp_path / "there").mkdir()
    reference = Path(__file__).parent / "reference"
    for arguments, named in (
        ((), "give one of --output and --single"),
        (("--output", "x", "--single", "y"), "give one of --output and --single, but got"),
        (("--output", str(tmp_path / "there")), "exists already; choose another name"),
        (("--single", str(tmp_path / "there")), "exists already; choose another name"),
        (
            ("--output", str(tmp_path / "new"), "--model", str(reference / "roberta")),
            "model_type='roberta'; the page reads bert, distilbert, electra",
        ),
        (("--output", str(tmp_path / "new"), "--model", "no/such/model"), "neither a folder nor"),
    ):
        assert run(monkeypatch, "site", *arguments) == 2
        error = capsys.readouterr().err
        assert named in error and error.count("\n") == 1, error
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_site_is_written_whole_or_not_at_all(tiny, tmp_path, monkeypatch):
    """An error on the way leaves nothing. A weight that float16 cannot hold is one."""

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    qa = site.load(tiny)
    with monkeypatch.context() as patch:
        patch.setattr(minibert.QuestionAnswerer, "save_pretrained", fail)
        with pytest.raises(minibert.InputError, match="no space left"):
            site.write_folder(tmp_path / "site", qa)
    assert list(tmp_path.iterdir()) == []
    qa.model.head.S.data[0] = 1e6
    with pytest.raises(minibert.PretrainedError, match="too large for float16"):
        site.write_folder(tmp_path / "site", qa)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "names", [site.ENGINE, site.scripts(*site.TRANSPORT), site.scripts("server.js")]
)
def test_scripts_of_one_scope_have_no_name_twice(names):
    """A function would silently replace another one of the same name."""
    pattern = r"^(?:async )?(?:function\*? ?|const |let |class )(\w+)"
    defined = [name for file in names for name in re.findall(pattern, site.asset(file), re.M)]
    assert len(defined) > 20 and len(defined) == len(set(defined))


def test_a_word_is_left_out_and_put_back(serve, opening, folder):
    """A click on a word of the question asks the model in the page; one more puts it back."""
    opened = opening(serve(folder)).ready()
    page = opened.page
    before = page.locator("#question").text_content()
    page.locator("#question button").first.click()
    page.locator("#put-back").wait_for()
    word = page.locator("#struck-word del").text_content()
    assert page.locator("#question").text_content() == before.removeprefix(word).lstrip()
    page.locator("#put-back").click()
    assert page.locator("#question").text_content() == before
    assert opened.messages == []


def test_the_page_is_saved_as_a_file(serve, opening, folder, tmp_path):
    """The file has no model: it shows the answer, and cannot ask."""
    opened = opening(serve(folder)).ready()
    with opened.page.expect_download() as download:
        opened.page.locator("#save").click()
    download.value.save_as(tmp_path / "saved.html")
    saved = opening((tmp_path / "saved.html").as_uri())
    for place in ("#question", "#answer", "#lens", "#attended"):
        texts = [each.page.locator(place).text_content() for each in (saved, opened)]
        assert texts[0] == texts[1]
    assert not saved.page.locator("form").is_visible()
    assert saved.messages == [] and len(saved.requests) == 1
    assert (tmp_path / "saved.html").stat().st_size < 1e6


# --- the bundled model


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both forms of the bundled model: `folder` and `file.html`."""
    root = tmp_path_factory.mktemp("bundled")
    site.write_folder(root / "folder", site.load())
    site.write_file(root / "file.html", site.load())
    return root


def answers_of(opened: Opened, asked: Sequence[minibert.Example]) -> list[list[dict[str, Any]]]:
    """The ten best answers of the page to each question."""
    call = """async (pairs) => {
      const answers = [];
      for (const pair of pairs) answers.push((await minibert.explain(...pair)).answers);
      return answers;
    }"""
    return opened.page.evaluate(call, [[each.question, each.context] for each in asked])


def assert_answers_equal(
    opened: Opened, qa: minibert.QuestionAnswerer, asked: Sequence[minibert.Example]
) -> None:
    """The ten best answers have the same places in the same order, and scores within 1e-3."""
    wanted = qa.answer_examples(asked, minibert.AnswerSettings(10))
    for example, here, there in zip(asked, answers_of(opened, asked), wanted, strict=True):
        places = [(answer.answer, answer.start, answer.end) for answer in there]
        assert [(a["answer"], a["start"], a["end"]) for a in here] == places, example.id
        scores = [answer.score for answer in there]
        assert [a["score"] for a in here] == pytest.approx(scores, abs=1e-3), example.id


@pytest.mark.slow
def test_the_bundled_model_in_a_folder(serve, opening, bundled, squad):
    """200 questions of SQuAD and 10 documents of several windows are answered as in Python."""
    folder = bundled / "folder"
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert sum(sizes) <= 50e6
    qa = minibert.QuestionAnswerer.from_pretrained(folder / "model", precision="fp32", device="cpu")
    opened = opening(serve(folder)).ready()
    examples = minibert.load_squad(squad, "validation")
    assert_answers_equal(opened, qa, random.Random(0).sample(examples, 200))
    contexts = list(dict.fromkeys(example.context for example in examples))
    documents = [
        replace(example, context=" ".join(contexts[k : k + 6]), answers=())
        for k, example in enumerate(examples[:: len(examples) // 10][:10])
    ]
    assert_answers_equal(opened, qa, documents)


@pytest.mark.slow
def test_the_bundled_model_in_one_file(opening, bundled, squad):
    """8 bits change few answers: 4 of 500 on 2026-11-29."""
    path = bundled / "file.html"
    assert path.stat().st_size <= 35e6
    opened = opening(path.as_uri()).ready()
    asked = random.Random(0).sample(minibert.load_squad(squad, "validation"), 60)
    qa = site.load()
    wanted = [(a.answer, a.start) for (a,) in qa.answer_examples(asked)]
    here = [(best["answer"], best["start"]) for best, *_ in answers_of(opened, asked)]
    same = sum(a == b for a, b in zip(here, wanted, strict=True))
    assert same >= 0.97 * len(asked)


# What the page's main thread does: tasks of more than 50 ms, and how often the message changes.
WATCH = """
window.tasks = [];
new PerformanceObserver((list) => tasks.push(...list.getEntries().map(({duration}) => duration)))
  .observe({type: "longtask", buffered: true});
addEventListener("DOMContentLoaded", () => {
  window.told = 0;
  const message = document.getElementById("message");
  new MutationObserver(() => told++).observe(message, {childList: true});
});
"""


@pytest.mark.slow
def test_a_long_document_does_not_freeze_the_page(serve, opening, bundled, field_notes):
    """The page tells its progress window by window. The figures are printed, see `pytest -s`."""
    opened = opening(serve(bundled / "folder"), before=WATCH)
    ready = opened.page.evaluate("minibert.ready.then(() => performance.now())")
    words = " ".join(dict.fromkeys(example.context for example in field_notes)).split()
    opened.page.evaluate("tasks.length = told = 0")
    opened.ask(QUESTION, " ".join((words * 5)[:10_000]))
    opened.page.locator("#before").wait_for()
    opened.page.wait_for_timeout(1000)  # a task is reported after its end
    told, windows = opened.page.evaluate("[told, data.windows.length]")
    assert windows > 30 and told >= windows
    tasks = [round(duration) for duration in opened.page.evaluate("tasks")]
    print(f"ready after {ready:.0f} ms; {windows} windows; tasks of the main thread in ms: {tasks}")
