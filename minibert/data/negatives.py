"""Questions without an answer, made from questions with an answer: examples -> more examples.

Every question in SQuAD v1.1 has an answer, so a model trained on it never learns to find none. Here
a question gets a new context that does not answer it. This is a similar paragraph, as a search
would return (arXiv:1710.10723 section 3), or its own paragraph without the answer's sentence, or a
paragraph about another subject. Or it keeps its context, and the question is changed
(`misleading.py`).
"""

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..errors import InputError
from .examples import Example, GoldAnswer
from .metric import normalize_answer
from .misleading import RULES, Article, Asked
from .similarity import TfIdf, words

# The kinds of new context, and how often each is tried first. Similar paragraphs teach the most.
# The other kinds keep a model from deciding by similarity alone.
CONTEXTS = {"similar_paragraph": 0.7, "without_the_sentence": 0.2, "other_article": 0.1}

# The rules for changed questions, and how often each is tried first. People exchange names and use
# opposites most often (arXiv:1806.03822 table 1).
QUESTIONS = {
    "swapped_name": 0.35,
    "opposite": 0.25,
    "swapped_number": 0.15,
    "negation": 0.15,
    "added_year": 0.1,
}

OTHER_ARTICLE_TRIES = 20  # random paragraphs to try for "other_article"

# The end of a sentence: a mark, closing brackets and quotes, white space; or a CJK mark alone.
SENTENCE_END = re.compile(r"[.!?][\"')\]”’]*\s+|[。！？]")


def make_negatives(
    examples: Sequence[Example],
    share: float,
    seed: int,
    others: Iterable[Example] = (),
    kinds: Mapping[str, float] = CONTEXTS,
) -> dict[str, list[Example]]:
    """New examples without an answer, one for each example of a `share` of the answerable ones.

    Returns kind -> examples. `share` is from 0 to 1. The `seed` decides which examples are used,
    and their kinds. If a kind is impossible (an article with one paragraph has no similar one), the
    next of `kinds` is used; the kinds of `CONTEXTS` and of `QUESTIONS` take each other's place only
    if nothing else is left. If all kinds are impossible, the question is left out. Other paragraphs
    come from `examples` and `others`. Examples with the same `title` are one article. "Similar"
    means similar to the question. A new context never contains a gold answer of its question. The
    new id is the old id, a colon and the kind. Raises `InputError` for a share out of range.
    """
    if not 0 <= share <= 1:
        raise InputError(f"negatives={share}: expected a share of the questions, 0 to 1")
    generator = random.Random(seed)
    articles: dict[str, dict[str, None]] = {}  # title -> its different paragraphs, in order
    for example in (*examples, *others):
        articles.setdefault(example.title, {})[example.context] = None
    paragraphs = {title: list(contexts) for title, contexts in articles.items()}
    indices: dict[str, TfIdf] = {}  # by title, made when needed
    names: dict[str, Article] = {}  # the same
    ids = {example.id for example in examples}
    negatives: dict[str, list[Example]] = {kind: [] for kind in kinds}

    def question_of(kind: str, example: Example) -> str | None:
        if example.title not in names:
            names[example.title] = Article(paragraphs[example.title])
        answers = tuple(answer.text for answer in example.answers)
        near = answer_sentences(example)
        asked = Asked(example.question, example.context, near, answers, names[example.title])
        return RULES[kind](asked, generator)

    def context_of(kind: str, example: Example) -> str | None:
        if kind == "similar_paragraph":
            own = paragraphs[example.title]
            if example.title not in indices:
                indices[example.title] = TfIdf(own)
            ranked = (own[place] for place in indices[example.title].ranked(example.question))
            candidates: Iterable[str] = (text for text in ranked if text != example.context)
        elif kind == "without_the_sentence":
            candidates = [without_answer_sentences(example)]
        else:
            candidates = other_articles(example.title, paragraphs, generator)
        return next((text for text in candidates if lacks_answers(text, example.answers)), None)

    def changed(kind: str, example: Example) -> tuple[str, str] | None:
        """The new question and its context. One of both has changed."""
        if kind in RULES:
            question = question_of(kind, example)
            return None if question is None else (question, example.context)
        context = context_of(kind, example)
        return None if context is None else (example.question, context)

    answerable = [example for example in examples if example.answers]
    chosen = sorted(generator.sample(range(len(answerable)), round(share * len(answerable))))
    for example in (answerable[place] for place in chosen):
        [first] = generator.choices(list(kinds), list(kinds.values()))
        others_last = sorted(
            kinds, key=lambda kind: (kind != first, (kind in RULES) != (first in RULES))
        )
        for kind in others_last:
            if both := changed(kind, example):
                name = f"{example.id}:{kind}"
                while name in ids:
                    name += "'"
                ids.add(name)
                negative = Example(name, *both, (), True, example.title)
                negatives[kind].append(negative)
                break
    return negatives


def kinds_with(misleading: float) -> dict[str, float]:
    """Kinds for `make_negatives`: a share `misleading` (0 to 1) of them changes the question."""
    contexts = {kind: (1 - misleading) * weight for kind, weight in CONTEXTS.items()}
    return contexts | {kind: misleading * weight for kind, weight in QUESTIONS.items()}


def other_articles(
    title: str, paragraphs: dict[str, list[str]], generator: random.Random
) -> Iterable[str]:
    titles = [other for other in paragraphs if other != title]
    for _ in range(OTHER_ARTICLE_TRIES if titles else 0):
        yield generator.choice(paragraphs[generator.choice(titles)])


def answer_sentences(example: Example) -> str:
    """The sentences of the context that overlap an answer."""
    return "".join(sentence for sentence, answers in sentences(example) if answers)


def without_answer_sentences(example: Example) -> str:
    """The context without the sentences that overlap an answer.

    >>> answer = GoldAnswer("at dusk", 17)
    >>> without_answer_sentences(Example("", "", "Ada lit the lamp at dusk. She slept.", (answer,)))
    'She slept.'
    """
    return "".join(sentence for sentence, answers in sentences(example) if not answers)


def sentences(example: Example) -> Iterator[tuple[str, bool]]:
    """Each sentence of the context, and whether it overlaps an answer."""
    text = example.context
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    for start, end in zip([0, *ends], [*ends, len(text)], strict=True):
        overlaps = (a.char_start < end and start < a.char_end for a in example.answers)
        yield text[start:end], any(overlaps)


def lacks_answers(text: str, answers: Iterable[GoldAnswer]) -> bool:
    """Whether a text has words, but none of the answers.

    An answer may neither occur as characters, without regard to case, nor as words, without regard
    to case, articles and punctuation, as in the metric.
    """
    if not words(text):
        return False
    characters, normal = text.casefold(), f" {normalize_answer(text)} "
    return not any(
        answer.text.casefold() in characters or f" {normalize_answer(answer.text)} " in normal
        for answer in answers
    )


def negatives_report(
    negatives: Mapping[str, Sequence[Example]], share: float, examples: Iterable[Example]
) -> dict[str, int]:
    """How many examples `make_negatives` made of each kind, and how many it could not make."""
    wanted = round(share * sum(bool(example.answers) for example in examples))
    counts = {f"negatives_{kind}": len(made) for kind, made in negatives.items()}
    return counts | {"negatives_not_made": wanted - sum(counts.values())}
