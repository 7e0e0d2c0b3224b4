"""The page of an explanation in a real browser: the system's Chromium, driven by playwright."""

import html
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import minibert
from minibert.explain.explanation import Explanation
from minibert.explain.page import asset, to_json
from minibert.explain.page import page as html_of

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


def percent(p: float) -> str:
    """A probability as the page writes it."""
    middle = f"{100 * p:.{1 if p >= 0.1 else 2}f} %"
    return "> 99.9 %" if p > 0.9995 else "< 0.01 %" if p < 0.0001 else middle


def chosen_text(page: Any) -> str:
    return "".join(page.locator("#passage mark.chosen").all_text_contents())


def test_it_needs_no_other_file(show, explanation):
    """The only request is the file, the console has no message, and every part is filled."""
    opened = show(explanation)
    assert len(opened.requests) == 1 and opened.messages == []
    assert (
        opened.text("#question") == explanation.question
        and opened.text("#passage") == explanation.context
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


def test_the_legend_of_the_bars_counts_the_temperature(show, qa):
    for temperature in (1.0, 1.241857812073484):
        calibration = minibert.Calibration(temperature=temperature)
        reader = minibert.QuestionAnswerer(qa.model, qa.tokenizer, calibration=calibration)
        data = reader.explain("Who lit it?", "Ada lit it.", attribution=False).to_dict()
        told = show(html_of(data)).text("[aria-labelledby=h-bars] .note")
        half, none = (f"{math.exp(logits / temperature):,.0f}" for logits in (5, 10))
        assert f"half height is 5 less ({half} times less probable)" in told
        assert f"at least 10 less (at least {none} times less probable)" in told


def test_the_first_screen(show, explanation):
    """Three sentences, the steps with their links, and what the answer was computed with."""
    opened = show(explanation)
    assert len(re.findall(r"\.(?: |$)", opened.text(".lead"))) == 3
    steps = opened.page.locator("#flow a")
    assert steps.count() == 6 and opened.page.locator("#flow").is_visible()
    for address in steps.evaluate_all("(links) => links.map((a) => a.getAttribute('href'))"):
        assert opened.page.locator(f"h2{address}").count() == 1
    made = opened.text("#made")
    assert all(value in made for value in explanation.made_with.values())
    assert re.search(r" on 20\d\d-\d\d-\d\d\.$", made)


def test_each_word_of_the_field_is_explained_where_it_first_appears():
    """In the page's own text, before any other use outside of headings."""
    text = re.sub(r"<(noscript|pre|summary|h2|cite).*?</\1>", "", asset("page.html"), flags=re.S)
    text = re.sub(r"<(?!/?dfn)[^>]*>", " ", text[text.index("<main") :])
    for word in ("logit", "window", "span", "decoder", "log p", "integrated gradients"):
        uses = [match.start() for match in re.finditer(rf"\b{word}", text)]
        assert uses[0] == text.index(f"<dfn>{word}") + len("<dfn>"), word


def test_marks_show_how_probable_an_answer_is(show, explanation):
    """The stronger, the more probable; below 0.1 % only the chosen answer is marked."""
    data = explanation.to_dict()
    first = data["answers"][0]
    places = [(0, 10), (20, 30), (40, 50)]
    scores = (0.8, 0.1, 0.0009)
    data["answers"] = [
        {**first, "start": a, "end": b, "score": score, "answer": data["context"][a:b]}
        for (a, b), score in zip(places, scores, strict=True)
    ]
    opened = show(html_of(data))
    marks = opened.page.locator("#passage mark")
    assert marks.all_text_contents() == [data["context"][a:b] for a, b in places[:2]]
    colours = marks.evaluate_all("(all) => all.map((m) => getComputedStyle(m).backgroundColor)")
    strengths = [float(re.search(r"/ ([\d.]+)\)", colour)[1]) for colour in colours]
    assert strengths == pytest.approx([0.12 + 0.88 * score for score in scores[:2]], abs=0.01)
    opened.page.locator("#answers button").nth(2).click()
    assert chosen_text(opened.page) == data["context"][40:50] and marks.count() == 3


def test_no_eleventh_row_of_ten(show, qa, field_notes):
    """If "no answer" is not among the best ten, its row has no number and says why it is there."""
    calibration = minibert.Calibration(null_threshold=100.0)
    reader = minibert.QuestionAnswerer(qa.model, qa.tokenizer, 96, 30, calibration=calibration)
    note = field_notes[5]
    explanation = reader.explain(note.question, note.context, no_answer=True, attribution=False)
    rows = show(explanation).page.locator("#answers li").all_text_contents()
    assert len(rows) == 11 and rows[9].startswith("10")
    assert rows[10].startswith("–no answer") and "less probable than the 10 above" in rows[10]


def test_an_answer_that_cuts_a_word_is_explained(show, explanation):
    data = json.loads(json.dumps(explanation.to_dict()))
    start, end = next((a, b) for a, b in data["context_words"] if b - a > 4)
    whole = data["context"][start:end]
    for cut in ((start, end), (start + 2, end), (start, end - 1)):
        text = data["context"][slice(*cut)]
        data["answers"][0] |= {"start": cut[0], "end": cut[1], "answer": text}
        opened = show(html_of(data))
        first = opened.page.locator("#part")
        assert first.is_visible() == (cut != (start, end))
        assert not first.is_visible() or f"a part of the word “{whole}”" in first.text_content()


def test_what_a_window_says_alone_becomes_a_lesson(show, explanation):
    data = explanation.to_dict()
    best = explanation.answers[0]
    lacking = [k for k, w in enumerate(explanation.windows) if w.left is None]
    for window in data["windows"]:
        window["alone"]["score"] = 0.4
    assert not show(html_of(data)).page.locator("#alone").is_visible()
    data["windows"][lacking[-1]]["alone"]["score"] = 0.976
    told = show(html_of(data)).text("#alone")
    assert told.startswith(f"Window {lacking[-1] + 1} does not contain the best answer")
    assert "97.6 % sure of another answer" in told and "add up to 100 %" in told
    assert best.answer != data["windows"][lacking[-1]]["alone"]["answer"]


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
    assert page.locator(".null:visible").count() == page.locator(".null").count() == 7
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
    decoders = page.locator("#decoders tbody tr")
    exact = explanation.windows[best.window].decoders[-1]
    assert shown(exact.logit) in decoders.nth(2).text_content()
    assert "higher by more than the threshold" in decoders.nth(2).text_content()
    assert "no answer" in decoders.nth(3).text_content()
    marked = [a for a in explanation.answers[1:] if a.score >= 0.001]
    assert (page.locator("#passage mark").count() > 0) == bool(marked)
    page.locator("#answers button").nth(1).click()
    assert chosen_text(page) == explanation.answers[1].answer
    assert "legal spans in this window" in opened.text("#cell")

    plain = show(reader.explain(question, context, 3, attribution=False))
    assert plain.page.locator(".null:visible").count() == 0
    assert "no answer" not in plain.page.locator("main").inner_text().lower()


def test_no_answer_is_no_violation_of_a_decoder(show, explanation):
    """[CLS] to [CLS] is "no answer": the same choice where this wins, otherwise a difference."""
    data = explanation.to_dict() | {
        "no_answer": True,
        "windows": [explanation.to_dict()["windows"][0]],
    }
    window = data["windows"][0]
    pick = {"token_start": 0, "token_end": 0, "text": "[CLS]", "rule": "null"}
    window["decoders"] = [window["decoders"][0] | pick, *window["decoders"][1:]]
    data["answers"] = [a | {"window": 0} for a in data["answers"][:1]]
    null = {"answer": "", "token_start": 0, "token_end": 0, "start": 0, "end": 0, "score": 0.5}
    null |= {"start_logit": window["start_logits"][0], "end_logit": window["end_logits"][0]}
    data["answers"][0] |= null
    for threshold, told in ((-1000, "the same choice"), (1000, data["rules"]["null"])):
        opened = show(html_of(data | {"null_threshold": threshold}))
        first = opened.page.locator("#decoders tbody tr").first
        assert "no answer" in first.text_content() and told in first.text_content()


def set_range(page, place, value):
    page.locator(place).evaluate(
        "(e, value) => { e.value = value; e.dispatchEvent(new Event('input')); }", str(value)
    )


def test_the_handle_of_the_longest_answer(show, explanation):
    """The grid, the best span and the decoders are computed anew; a loop over all spans agrees."""
    opened = show(explanation)
    index = explanation.answers[0].window
    window = explanation.windows[index]
    s, e = window.start_logits, window.end_logits
    inside = range(window.context_start, window.context_end)
    for limit in (1, 3, explanation.max_answer_len):
        set_range(opened.page, "#longest", limit)
        legal = [(s[i] + e[j], i, j) for i in inside for j in inside if i <= j < i + limit]
        top, i, j = max(legal)
        share = 1 / sum(math.exp((x - top) / explanation.temperature) for x, _, _ in legal)
        told = opened.text("#recomputed")
        text = " ".join(explanation.context[window.starts[i] : window.ends[j]].split())
        assert f"{len(legal)} spans are legal" in told and f"“{text}”" in told
        assert percent(share) in told
        exact = opened.page.locator("#decoders tbody tr").nth(2).text_content()
        assert text in exact and shown(top) in exact
        first = opened.page.locator("#decoders tbody tr").first.text_content()
        pick = window.decoders[0]
        if pick.token_start <= pick.token_end < window.context_end and pick.token_start in inside:
            longer = pick.token_end - pick.token_start >= limit
            assert longer == (f"longer than {limit} tokens" in first)
    assert "other sections" not in opened.text("#recomputed")


def test_the_handle_of_the_threshold(show, qa, field_notes):
    """ "No answer" gets the probability that a model with this threshold gives it."""
    note = field_notes[5]

    def explained(threshold: float) -> Explanation:
        calibration = minibert.Calibration(1.3, threshold)
        reader = minibert.QuestionAnswerer(qa.model, qa.tokenizer, 96, 30, calibration=calibration)
        return reader.explain(note.question, note.context, no_answer=True, attribution=False)

    opened = show(explained(0.0))
    assert (
        not show(qa.explain("Who?", "Ada.", attribution=False))
        .page.locator("#threshold")
        .is_visible()
    )
    best, null = (
        next(a for a in explained(0.0).answers if bool(a.answer) == span) for span in (True, False)
    )
    odds = null.logit - best.logit
    for threshold in (0.0, round(odds - 2, 1), round(odds + 2, 1)):
        set_range(opened.page, "#threshold", threshold)
        told = opened.text("#decided")
        wanted = explained(threshold)
        score = next(a.score for a in wanted.answers if not a.answer)
        assert percent(score) in told
        answer = wanted.answers[0].answer or "no answer"
        assert f"so the answer is “{' '.join(answer.split())}”" in told


def test_a_piece_and_its_characters(show, explanation):
    """Each marks the other, with the pointer and with the keys."""
    opened = show(explanation)
    page = opened.page
    window = explanation.windows[explanation.answers[0].window]
    for k in (2, window.context_start + 3, window.context_end - 1):
        page.locator(f'#chips [data-k="{k}"]').hover()
        text = explanation.context if k >= window.context_start else explanation.question
        marked = "".join(page.locator("#characters .here").all_text_contents())
        assert marked == text[window.starts[k] : window.ends[k]]
        assert f"piece {k}: “{window.tokens[k]}”, id {window.ids[k]}" in opened.text("#piece")
        page.locator(f'#characters [data-k~="{k - 1}"]').first.hover()
        assert page.locator("#chips .here").text_content() == window.tokens[k - 1]
    last = len(window.tokens) - 1
    for box, key, place in (
        ("chips", "Home", 0), ("chips", "ArrowRight", 1), ("characters", "ArrowRight", 2),
        ("characters", "End", last), ("characters", "ArrowLeft", last - 1),
    ):  # fmt: skip
        page.locator(f"#{box}").press(key)
        assert opened.text("#piece").startswith(f"piece {place}: ")
        assert page.locator("#chips .here").text_content() == window.tokens[place]


def test_the_cursors_go_home_and_stay_in_view(show, explanation):
    opened = show(explanation, viewport={"width": 500, "height": 700})
    page = opened.page
    words = page.locator("#bars .word")

    def in_view() -> bool:
        return page.evaluate(
            """() => {
              const box = document.getElementById("bars").getBoundingClientRect();
              const {top, bottom} = document.querySelector("#bars .here").getBoundingClientRect();
              return box.top <= top && bottom <= box.bottom;
            }"""
        )

    # in a window without the answer, the cursor is at the start of the best span of this window
    lacking = next(k for k, w in enumerate(explanation.windows) if w.left is None)
    page.locator("#windows button").nth(lacking).click()
    window = explanation.windows[lacking]
    start = window.starts[window.decoders[-1].token_start]
    word = next(explanation.context[a:b] for a, b in explanation.context_words if a <= start < b)
    assert page.locator("#bars .here").text_content() == word and in_view()
    for key, place in (("End", -1), ("ArrowLeft", -2), ("Home", 0), ("ArrowRight", 1)):
        page.locator("#bars").press(key)
        here = page.locator("#bars .here").text_content()
        assert here == words.nth(place).text_content() and in_view()

    last = len(window.tokens) - 1
    page.locator("#grid").press("Control+Home")
    for key, (i, j) in {"End": (0, last), "Control+End": (last, last), "Home": (last, 0)}.items():
        page.locator("#grid").press(key)
        numbers = f"start {shown(window.start_logits[i])}, end {shown(window.end_logits[j])}, "
        assert numbers in opened.text("#cell")


def test_the_grid_has_labels_a_scale_and_its_answer(show, qa, field_notes):
    """In a full window too, the answer has a ring and lines, and the cursor's part is enlarged."""
    reader = minibert.QuestionAnswerer(qa.model, qa.tokenizer, 384)
    context = " ".join(example.context for example in field_notes[::8])
    explanation = reader.explain("Who lit it?", context, attribution=False)
    opened = show(explanation)
    page, best = opened.page, explanation.answers[0]
    window = explanation.windows[best.window]
    assert len(window.tokens) == 384
    assert page.locator(".axis").all_text_contents() == ["end piece →", "start piece →"]
    s, e = window.start_logits, window.end_logits
    assert opened.text("#low") == f"{min(s) + min(e):.1f}".replace("-", "−")
    assert opened.text("#high") == f"{max(s) + max(e):.1f}".replace("-", "−")
    grid, ring = (page.locator(place).bounding_box() for place in ("#heat", "#grid .pin.answer"))
    for side, length, token in (("x", "width", best.token_end), ("y", "height", best.token_start)):
        middle = ring[side] + ring[length] / 2 - grid[side]
        assert middle == pytest.approx(grid[length] * (token + 0.5) / 384, abs=2)
        assert ring[length] >= 15
    assert page.locator("#grid .line").count() == 2 and page.locator("#grid .pin").count() == 3
    assert page.locator("#near i").count() == 15 * 15 and page.locator("#near i.here").count() == 1
    labels = page.locator("#near span").all_text_contents()
    assert (
        window.tokens[best.token_start] in labels[16:] and window.tokens[best.token_end] in labels
    )


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
    for _ in range(250):
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
    names = "(buttons) => buttons.map((button) => button.id || button.textContent)"
    buttons = page.locator("main button:visible").evaluate_all(names)
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
    assert opened.text("#passage") == NASTY and opened.text("#question") == question
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


def test_a_long_passage_prints_without_overlap(show, qa, field_notes):
    context = " ".join(dict.fromkeys(note.context for note in field_notes))[:5000]
    reader = minibert.QuestionAnswerer(qa.model, qa.tokenizer, 384)
    page = show(
        reader.explain("Who lit it?", context, attribution=False),
        viewport={"width": 718, "height": 1000},
    ).page
    page.emulate_media(media="print")
    boxes = page.evaluate(
        """() => [...document.querySelectorAll("main section")].map((section) => {
          const range = new Range();  // of the text, which can be longer than its box
          range.selectNodeContents(section);
          return [section.getBoundingClientRect().top, range.getBoundingClientRect().bottom];
        })"""
    )
    boxes = [box for box in boxes if box[1] > 0]
    assert len(boxes) > 6
    for (_, bottom), (top, _) in itertools.pairwise(boxes):
        assert bottom <= top
    passage = "document.getElementById('passage')"
    assert page.evaluate(f"{passage}.scrollHeight <= {passage}.clientHeight + 1")
    height = page.evaluate("document.documentElement.scrollHeight")
    pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4")))
    assert 4 <= pages <= height / 1000 + 3  # a page is about 1,000 high, and few have empty space


def test_a_table_wider_than_the_screen_says_so(show, explanation):
    page = show(explanation, viewport={"width": 375, "height": 800}).page
    open_pieces(page)
    wide = """(boxes) => boxes.filter((box) => box.clientWidth).map((box) => [
        box.scrollWidth > box.clientWidth + 1, box.classList.contains("more-columns"),
        getComputedStyle(box, "::before").content])"""
    page.wait_for_function(f"({wide})([...document.querySelectorAll('.wide')]).some((b) => b[1])")
    boxes = page.locator(".wide").evaluate_all(wide)
    assert any(wider for wider, _, _ in boxes)
    for wider, told, words in boxes:
        assert wider == told == ("scroll this table sideways" in words)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_forced_colours_keep_what_has_a_meaning(show, explanation, scheme):
    page = show(explanation, forced_colors="active", color_scheme=scheme).page
    style = "(e, [part, name]) => getComputedStyle(e, part)[name]"

    def of(place: str, name: str, part: str | None = None) -> str:
        return page.locator(place).first.evaluate(style, [part, name])

    for place, part in ((".word", None), ("#answers .meter", "::before"), (".scale i", None)):
        assert "gradient" in of(place, "backgroundImage", part)
    assert of('#answers [aria-pressed="true"]', "backgroundColor") != of(
        '#answers [aria-pressed="false"]', "backgroundColor"
    )
    assert of("#passage mark.chosen", "backgroundColor") != of("#passage", "backgroundColor")
    assert of("#chips .here", "backgroundColor") != of("#chips", "backgroundColor")
    assert of(".key.start", "backgroundColor") != of(".key.end", "backgroundColor")
    assert of(".track i.seen", "backgroundColor") != of(".track", "backgroundColor")


def test_without_scripts_the_answer_is_text(show, explanation):
    data = explanation.to_dict()
    data["question"] = NASTY
    opened = show(html_of(data), java_script_enabled=False)
    told = opened.page.locator("body").inner_text()
    assert " ".join(NASTY.split()) in " ".join(told.split())
    assert explanation.answers[0].answer in told and "This page needs JavaScript" in told
    assert f"({100 * explanation.answers[0].score:.1f} %)" in told
    assert not opened.page.locator("main, h1, form").locator("visible=true").count()


def test_the_code_computes_what_the_page_shows():
    """Every snippet of the page, run one after the other, gives the numbers of the explanation."""
    snippets = re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", asset("page.html"), re.S)
    code = "\n".join(html.unescape(snippet) for snippet in snippets)
    assert len(snippets) == asset("page.html").count("Show the code") >= 8
    question, context = (
        "Who rang the bell at night?",
        "At dusk the keeper, Ada, lit the lamp. Her brother Bo rang the fog bell until midnight.",
    )
    names: dict[str, Any] = {"question": question, "context": context}
    exec(code, names)
    qa = names["qa"]
    explanation = qa.explain(question, context, no_answer=True)
    window = explanation.windows[0]
    assert tuple(qa.tokenizer.tokens(names["window"].input_ids)) == window.tokens
    for side in ("start", "end"):
        wanted = getattr(window, f"{side}_logits")
        assert names[f"{side}_logits"].tolist() == pytest.approx(wanted, abs=1e-4)
    plain = qa.explain(question, context, attribution=True)
    best = plain.answers[0]
    assert names["answers"] and names["answers"][0].answer == best.answer
    assert names["probabilities"].max() == pytest.approx(best.score, rel=1e-4)
    assert names["no_answer"] == (explanation.answers[0].answer == "")
    picks = [(d.token_start, d.token_end) for d in plain.windows[0].decoders]
    assert [names["first"], names["second"], names["third"]] == picks
    assert names["layers"] == [layer.answer for layer in plain.layers]
    changes = {
        question[o.start : o.end]: o.log_p - math.log(best.score)
        for o in plain.attribution.occlusions
        if o.side == "question" and o.log_p is not None
    }
    assert len(changes) > 4
    for word in set(changes) & set(question.split()):  # the snippet cuts words at spaces only
        assert names["changes"][word] == pytest.approx(changes[word], abs=1e-3)


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
    assert frame.locator("#question").text_content() == explanation.question
    frame.locator("#answers button").nth(2).click()
    marks = frame.locator("#passage mark.chosen").all_text_contents()
    assert "".join(marks) == explanation.answers[2].answer
    frame.locator("#flow a").nth(4).click()
    assert frame.locator("#h-grid").evaluate("(e) => e.getBoundingClientRect().top") < 720
    assert opened.messages == []
