"""The views of the page that open the model: embeddings, layers and attention."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import siblings
import torch

import minibert

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
