"""The page of an explanation in a real browser: the system's Chromium, driven by playwright."""

import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import minibert
from minibert.explain.explanation import Explanation
from minibert.explain.page import to_json

NASTY = (
    "<script>document.title = 'run'</script></script><!-- <b>bold</b> &amp; <img src=x onerror=y> "
    "Ada kept it. \u2028 ]]> \\u003c"
)
MIXED = "Ada wrote שלום עולם, and e\u0301toile de\u0301ja\u0300 مرحبا بالعالم 😀 to the keeper."
ASIAN = (
    "「こんにちは」、（と）言った。」「AVA. Ta. r. ffi VA, 한국어 हिन्दी क्षत्रिय, नमस्ते। ไทยแลนด์ "
    "١٢٣، لا. "
)


class Opened:
    """An open page, with its requests and the messages of its console."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.goto(address)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).text_content()


Show = Callable[..., Opened]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Show]:
    """Write an explanation's page and open it."""
    opened: list[Opened] = []

    def show(explanation: Explanation | str, **options: Any) -> Opened:
        path = tmp_path / f"{len(opened)}.html"
        html = explanation if isinstance(explanation, str) else explanation.to_html()
        path.write_text(html, encoding="utf-8")
        opened.append(Opened(browser, path.as_uri(), **options))
        return opened[-1]

    yield show
    for page in opened:
        page.context.close()


@pytest.fixture(scope="module")
def qa(tiny: Path) -> minibert.QuestionAnswerer:
    return minibert.QuestionAnswerer.from_pretrained(
        tiny, precision="fp32", attention="eager", max_length=96, doc_stride=30
    )


@pytest.fixture(scope="module")
def explanation(qa, field_notes) -> Explanation:
    """An explanation with several windows and the attribution."""
    explanation = qa.explain(field_notes[5].question, field_notes[5].context)
    assert len(explanation.windows) > 2
    return explanation


def shown(value: float) -> str:
    """A number as the page writes it; zero has no sign."""
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def chosen_text(page: Any) -> str:
    return "".join(page.locator("#passage mark.chosen").all_text_contents())


def test_it_needs_no_other_file(show, explanation):
    """The only request is the file, the console has no message, and every part is filled."""
    opened = show(explanation)
    assert len(opened.requests) == 1 and opened.messages == []
    assert (
        opened.text("h1") == explanation.question and opened.text("#passage") == explanation.context
    )
    for place in ("bars", "windows", "decoders", "lens", "shares", "occlusions"):
        assert opened.page.locator(f"#{place} > *").count(), place
    assert not opened.page.locator("form").is_visible()
    for answer, text in zip(
        explanation.answers, opened.page.locator("#answers li").all_text_contents(), strict=True
    ):
        assert " ".join(answer.answer.split()) in text
        assert f"start {shown(answer.start_logit)}, end {shown(answer.end_logit)}" in text


def test_a_runner_up_is_marked_everywhere(show, explanation):
    opened = show(explanation)
    page, context = opened.page, explanation.context
    assert chosen_text(page) == explanation.answers[0].answer
    for rank in (3, 1, 0):
        answer = explanation.answers[rank]
        page.locator("#answers button").nth(rank).click()
        assert chosen_text(page) == answer.answer
        pressed = page.locator('#answers [aria-pressed="true"]')
        assert pressed.count() == 1 and str(rank + 1) in pressed.text_content()
        words = page.locator("#bars .chosen").all_text_contents()
        wanted = [
            (a, b) for a, b in explanation.context_words if a < answer.end and answer.start < b
        ]
        window = explanation.windows[answer.window]
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
            for w in explanation.windows
        )


def test_the_grid_shows_the_explanation_s_numbers(show, explanation):
    """The pointer reads cells of two windows: both logits, the rank, or the broken rule."""
    opened = show(explanation)
    page, limit = opened.page, explanation.max_answer_len
    rules = set()
    for index in (explanation.answers[0].window, len(explanation.windows) - 1):
        window = explanation.windows[index]
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
            numbers = f": start {shown(s[i])}, end {shown(e[j])}, sum {shown(s[i] + e[j])}; "
            page.locator("#cell").filter(has_text=numbers).wait_for()
            told = opened.text("#cell")
            if (i, j) in legal:
                rank = 1 + sum(value > legal[i, j] for value in legal.values())
                assert told.endswith(f"number {rank} of {len(legal)} legal spans in this window")
                text = explanation.context[window.starts[i] : window.ends[j]]
                assert told.startswith(f"“{' '.join(text.split())}”")
            else:
                rule = "order" if j < i else "length" if {i, j} <= set(inside) else "outside"
                assert told.endswith(f"not a legal span: {explanation.rules[rule]}")
                rules.add(rule)
    assert rules == {"order", "length", "outside"}


def test_the_bars_have_the_heights_of_the_legend(show, explanation):
    """A bar loses a tenth of the full height for each logit below the window's highest."""
    page = show(explanation).page
    window = explanation.windows[explanation.answers[0].window]
    best = max(window.start_logits), max(window.end_logits)
    bars = page.locator("#bars .word").evaluate_all(
        """(words) => words.map((word) => {
          word.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
          const heights = ["--s", "--e"].map((name) => Number(word.style.getPropertyValue(name)));
          return [heights, document.getElementById("word").textContent];
        })"""
    )
    assert len(bars) > 50
    for heights, told in bars:
        logits = re.search(r": start (.+), end (.+)", told.replace("−", "-")).groups()
        for height, logit, highest in zip(heights, map(float, logits), best, strict=True):
            assert height == pytest.approx(max(0, 1 - (highest - logit) / 10), abs=0.001)
    assert "half height is 5 less" in page.locator("[aria-labelledby=h-bars] .note").text_content()


def test_no_answer_is_shown_everywhere(show, qa, field_notes):
    """Where "no answer" wins, every section says so. Without this switch, none mentions it."""
    calibration = minibert.Calibration(null_threshold=-10.0)
    reader = minibert.QuestionAnswerer(qa.model, qa.tokenizer, 96, 30, calibration=calibration)
    question, context = field_notes[5].question, field_notes[5].context
    explanation = reader.explain(question, context, 3, 30, True, attribution=False)
    best = explanation.answers[0]
    assert best.answer == "" and explanation.no_answer and len(explanation.windows) > 2
    opened = show(explanation)
    page = opened.page
    assert opened.text("#answer").startswith("no answer ")
    assert page.locator("#answers li").first.text_content().startswith("1no answer")
    assert page.locator(".null:visible").count() == page.locator(".null").count() == 8
    # no part of the passage is marked, but [CLS], which has the logits of "no answer"
    assert chosen_text(page) == ""
    assert page.locator("#bars .chosen").all_text_contents() == ["[CLS]"]
    assert opened.text("#word").startswith(
        f"“[CLS]”, a special piece: start {shown(best.start_logit)}, "
    )
    assert page.locator("#grid .answer").count() == 1
    numbers = [best.start_logit, best.end_logit, best.start_logit + best.end_logit]
    start, end, both = map(shown, numbers)
    told = f": start {start}, end {end}, sum {both}; the logits of “no answer”"
    assert opened.text("#cell").endswith(told)
    for k, text in enumerate(page.locator("#windows button").all_text_contents()):
        assert ("no answer” are lowest here" in text) == (k == best.window)
        assert "contain" not in text and "alone: no answer" in text
    assert opened.text("#stays").startswith("no answer is the best answer")
    page.locator("#answers button").nth(1).click()
    assert chosen_text(page) == explanation.answers[1].answer
    assert "legal spans in this window" in opened.text("#cell")

    plain = show(reader.explain(question, context, 3, attribution=False))
    assert plain.page.locator(".null:visible").count() == 0
    assert "no answer" not in plain.page.locator("main").inner_text().lower()


def open_pieces(page):
    """Open the table of pieces. The browser fills it some time after the click."""
    page.locator("#pieces summary").first.click()
    page.locator("#piece-table tbody tr").first.wait_for()


def test_the_other_numbers(show, explanation):
    opened = show(explanation)
    lens = opened.page.locator("#lens tbody tr").all_text_contents()
    for layer, text in zip(explanation.layers, lens, strict=True):
        assert " ".join(layer.answer.split()) in text
    decoders = opened.page.locator("#decoders tbody tr").all_text_contents()
    for pick, text in zip(
        explanation.windows[explanation.answers[0].window].decoders, decoders, strict=True
    ):
        assert shown(pick.logit) in text and explanation.rules.get(pick.rule, "") in text
    gradients = explanation.attribution.gradients
    assert shown(sum(gradients.question) + sum(gradients.context)) in opened.text("#complete")
    assert f"{100 * gradients.gap:.3f} % apart" in opened.text("#complete")
    rows = opened.page.locator("#occlusions tbody tr").all_text_contents()
    for occlusion, text in zip(explanation.attribution.occlusions, rows, strict=True):
        assert " ".join(occlusion.answer.split()) in text
        assert (occlusion.log_p is None) == ("no longer possible" in text)
    open_pieces(opened.page)
    pieces = opened.page.locator("#piece-table tbody tr").all_text_contents()
    window = explanation.windows[explanation.answers[0].window]
    assert len(pieces) == len(window.tokens)
    for k, text in enumerate(pieces):
        assert window.tokens[k] in text and str(window.ids[k]) in text


def test_the_keyboard_alone(show, explanation):
    """Tab reaches every control. Enter and the arrow keys do what the pointer does."""
    page = show(explanation).page
    reached = []
    for _ in range(120):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.textContent")
        if reached and name == reached[0]:
            break
        reached.append(name)
        if name.startswith("2"):  # the second answer
            page.keyboard.press("Enter")
            assert chosen_text(page) == explanation.answers[1].answer
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
        if name.strip() == "All pieces in a table":
            page.keyboard.press("Enter")
            page.locator("#piece-table").wait_for(state="visible")  # the browser needs a moment
    buttons = page.locator("main button:visible").all_text_contents()
    assert set(buttons) <= set(reached) and {"passage", "bars", "grid", "shares"} <= set(reached)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(show, explanation, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python"
    )
    page = show(explanation, color_scheme=scheme).page
    open_pieces(page)
    page.locator("#answers button").nth(1).click()
    results = axe.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


def test_text_stays_text(show, qa):
    question = "Who <b>kept</b> it</script>?"
    explanation = qa.explain(question, NASTY)
    opened = show(explanation)
    assert opened.messages == [] and len(opened.requests) == 1
    assert opened.page.title().startswith(question)
    assert opened.text("#passage") == NASTY and opened.text("h1") == question
    assert opened.page.locator("#passage script, #passage b, #passage img, h1 b").count() == 0
    text = to_json({"a": NASTY})
    assert not {"<", ">", "&"} & set(text) and json.loads(text) == {"a": NASTY}


# Where each character is with the bars, and how far it is from its place in plain text.
POSITIONS = """() => {
  const places = (root) => {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT), places = [];
    while (walker.nextNode()) {
      let start = 0;
      for (const character of walker.currentNode.data) {
        const range = new Range();
        range.setStart(walker.currentNode, start);
        range.setEnd(walker.currentNode, (start += character.length));
        const {left, right, top} = range.getBoundingClientRect();
        places.push([left, right, top]);
      }
    }
    return places;
  };
  const [marked] = document.querySelectorAll("#bars p + p");
  const plain = marked.cloneNode();
  plain.textContent = marked.textContent;
  const before = places(marked);
  marked.replaceWith(plain);
  const after = places(plain);
  return before.map((place, k) => place.map((x, side) => x - after[k][side]));
}"""


@pytest.mark.parametrize(
    "context", [MIXED, MIXED * 6, "שלום Ada עולם e\u0301a " * 12, ASIAN, ASIAN * 6]
)
def test_words_stay_where_plain_text_has_them(show, qa, context):
    """The bars move no character, with any fonts: each is where plain text has it.

    The browser rounds the width of each piece of a line to 1/64 px, and a line has up to 60 pieces.
    """
    reader = minibert.QuestionAnswerer(qa.model, qa.tokenizer, 384)
    explanation = reader.explain("Who wrote it?", context, attribution=False)
    page = show(explanation, viewport={"width": 500, "height": 700}).page
    words = page.locator("#bars p + p .word").all_text_contents()
    assert [context[a:b] for a, b in explanation.context_words] == words
    moves = page.evaluate(POSITIONS)
    assert len(moves) == len(context.rstrip())
    for left, right, top in moves:
        assert abs(left) < 1 and abs(right) < 1 and top == 0


@pytest.mark.parametrize("width", [375, 768, 1920])
def test_it_fits(show, explanation, width):
    page = show(explanation, viewport={"width": width, "height": 900}).page
    open_pieces(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_printing(show, explanation):
    """Paper shows the whole text, not the part in a scrolling box, and it is dark on white."""
    page = show(explanation, color_scheme="dark").page
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
    explanation = reader.explain("Who lit it?", context, attribution=False)
    one = minibert.QuestionAnswerer(qa.model, qa.tokenizer, 384).explain(
        "Who lit it?",
        context[: explanation.windows[0].ends[explanation.windows[0].context_end - 1]],
    )
    assert len(one.windows) == 1 and len(one.windows[0].tokens) == 384
    assert len(one.to_html().encode()) <= 1.5e6


def test_a_notebook_shows_it_in_a_frame(show, explanation):
    opened = show(f"<!doctype html><title>notebook</title>{explanation._repr_html_()}")
    frame = opened.page.frame_locator("iframe")
    assert frame.locator("h1").text_content() == explanation.question
    frame.locator("#answers button").nth(2).click()
    marks = frame.locator("#passage mark.chosen").all_text_contents()
    assert "".join(marks) == explanation.answers[2].answer
    assert opened.messages == []
