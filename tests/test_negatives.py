"""Questions without an answer: the promises of each kind, for any data."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import minibert
from minibert import Example, GoldAnswer
from minibert.cli import app
from minibert.data.negatives import (
    CONTEXTS,
    lacks_answers,
    make_negatives,
    negatives_report,
    without_answer_sentences,
)
from minibert.data.similarity import TfIdf, words
from minibert.training.finetune import load_data

NOTES = str(Path(__file__).parent / "data" / "field_notes.json")

WORDS = st.sampled_from(["Ada", "lit", "the", "lamp", "at", "dusk", "May", "and", "rain", "fell"])
SENTENCES = st.lists(WORDS, min_size=1, max_size=6).map(lambda s: " ".join(s) + ". ")


@st.composite
def data(draw):
    """Up to 12 questions about up to 3 articles of a few paragraphs."""
    texts = st.lists(SENTENCES, min_size=1, max_size=3).map("".join)
    examples = []
    for article in range(draw(st.integers(1, 3))):
        for _ in range(draw(st.integers(1, 4))):
            context = draw(texts)
            start = draw(st.integers(0, len(context) - 1))
            end = draw(st.integers(start + 1, len(context)))
            answers = (GoldAnswer(context[start:end], start),) if draw(st.booleans()) else ()
            name, title = f"q{len(examples)}", f"title {article}"
            question = draw(texts)
            examples.append(Example(name, question, context, answers, not answers, title))
    return examples


@settings(max_examples=100, deadline=None)
@given(data(), st.floats(0, 1), st.integers(0, 3))
def test_every_negative_keeps_the_promises_of_its_kind(examples, share, seed):
    negatives = make_negatives(examples, share, seed)
    answerable = {e.id: e for e in examples if e.answers}
    made = [(kind, negative) for kind, group in negatives.items() for negative in group]
    wanted = round(share * len(answerable))
    ids = [negative.id for _, negative in made]
    assert len(set(ids)) == len(ids) <= wanted and not set(ids) & {e.id for e in examples}
    assert sum(negatives_report(negatives, share, examples).values()) == wanted
    for kind, negative in made:
        original = answerable[negative.id.partition(":")[0]]
        assert negative.question == original.question and negative.title == original.title
        assert negative.is_impossible and not negative.answers
        assert words(negative.context) and original.answers[0].text not in negative.context
        titles = {e.title for e in examples if e.context == negative.context}
        if kind == "similar_paragraph":
            assert original.title in titles and negative.context != original.context
        elif kind == "other_article":
            assert titles - {original.title}
        else:
            assert len(negative.context) < len(original.context)
    again = make_negatives(examples, share, seed)
    assert again == negatives


def test_the_similar_paragraph_is_the_most_similar_one_without_an_answer(field_notes):
    """Compared with a plain product of dense vectors."""
    contexts = list(dict.fromkeys(e.context for e in field_notes))
    vocabulary = sorted({word for text in contexts for word in words(text)})
    counts = np.array([[words(text).count(word) for word in vocabulary] for text in contexts])
    idf = np.log(1 + len(contexts) / (counts > 0).sum(axis=0))
    vectors = counts * idf / np.linalg.norm(counts * idf, axis=1, keepdims=True)
    index = TfIdf(contexts)
    for example in field_notes[::20]:
        query = np.array([words(example.question).count(word) for word in vocabulary]) * idf
        expected = vectors @ query / (np.linalg.norm(query) or 1)
        assert index.similarities(example.question) == pytest.approx(expected)
    assert index.similarities("zyzzyva").max() == 0.0 and index.ranked("zyzzyva")[0] == 0
    assert all(index.ranked(text)[0] == place for place, text in enumerate(contexts))

    one_article = [Example(e.id, e.question, e.context, e.answers) for e in field_notes]
    for negative in make_negatives(one_article, 0.3, 0)["similar_paragraph"]:
        [original] = [e for e in field_notes if e.id == negative.id.partition(":")[0]]
        cosines = dict(zip(contexts, index.similarities(original.question), strict=True))
        for text, cosine in cosines.items():
            if cosine > cosines[negative.context]:
                assert text == original.context or not lacks_answers(text, original.answers)


def test_the_frequencies_of_the_kinds(field_notes):
    """For 92 questions that allow every kind: binomial counts, within four standard deviations."""
    counts: Counter[str] = Counter()
    for seed in range(6):
        for kind, group in make_negatives(field_notes, 1.0, seed).items():
            counts[kind] += len(group)
    total = counts.total()
    assert total == 6 * sum(bool(e.answers) for e in field_notes)
    for kind, share in CONTEXTS.items():
        assert abs(counts[kind] / total - share) < 0.1, counts
    quarter = make_negatives(field_notes, 0.25, 1)
    answerable = sum(bool(e.answers) for e in field_notes)
    assert sum(map(len, quarter.values())) == round(0.25 * answerable)
    assert quarter != make_negatives(field_notes, 0.25, 2)


@pytest.mark.parametrize(
    ("context", "answer", "rest"),
    [
        ("Ada lit it. She slept. It rained.", "slept", "Ada lit it. It rained."),
        ('He said "stop!" Then it rained.', "stop", "Then it rained."),
        ("No end here", "end", ""),
        ("灯台は高い。海は青い。", "高い", "海は青い。"),
        ("One. Two. Three.", "One. Two", "Three."),
    ],
)
def test_the_sentence_of_the_answer_is_removed(context, answer, rest):
    gold = GoldAnswer(answer, context.index(answer))
    assert without_answer_sentences(Example("", "?", context, (gold,))) == rest


def test_a_text_lacks_answers_as_characters_and_as_words():
    gold = [GoldAnswer("the Keeper's lamp", 0)]
    assert not lacks_answers("A Keepers, lamp!", gold)  # equal in the metric
    assert not lacks_answers("THE KEEPER'S LAMP", gold)
    assert lacks_answers("The keeper had a lamp.", gold)
    assert not lacks_answers(" ... ", gold)  # no words, so no context


def test_a_single_paragraph():
    """Only its own text without the sentence is possible; without other sentences, nothing."""
    long = Example("a", "Who?", "Ada lit it. It rained.", (GoldAnswer("Ada", 0),))
    short = Example("b", "Who?", "Ada lit it.", (GoldAnswer("Ada", 0),))
    assert [n.context for n in make_negatives([long], 1, 0)["without_the_sentence"]] == [
        "It rained."
    ]
    assert make_negatives([short], 1, 0) == {kind: [] for kind in CONTEXTS}
    assert negatives_report({}, 1, [short]) == {"negatives_not_made": 1}
    others = [Example("c", "What?", "A lamp burned.")]
    for seed in range(5):
        [negative] = [n for g in make_negatives([short], 1, seed, others).values() for n in g]
        assert negative.context == "A lamp burned."


def test_an_id_that_is_taken_stays_unique():
    taken = [
        Example("a", "Who?", "Ada lit it. It rained.", (GoldAnswer("Ada", 0),)),
        Example("a:without_the_sentence", "Who?", "It rained.", (), True),
        Example("a:similar_paragraph", "Who?", "It rained.", (), True),
    ]
    [negative] = [n for group in make_negatives(taken, 1, 0).values() for n in group]
    assert negative.id not in {e.id for e in taken}


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_bad_share_is_named(share):
    with pytest.raises(minibert.InputError, match=f"negatives={share}: expected a share"):
        make_negatives([], share, 0)


def training_config(tiny, folder, **changes):
    return minibert.TrainingConfig(
        init=str(tiny),
        train_file=NOTES,
        output_dir=str(folder),
        epochs=1,
        max_length=128,
        doc_stride=32,
        max_train_examples=16,
        precision="fp32",
        progress=False,
        **changes,
    )


def test_training_adds_them(tiny, tmp_path, field_notes):
    """The windows of the questions and of their negatives. All negatives are labelled [CLS]."""
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    config = training_config(tiny, tmp_path, negatives=0.5)
    features = load_data(config, tokenizer).features
    chosen = random.Random(config.seed).sample(field_notes, 16)
    made = [n for g in make_negatives(chosen, 0.5, config.seed, field_notes).values() for n in g]
    assert len(made) == round(0.5 * sum(bool(e.answers) for e in chosen))
    assert list(dict.fromkeys(f.example_id for f in features)) == [e.id for e in [*chosen, *made]]
    places = {f.start_position for f in features if f.example_id in {n.id for n in made}}
    assert places == {0}
    without = load_data(training_config(tiny, tmp_path), tokenizer).features
    assert {f.example_id for f in without} == {e.id for e in chosen}


def test_another_share_is_another_run(tiny, tmp_path):
    minibert.train(training_config(tiny, tmp_path / "run", negatives=0.5))
    with pytest.raises(
        minibert.CheckpointError, match=r"negatives was 0\.5, is 0\.25; train_data was"
    ):
        minibert.train(training_config(tiny, tmp_path / "run", negatives=0.25), resume=True)
    with pytest.raises(minibert.InputError, match="negatives=2: expected a share"):
        training_config(tiny, tmp_path, negatives=2)


def test_check_data_counts_them(tiny):
    arguments = ["check-data", NOTES, "--tokenizer", str(tiny), "--negatives", "0.5"]
    result = CliRunner().invoke(app, arguments)
    report = dict(line.split() for line in result.stdout.splitlines())
    assert result.exit_code == 0 and report["unanswerable"] == str(28 + 46)
    counts = [int(report[f"negatives_{kind}"]) for kind in CONTEXTS]
    assert sum(counts) == 46 and min(counts) > 0 and report["negatives_not_made"] == "0"
