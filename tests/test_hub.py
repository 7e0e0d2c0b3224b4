"""The blog post's own model, from the hub: run `pytest -m hub` with a network."""

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
        pytest.skip(f"the hub is unreachable: {str(error).partition(chr(10))[0]}")


def test_the_blog_post_s_answers_with_its_own_decoder():
    """Independent argmax over one window, then the detokenizer. The blog post prints 'TensorFlow'
    with capitals. The model is uncased, so we compare without case."""
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


# The question and the context in each model's card. DistilBERT's card prints the answer, at 147 to
# 160. RoBERTa's card prints none; the answer here is the span that a person finds in the context.
CARDS = {
    "distilbert-base-cased-distilled-squad": (
        "What is a good example of a question answering dataset?",
        "\nExtractive Question Answering is the task of extracting an answer from a text given a "
        "question. An example of a\nquestion answering dataset is the SQuAD dataset, which is "
        "entirely based on that task. If you would like to fine-tune\na model on a SQuAD task, you "
        "may leverage the examples/pytorch/question-answering/run_squad.py script.\n",
        "SQuAD dataset",
    ),
    "deepset/roberta-base-squad2": (
        "Why is model conversion important?",
        "The option to convert models between FARM and transformers gives freedom to the user and "
        "let people easily switch between frameworks.",
        "gives freedom to the user",
    ),
}


@pytest.mark.parametrize("model", CARDS)
def test_answers_of_the_siblings_cards(model):
    question, context, expected = CARDS[model]
    answer = minibert.pipeline("question-answering", model=model)(
        question=question, context=context
    )
    assert answer["answer"] == expected
    assert answer["start"] == context.index(expected)


@pytest.mark.parametrize("model", [*CARDS, "google/electra-small-discriminator"])
def test_parity_on_the_siblings(transformers, model):
    """The siblings' encoders, bit for bit; and their tokenizers, on the contexts of the cards."""
    ours = minibert.Bert.from_pretrained(model)
    theirs = transformers.AutoModel.from_pretrained(model, attn_implementation="eager").eval()
    ids = torch.randint(1000, 20000, (2, 50))
    with torch.no_grad():
        a, b = ours(ids), theirs(input_ids=ids, output_hidden_states=True)
    assert all(map(torch.equal, a.hidden_states, b.hidden_states))
    tokenizer = minibert.Tokenizer.from_pretrained(model)
    reference = transformers.AutoTokenizer.from_pretrained(model)
    for _, context, _ in CARDS.values():
        wanted = reference(context, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(context).ids.tolist() == wanted
