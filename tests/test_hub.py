"""The blog post's own model, from the hub: `pytest -m hub` where there is a network."""

import huggingface_hub
import numpy as np
import pytest
import torch

import minibert
from minibert.cli import demo_passages
from minibert.spans import argmax_span

MODEL = "bert-large-uncased-whole-word-masking-finetuned-squad"
ANSWERS = ("over 32 +", "general - purpose architectures", "TensorFlow 2. 0 and pytorch")

pytestmark = pytest.mark.hub


@pytest.fixture(autouse=True, scope="module")
def _reachable() -> None:
    try:
        huggingface_hub.HfApi().model_info(MODEL, timeout=10)
    except Exception as error:
        pytest.skip(f"the hub is out of reach: {str(error).partition(chr(10))[0]}")


def test_the_blog_post_s_answers_with_its_own_decoder():
    """Independent argmax over one window, then the detokenizer. The blog post prints 'TensorFlow'
    with its capitals; the model is uncased, so case is not compared."""
    model = minibert.BertForQuestionAnswering.from_pretrained(MODEL)
    tokenizer = minibert.Tokenizer.from_pretrained(MODEL)
    passage = demo_passages()[0]
    for question, expected in zip(passage["questions"], ANSWERS, strict=True):
        example = minibert.Example("", question, passage["context"])
        (feature,) = minibert.prepare_features([example], tokenizer)
        batch = minibert.batches.collate([feature], tokenizer.pad_id)
        with torch.no_grad():
            out = model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        start, end = argmax_span(np.array(out.start_logits[0]), np.array(out.end_logits[0]))
        tokens = tokenizer.tokens(feature.input_ids[start : end + 1])
        assert tokenizer.tokens_to_string(tokens).lower() == expected.lower()


def test_parity_on_the_blog_post_s_model(transformers):
    ours = minibert.BertForQuestionAnswering.from_pretrained(MODEL)
    theirs = transformers.BertForQuestionAnswering.from_pretrained(
        MODEL, attn_implementation="eager"
    )
    ids = torch.randint(1000, 20000, (2, 50))
    with torch.no_grad():
        a, b = ours(ids), theirs.eval()(input_ids=ids, output_hidden_states=True)
    assert all(map(torch.equal, a.hidden_states, b.hidden_states))
    assert torch.equal(a.start_logits, b.start_logits) and torch.equal(a.end_logits, b.end_logits)


def test_squad_from_the_hub():
    examples = minibert.load_squad("rajpurkar/squad", "validation")
    assert len(examples) == 10_570
