"""The page of an explanation in a real browser: Debian's chromium, driven by playwright."""

import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import minibert
from minibert.explain import Explanation
from minibert.explain.page import to_json

NASTY = (
    "<script>document.title = 'run'</script></script><!-- <b>bold</b> &amp; <img src=x onerror=y> "
    "Ada kept it. \u2028 ]]> \\u003c"
)
MIXED = "Ada wrote שלום עולם, and e\u0301toile de\u0301ja\u0300 مرحبا بالعالم 😀 to the keeper."


class Opened:
    """A page, and what it did: requests and messages of its console."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.told: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.told.append(message.text))
        self.page.on("pageerror", lambda error: self.told.append(str(error)))
        self.page.goto(address)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).text_content()


Show = Callable[..., Opened]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Show]:
    """Write an explanation's page and open it."""
    opened: list[Opened] = []

    def show(found: Explanation | str, **options: Any) -> Opened:
        path = tmp_path / f"{len(opened)}.html"
        html = found if isinstance(found, str) else found.to_html()
        path.write_text(html, encoding="utf-8")
        opened.append(Opened(browser, path.as_uri(), **options))
        return opened[-1]

    yield show
    for one in opened:
        one.context.close()


@pytest.fixture(scope="module")
def qa(tiny: Path) -> minibert.QuestionAnswerer:
    return minibert.QuestionAnswerer.from_pretrained(
        tiny, precision="fp32", attention="eager", max_length=96, doc_stride=30
    )


@pytest.fixture(scope="module")
def found(qa, field_notes) -> Explanation:
    """An explanation of several windows, whole."""
    found = qa.explain(field_notes[5].question, field_notes[5].context)
    assert len(found.windows) > 2
    return found


def shown(value: float) -> str:
    """A number as the page writes it."""
    return f"{value:.3f}".replace("-", "−")


def chosen_text(page: Any) -> str:
    return "".join(page.locator("#passage mark.chosen").all_text_contents())


def test_it_loads_by_itself(show, found):
    """No request but for the file, no word in the console, and everything is there."""
    opened = show(found)
    assert len(opened.requests) == 1 and opened.told == []
    assert opened.text("h1") == found.question and opened.text("#passage") == found.context
    for place in ("bars", "windows", "decoders", "lens", "shares", "occlusions"):
        assert opened.page.locator(f"#{place} > *").count(), place
    assert not opened.page.locator("form").is_visible()
    for answer, text in zip(
        found.answers, opened.page.locator("#answers li").all_text_contents(), strict=True
    ):
        assert " ".join(answer.answer.split()) in text
        assert f"start {shown(answer.start_logit)}, end {shown(answer.end_logit)}" in text


def test_a_runner_up_is_marked_everywhere(show, found):
    opened = show(found)
    page, context = opened.page, found.context
    assert chosen_text(page) == found.answers[0].answer
    for rank in (3, 1, 0):
        answer = found.answers[rank]
        page.locator("#answers button").nth(rank).click()
        assert chosen_text(page) == answer.answer
        pressed = page.locator('#answers [aria-pressed="true"]')
        assert pressed.count() == 1 and str(rank + 1) in pressed.text_content()
        words = page.locator("#bars .chosen").all_text_contents()
        wanted = [(a, b) for a, b in found.context_words if a < answer.end and answer.start < b]
        window = found.windows[answer.window]
        inside = window.starts[window.context_start], window.ends[window.context_end - 1]
        wanted = [(max(a, inside[0]), b) for a, b in wanted]
        assert [w[-1] for w in words] == [context[b - 1] for _, b in wanted]
        assert f"start {shown(answer.start_logit)}, end {shown(answer.end_logit)}" in opened.text(
            "#cell"
        )
        holding = page.locator("#windows .answer").count()
        first, last = (
            sum(window.token_start + t - window.context_start for t in [place])
            for place in (answer.token_start, answer.token_end)
        )
        assert holding == sum(
            w.token_start <= first and last < w.token_start + w.context_end - w.context_start
            for w in found.windows
        )


def test_the_grid_shows_the_object_s_numbers(show, found):
    """By the pointer, in two windows: both scores, the rank, the rule that is broken."""
    opened = show(found)
    page, limit = opened.page, found.max_answer_len
    rules = set()
    for index in (found.answers[0].window, len(found.windows) - 1):
        window = found.windows[index]
        page.locator("#windows button").nth(index).click()
        s, e = window.start_logits, window.end_logits
        inside = range(window.context_start, window.context_end)
        legal = {
            (i, j): s[i] + e[j] for i, j in itertools.product(inside, inside) if i <= j < i + limit
        }
        size = len(s)
        cells = [divmod(k, size) for k in random.Random(index).sample(range(size * size), 25)]
        cells += random.Random(index).sample(sorted(legal), 10)
        page.locator("#heat").scroll_into_view_if_needed()
        box = page.locator("#heat").bounding_box()
        for i, j in cells:
            x, y = ((k + 0.5) / size for k in (j, i))
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            told = opened.text("#cell")
            assert (
                f": start {shown(s[i])}, end {shown(e[j])}, together {shown(s[i] + e[j])}; " in told
            )
            if (i, j) in legal:
                rank = 1 + sum(value > legal[i, j] for value in legal.values())
                assert told.endswith(f"number {rank} of {len(legal)} legal spans")
                text = found.context[window.starts[i] : window.ends[j]]
                assert told.startswith(f"“{' '.join(text.split())}”")
            else:
                rule = "order" if j < i else "length" if {i, j} <= set(inside) else "outside"
                assert told.endswith(f"no legal span: {found.rules[rule]}")
                rules.add(rule)
    assert rules == {"order", "length", "outside"}


def open_pieces(page):
    """The table of pieces is filled once its `details` have opened, a task later than the click."""
    page.locator("summary").click()
    page.locator("#piece-table tbody tr").first.wait_for()


def test_the_other_numbers(show, found):
    opened = show(found)
    lens = opened.page.locator("#lens tbody tr").all_text_contents()
    for layer, text in zip(found.layers, lens, strict=True):
        assert " ".join(layer.answer.split()) in text
    decoders = opened.page.locator("#decoders tbody tr").all_text_contents()
    for pick, text in zip(found.windows[found.answers[0].window].decoders, decoders, strict=True):
        assert shown(pick.logit) in text and found.rules.get(pick.rule, "") in text
    gradients = found.attribution.gradients
    assert shown(sum(gradients.question) + sum(gradients.context)) in opened.text("#complete")
    assert f"{100 * gradients.gap:.3f} % apart" in opened.text("#complete")
    rows = opened.page.locator("#occlusions tbody tr").all_text_contents()
    for occlusion, text in zip(found.attribution.occlusions, rows, strict=True):
        assert " ".join(occlusion.answer.split()) in text
        assert (occlusion.log_p is None) == ("went with it" in text)
    open_pieces(opened.page)
    pieces = opened.page.locator("#piece-table tbody tr").all_text_contents()
    window = found.windows[found.answers[0].window]
    assert len(pieces) == len(window.tokens)
    for k, text in enumerate(pieces):
        assert window.tokens[k] in text and str(window.ids[k]) in text


def test_the_keyboard_alone(show, found):
    """Tab comes to everything; Enter and the arrows do what the pointer does."""
    page = show(found).page
    reached = []
    for _ in range(80):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.textContent")
        if reached and name == reached[0]:
            break
        reached.append(name)
        if name.startswith("2"):  # the second answer
            page.keyboard.press("Enter")
            assert chosen_text(page) == found.answers[1].answer
        if name == "bars":
            before = page.locator("#word").text_content()
            page.keyboard.press("ArrowRight")
            assert page.locator("#word").text_content() != before
        if name == "grid":
            before = page.locator("#cell").text_content()
            page.keyboard.press("ArrowDown")
            page.keyboard.press("Shift+ArrowRight")
            assert page.locator("#cell").text_content() != before
        if name.startswith("Window 2"):
            page.keyboard.press("Enter")
            assert page.locator(".window-name").first.text_content() == "window 2"
        if name.strip() == "The pieces":
            page.keyboard.press("Enter")
            page.locator("#piece-table").wait_for(state="visible")  # laid out a frame later
    buttons = page.locator("main button:visible").all_text_contents()
    assert set(buttons) <= set(reached) and {"passage", "bars", "grid", "shares"} <= set(reached)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(show, found, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install it")
    page = show(found, color_scheme=scheme).page
    open_pieces(page)
    page.locator("#answers button").nth(1).click()
    results = axe.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


def test_text_stays_text(show, qa):
    question = "Who <b>kept</b> it</script>?"
    found = qa.explain(question, NASTY)
    opened = show(found)
    assert opened.told == [] and len(opened.requests) == 1
    assert opened.page.title().startswith(question)
    assert opened.text("#passage") == NASTY and opened.text("h1") == question
    assert opened.page.locator("#passage script, #passage b, #passage img, h1 b").count() == 0
    text = to_json({"a": NASTY})
    assert not {"<", ">", "&"} & set(text) and json.loads(text) == {"a": NASTY}


POSITIONS = """(words) => {
  const [marked] = document.querySelectorAll("#bars p + p");
  const plain = marked.cloneNode();
  plain.textContent = marked.textContent;
  const spans = [...marked.querySelectorAll(".word")];
  const found = spans.map((span) => span.getBoundingClientRect().toJSON());
  marked.replaceWith(plain);
  let from = 0;
  return found.map((rect, k) => {
    const start = plain.textContent.indexOf(words[k], from);
    from = start + words[k].length;
    const range = new Range();
    range.setStart(plain.firstChild, start);
    range.setEnd(plain.firstChild, from);
    const other = range.getBoundingClientRect();
    return [rect.left - other.left, rect.right - other.right, rect.top - other.top];
  });
}"""


@pytest.mark.parametrize("context", [MIXED, MIXED * 6, "שלום Ada עולם e\u0301a " * 12])
def test_words_stay_where_plain_text_has_them(show, qa, context):
    """Bars hang on words without moving one: each is where the same text stands without bars."""
    reader = minibert.QuestionAnswerer(qa.model, qa.tokenizer, 384)
    found = reader.explain("Who wrote it?", context, attribution=False)
    page = show(found, viewport={"width": 500, "height": 700}).page
    words = page.locator("#bars p + p .word").all_text_contents()
    assert [context[a:b] for a, b in found.context_words] == words
    for left, right, top in page.evaluate(POSITIONS, words):
        assert abs(left) < 1 and abs(right) < 1 and abs(top) < 1


@pytest.mark.parametrize("width", [375, 768, 1920])
def test_it_fits(show, found, width):
    page = show(found, viewport={"width": width, "height": 900}).page
    open_pieces(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_printing(show, found):
    """The whole text, not the part that a box shows; dark on white, also from a dark screen."""
    page = show(found, color_scheme="dark").page
    ink = "getComputedStyle(document.body).color"
    on_screen = page.evaluate(ink)
    page.emulate_media(media="print")
    assert page.evaluate(ink) == "rgb(28, 30, 33)" != on_screen
    for place in ("#passage", "#bars", "#windows", "#shares"):
        assert page.evaluate(
            "(place) => { const e = document.querySelector(place);"
            " return e.scrollHeight <= e.clientHeight + 1; }",
            place,
        ), place
    assert len(page.pdf(format="A4")) > 10_000


def test_a_full_window_is_small(qa, field_notes):
    reader = minibert.QuestionAnswerer(qa.model, qa.tokenizer, 384)
    context = " ".join(example.context for example in field_notes[::8])
    found = reader.explain("Who lit it?", context, attribution=False)
    one = minibert.QuestionAnswerer(qa.model, qa.tokenizer, 384).explain(
        "Who lit it?", context[: found.windows[0].ends[found.windows[0].context_end - 1]]
    )
    assert len(one.windows) == 1 and len(one.windows[0].tokens) == 384
    assert len(one.to_html().encode()) <= 1.5e6


def test_a_notebook_shows_it_in_a_frame(show, found):
    opened = show(f"<!doctype html><title>notebook</title>{found._repr_html_()}")
    frame = opened.page.frame_locator("iframe")
    assert frame.locator("h1").text_content() == found.question
    frame.locator("#answers button").nth(2).click()
    marks = frame.locator("#passage mark.chosen").all_text_contents()
    assert "".join(marks) == found.answers[2].answer
    assert opened.told == []
