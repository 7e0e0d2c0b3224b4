"""Misleading questions: each rule changes one thing, so the text gives no answer any more."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from minibert import Example, GoldAnswer, load_squad
from minibert.data.misleading import (
    OPPOSITE,
    RULES,
    Article,
    Asked,
    may_be_one_thing,
    months,
    names,
    numbers,
)
from minibert.data.negatives import (
    CONTEXTS,
    QUESTIONS,
    answer_sentences,
    kinds_with,
    make_negatives,
)

YARDSTICK = Path(__file__).parent / "data" / "misleading.json"
TEXT = (
    "In 1912 Gustaf Dalén lost his sight in Stockholm. Anna Berg came from Uppsala in May 1913. "
    "The oldest lamp burned 14 days. Later 92 lamps were built in Malmö."
)
ARTICLE = Article([TEXT, "Ester Lund worked in Gothenburg, and in 1931 in Lund."])


def asked(question: str, answer: str) -> Asked:
    example = Example("", question, TEXT, (GoldAnswer(answer, TEXT.index(answer)),), False, "")
    return Asked(question, TEXT, answer_sentences(example), (answer,), ARTICLE)


def results(rule: str, question: str, answer: str) -> set[str | None]:
    given = asked(question, answer)
    return {RULES[rule](given, random.Random(seed)) for seed in range(40)}


def test_a_name_is_exchanged_for_one_that_is_used_in_the_same_way():
    """ "in Stockholm": other places come after "in" too. Lund is not near the answer."""
    changed = results("swapped_name", "What did Gustaf lose in Stockholm?", "his sight")
    assert changed <= {f"What did Gustaf lose in {p}?" for p in ("Malmö", "Gothenburg", "Lund")}
    assert "What did Gustaf lose in Malmö?" in changed  # a name of the same text is better
    assert results("swapped_name", "What did he lose?", "his sight") == {None}


@pytest.mark.parametrize(
    ("rule", "question", "answer", "pattern"),
    [
        ("swapped_number", "Who lost his sight in 1912?", "Gustaf Dalén", r"Who .* in 19\d\d\?"),
        ("swapped_number", "Who came in May?", "Anna Berg", r"Who came in [A-Z][a-z]+\?"),
        ("swapped_number", "Which lamp burned 14 days?", "The oldest lamp", r"Which .* 92 days\?"),
        ("swapped_number", "Who came before 1914?", "Anna Berg", None),  # "before 1915" is true too
        ("opposite", "Which was the oldest lamp?", "lamp", r"Which was the youngest lamp\?"),
        ("opposite", "How old is it?", "14 days", None),
        ("opposite", "How many were built at least?", "92", r"How many were destroyed at least\?"),
        ("negation", "Who wasn't blind?", "Anna Berg", r"Who was blind\?"),
        ("negation", "Who was born in Lund?", "Anna Berg", r"Who was not born in Lund\?"),
        ("negation", "Where did Anna come from?", "Uppsala", r"Where didn't Anna come from\?"),
        ("negation", "Who came?", "Anna Berg", None),
        ("added_year", "Who came from Uppsala?", "Anna Berg", r"Who came from Uppsala in \d{4}\?"),
        ("added_year", "When did Anna come?", "May 1913", None),
        ("added_year", "How many lamps were built?", "92", None),  # its sentence has no year
    ],
)
def test_what_each_rule_does(rule, question, answer, pattern):
    for changed in results(rule, question, answer):
        if pattern is None:
            assert changed is None
        else:
            assert changed != question and re.fullmatch(pattern, changed), changed


def test_a_changed_year_is_another_year():
    years = {q[-5:-1] for q in results("swapped_number", "Who lost his sight in 1912?", "Dalén")}
    assert "1912" not in years and years & {"1913", "1931"}


def test_names_that_may_be_of_one_thing():
    pairs = [("Alaska", "Alaskan"), ("Canadian Forces", "CF"), ("New York", "York")]
    assert all(
        may_be_one_thing(one, other) and may_be_one_thing(other, one) for one, other in pairs
    )
    assert not may_be_one_thing("Kent", "Essex")


def test_opposites_work_in_both_directions():
    assert len(OPPOSITE) > 300
    for word, other in OPPOSITE.items():
        assert word != other and other in OPPOSITE


@pytest.fixture(scope="module")
def made(field_notes):
    return make_negatives(field_notes, 1.0, 0, kinds=kinds_with(0.5))


def test_every_rule_keeps_its_promise(field_notes, made):
    """The text and the question's first word stay. What is new stands neither in the sentence with
    the answer, nor in the question before."""
    originals = {example.id: example for example in field_notes}
    for kind in QUESTIONS:
        for negative in made[kind]:
            original = originals[negative.id.partition(":")[0]]
            assert negative.context == original.context and negative.question != original.question
            assert negative.is_impossible and not negative.answers
            was, now = (Counter(re.findall(r"\w+", e.question)) for e in (original, negative))
            new = set(now - was) - {"not", "didn", "wasn", "isn", "t", "in", "a", "an"}
            if kind != "negation":
                assert new and not new & set(re.findall(r"\w+", answer_sentences(original)))
            if kind == "opposite":
                assert not new & set(re.findall(r"\w+", original.context.lower()))


def test_half_of_the_negatives_change_the_question(made):
    changed = sum(len(made[kind]) for kind in QUESTIONS)
    assert 0.35 < changed / sum(map(len, made.values())) < 0.65
    assert sum(len(made[kind]) > 0 for kind in QUESTIONS) >= 4
    assert kinds_with(0.0).keys() == {*CONTEXTS, *QUESTIONS}
    assert sum(kinds_with(0.3).values()) == pytest.approx(1)


def test_names_numbers_and_months():
    text = 'Ada of Kent met "Bo Lee" on 3 May 1912, 4.5 km from New York. She ran.'
    assert [place.text for place in names(text)] == ["Ada of Kent", "Bo Lee", "New York"]
    assert [place.text for place in numbers(text)] == ["3", "1912", "4.5"]
    assert [place.text for place in months(text)] == ["May"]
    for place in (*names(text), *numbers(text), *months(text)):
        assert text[place.start : place.end] == place.text


def test_the_yardstick_is_complete(field_notes):
    """120 questions by hand about the project's paragraphs, none of them in the field notes."""
    examples = load_squad(str(YARDSTICK))
    kinds = Counter(example.id.rsplit("-", 2)[1] for example in examples)
    assert kinds.pop("answerable") == 40 and sum(kinds.values()) == 80 and len(kinds) == 6
    assert all(example.is_impossible != bool(example.answers) for example in examples)
    assert {e.context for e in examples} == {e.context for e in field_notes}
    assert not {e.question for e in examples} & {e.question for e in field_notes}
    assert json.loads(YARDSTICK.read_text(encoding="utf-8"))["version"] == "misleading-1.0"
