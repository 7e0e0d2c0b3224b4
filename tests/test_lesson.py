"""The views of the page that open the model: embeddings, layers and attention."""

import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import siblings
import torch

import minibert
from minibert.explain.explanation import Explanation
from minibert.explain.page import SCRIPTS, asset
from minibert.explain.site import TRANSPORT

QUESTION = "Who lit the lamp?"
CONTEXT = "At dusk the keeper, Ada, lit the lamp. By dawn it had burned a pint of oil. " * 6


def reader(folder: Path, **options: Any) -> Any:
    return minibert.QuestionAnswerer.from_pretrained(
        folder, precision="fp32", max_length=96, doc_stride=20, **options
    )


@pytest.mark.parametrize("model_type", siblings.FAMILIES)
def test_the_numbers_are_those_in_transformers(transformers, tmp_path, model_type):
    """Attention and embeddings, rounded to thousandths. Our model reads with fused layers and
    "sdpa", which store no attention weights."""
    reference = siblings.checkpoint(transformers, model_type, tmp_path)
    qa = reader(tmp_path)
    explanation = qa.explain(QUESTION, CONTEXT, attribution=False)
    best, embeddings = explanation.answers[0], explanation.embeddings
    window = explanation.windows[best.window]
    ids, segments = torch.tensor([window.ids]), torch.tensor([window.segments])
    called = {"input_ids": ids}
    if model_type != "distilbert":
        called["token_type_ids"] = segments
    theirs = reference.base_model.embeddings
    sums = []  # what LayerNorm gets
    theirs.LayerNorm.register_forward_hook(lambda module, inputs, output: sums.append(inputs[0]))
    with torch.no_grad():
        out = reference(**called, output_attentions=True)

    rows = explanation.attention.rows
    questions = [k for k, start in enumerate(window.starts) if start >= 0 and k < rows[-1] + 1]
    assert list(rows) == [0, *questions] and len(rows) < window.context_start
    weights = np.array(explanation.attention.weights)  # (L, N, R, T)
    wanted = torch.cat(out.attentions)[:, :, list(rows)].numpy()
    assert weights.shape == wanted.shape
    assert abs(weights / 1000 - wanted).max() <= 0.0005 + 1e-5
    assert abs(weights - wanted[..., ::-1] * 1000).max() > 5  # the bound can fail

    piece = theirs.word_embeddings.weight[ids[0]].detach()  # (T, width)
    first = 2 if model_type in ("roberta", "xlm-roberta", "camembert") else 0
    position = theirs.position_embeddings.weight[first : first + ids.shape[1]].detach()
    assert embeddings.width == piece.shape[1]
    assert embeddings.hidden_size == reference.config.hidden_size
    for name, vectors in (("piece", piece), ("position", position)):
        shown = np.array(getattr(embeddings, name)) / 1000
        assert shown.shape == vectors.shape == (ids.shape[1], embeddings.width)
        assert abs(shown - vectors.numpy()).max() <= 0.0005 + 1e-6
    lengths = [piece.norm(dim=1), position.norm(dim=1), torch.zeros(len(piece))]
    lengths.append(sums[0][0].norm(dim=1))
    if model_type == "distilbert":
        assert embeddings.segment == ()
    else:
        table = theirs.token_type_embeddings.weight.detach()
        segment = np.array(embeddings.segment) / 1000
        assert abs(segment - table.numpy()).max() <= 0.0005 + 1e-6
        lengths[2] = table[segments[0]].norm(dim=1)
    assert abs(np.array(embeddings.lengths) - torch.stack(lengths, 1).numpy()).max() < 0.001


def test_the_first_numbers_of_wide_vectors():
    """Of the bundled model's 384 numbers the page gets 32."""
    explanation = minibert.QuestionAnswerer.from_pretrained().explain(
        QUESTION, CONTEXT, attribution=False
    )
    embeddings = explanation.embeddings
    window = explanation.windows[explanation.answers[0].window]
    assert embeddings.width == 384
    for part in (embeddings.piece, embeddings.position):
        assert [len(row) for row in part] == [32] * len(window.tokens)
    assert [len(row) for row in embeddings.segment] == [32, 32]
    whole = math.sqrt(sum(number**2 for number in embeddings.piece[5])) / 1000
    assert whole < embeddings.lengths[5][0]


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_the_numbers_do_not_depend_on_the_precision(tiny, precision):
    """The model inside is shown in float32; bfloat16 has rounded its weights before."""
    try:
        quick = minibert.QuestionAnswerer.from_pretrained(tiny, precision=precision)
    except minibert.InputError as error:
        pytest.skip(str(error))
    exact = minibert.QuestionAnswerer.from_pretrained(tiny, precision="fp32")
    a, b = (qa.explain(QUESTION, CONTEXT, attribution=False) for qa in (quick, exact))
    if a.answers[0].window == b.answers[0].window:
        weights = np.array(a.attention.weights) - np.array(b.attention.weights)
        assert abs(weights).max() <= (0 if precision == "int8" else 20)


def test_a_question_that_is_cut_shows_what_was_read(tiny):
    qa = minibert.QuestionAnswerer.from_pretrained(tiny, precision="fp32")
    short = minibert.QuestionAnswerer(qa.model, qa.tokenizer, 96, 20, max_question_len=3)
    with pytest.warns(UserWarning, match="this part is not read"):
        explanation = short.explain("Who lit the lamp of the tower?", CONTEXT, attribution=False)
    assert explanation.attention.rows == (0, 1, 2, 3)
    read, unread = explanation.windows[0].ends[3], explanation.question_unread
    assert unread == "Who lit the lamp of the tower?"[read:].strip() != ""
    assert {len(head) for layer in explanation.attention.weights for head in layer} == {4}


def test_the_whole_window_sums_to_one(tiny):
    explanation = reader(tiny).explain(QUESTION, CONTEXT, attribution=False)
    assert explanation.question_unread == ""
    weights = np.array(explanation.attention.weights)
    tokens = len(explanation.windows[explanation.answers[0].window].tokens)
    assert weights.shape[-1] == tokens
    assert abs(weights.sum(-1) - 1000).max() <= tokens / 2


# --- in the page


@pytest.fixture(scope="module")
def explanation(tiny) -> Explanation:
    """Of several windows, where the best answer is not in the first one."""
    return reader(tiny).explain(QUESTION, CONTEXT, attribution=False)


@pytest.fixture
def page(browser: Any, explanation: Explanation, tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "page.html"
    path.write_text(explanation.to_html(), encoding="utf-8")
    page = browser.new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(path.as_uri())
    yield page
    page.close()
    assert messages == []


def text_of(page: Any, selector: str) -> str:
    return " ".join(page.locator(selector).text_content().split())


def share(thousandths: int) -> str:
    return f"{thousandths / 10:.1f} %"


def test_the_strips_show_the_parts_of_a_token(page, explanation):
    """Their cells, their lengths and the sum, for the answer's first token and for others."""
    embeddings, best = explanation.embeddings, explanation.answers[0]
    window = explanation.windows[best.window]
    for k in (best.token_start, 0, len(window.tokens) - 1):
        if k != best.token_start:
            page.locator("#token").fill(str(k))
        told = f"{window.tokens[k]} at position {k} of {len(window.tokens) - 1}"
        assert text_of(page, "#token-told") == told
        parts = [embeddings.piece[k], embeddings.position[k]]
        parts.append(embeddings.segment[window.segments[k]])
        parts.append(tuple(map(sum, zip(*parts, strict=True))))
        strips = page.locator(".strip")
        assert strips.count() == 4
        largest = max(abs(number) for part in parts for number in part)
        for row, part, length in zip(strips.all(), parts, embeddings.lengths[k], strict=True):
            assert f"length {length:.2f}" in row.text_content()
            for cell, number in zip(row.locator("i").all(), part, strict=True):
                title = cell.get_attribute("title").replace("−", "-")
                assert float(title) == pytest.approx(number / 1000)
                assert cell.get_attribute("class") == ("against" if number < 0 else "for")
                strength = cell.evaluate("(cell) => Number(cell.style.getPropertyValue('--a'))")
                assert strength == pytest.approx(abs(number) / largest, abs=0.006)
    page.locator("#token").focus()
    page.keyboard.press("Home")
    assert text_of(page, "#token-told").startswith("[CLS] at position 0")


def test_the_slider_marks_each_layer_s_answer(page, explanation):
    layers = explanation.layers
    assert text_of(page, "#depth-passage mark") == " ".join(layers[-1].answer.split())
    page.locator("#depth").focus()
    for layer in reversed(layers[:-1]):
        page.keyboard.press("ArrowLeft")
        assert page.locator("#depth-passage mark").text_content() == layer.answer
        assert page.locator("#depth-passage").text_content() == explanation.context
        rest = page.locator("#depth-passage").evaluate("(node) => node.firstChild.data")
        assert rest == explanation.context[: layer.start]
        row = text_of(page, "#lens tr.here")
        assert row.startswith(f"layer {layer.layer}" if layer.layer else "embeddings")
    assert "the embeddings" in text_of(page, "#depth-told")


def weights_of(explanation: Explanation) -> Any:
    return np.array(explanation.attention.weights)  # (L, N, R, T)


def test_the_page_begins_with_the_head_that_looks_at_the_answer(page, explanation):
    best, weights = explanation.answers[0], weights_of(explanation)
    to_answer = weights[:, :, 1:, best.token_start : best.token_end + 1].sum(-1)  # without [CLS]
    layer, head = np.unravel_index(to_answer.sum(-1).argmax(), to_answer.shape[:2])
    row = 1 + int(to_answer[layer, head].argmax())
    begin = [str(layer), str(head), str(row)]
    pickers = ("layer", "head", "from")
    assert [page.locator(f"#{name}").input_value() for name in pickers] == begin
    page.locator("#layer").select_option(index=0)
    page.locator("#from").select_option(index=2)
    page.locator("#most").click()
    assert [page.locator(f"#{name}").input_value() for name in pickers] == begin


def test_the_map_and_the_lines_show_the_numbers(page, explanation):
    """Random cells with the pointer, every line, and the cursor with the keys."""
    weights, rows = weights_of(explanation), explanation.attention.rows
    window = explanation.windows[explanation.answers[0].window]
    size, generator = len(window.tokens), random.Random(0)
    for layer, head in ((0, 0), (weights.shape[0] - 1, weights.shape[1] - 1)):
        page.locator("#layer").select_option(index=layer)
        page.locator("#head").select_option(index=head)
        shown = weights[layer, head]
        lines = int((shown[:, window.context_start :] >= 20).sum())
        assert page.locator("#lines line").count() == lines > 0
        page.locator("#map").scroll_into_view_if_needed()
        box = page.locator("#map-heat").bounding_box()
        for _ in range(15):
            row, k = generator.randrange(len(rows)), generator.randrange(size)
            x, y = (k + 0.5) / size * box["width"], (row + 0.5) / len(rows) * box["height"]
            page.mouse.move(box["x"] + x, box["y"] + y)
            told = f"“{window.tokens[rows[row]]}” attends to “{window.tokens[k]}” with "
            assert text_of(page, "#attended").startswith(told + share(shown[row, k]))
            most = f"“{window.tokens[shown[row].argmax()]}” ({share(shown[row].max())})"
            assert most in text_of(page, "#attended")
            assert page.locator("#from").input_value() == str(row)
        framed = page.locator("#attention-text .from")
        assert int(framed.get_attribute("data-k")) == rows[row]
    page.locator("#map").focus()
    for key in ("Home", "ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    assert text_of(page, "#attended").startswith("“[CLS]” attends to “[CLS]” with")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    told = f"“{window.tokens[1]}” attends to “[SEP]” with {share(shown[1, -1])}"
    assert text_of(page, "#attended").startswith(told)


def test_a_token_of_the_question_shows_its_lines(page, explanation):
    page.locator('#attention-text [data-k="2"]').click()
    assert page.locator("#from").input_value() == "2"
    frame = page.locator("#attention-text .from").text_content()
    assert frame == explanation.question.split()[1]
    shown = "".join(page.locator("#attention-text p").nth(1).all_text_contents())
    window = explanation.windows[explanation.answers[0].window]
    start, end = window.starts[window.context_start], window.ends[window.context_end - 1]
    assert explanation.context[start:end] in shown


def test_a_question_that_is_cut_is_named(browser, tiny, tmp_path):
    qa = minibert.QuestionAnswerer.from_pretrained(tiny, precision="fp32")
    short = minibert.QuestionAnswerer(qa.model, qa.tokenizer, 96, 20, max_question_len=3)
    with pytest.warns(UserWarning, match="this part is not read"):
        explanation = short.explain("Who lit the lamp of the tower?", CONTEXT, attribution=False)
    path = tmp_path / "page.html"
    path.write_text(explanation.to_html(), encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    assert f"not read: “{explanation.question_unread}”" in text_of(page, "#unread")
    page.close()


@pytest.mark.parametrize("transport", [(), ("server.js",), TRANSPORT])
def test_the_scripts_share_no_name(transport):
    """They have one scope. There a second function of the same name replaces the first one."""
    definition = r"^(?:async )?(?:function\*?|const|let|class) (?:\[(.+?)\] =|(\w+))"
    names = Counter(
        name
        for script in (*SCRIPTS, *transport)
        for several, one in re.findall(definition, asset(script), re.MULTILINE)
        for name in re.findall(r"\w+", several or one)
    )
    assert len(names) > 50 and [name for name, count in names.items() if count > 1] == []
