"""Questions without an answer, made from questions with one: examples -> more examples.

SQuAD v1.1 has an answer to every question, so a model trained on it never learns to find none. Here
a question is asked again of a text that does not answer it: a paragraph that a search would bring
up for it, as in arXiv:1710.10723 section 3, its own paragraph without the answer's sentence, or a
paragraph about something else.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .examples import Example, GoldAnswer
from .metric import normalize_answer

# The kinds of text that a question is asked again of, and how often each is tried first. The
# similar paragraphs teach the most; the others keep a model from answering by similarity alone.
KINDS = {"similar_paragraph": 0.7, "without_the_sentence": 0.2, "other_article": 0.1}

OTHER_ARTICLE_TRIES = 20  # random paragraphs looked at before "other_article" gives up

# what ends a sentence: a mark, closing brackets and quotes, white space (CJK marks need none)
SENTENCE_END = re.compile(r"[.!?][\"')\]”’]*\s+|[。！？]")


class TfIdf:
    """Texts as vectors of weighted words: a word weighs its count times log(1 + N / texts with it).

    Words are runs of letters and digits, in any case. The vectors have length 1, so that their
    products are cosines.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(words(text)) for text in texts]
        texts_with = Counter(word for count in counts for word in count)
        self.idf = {word: float(np.log1p(len(texts) / n)) for word, n in texts_with.items()}
        rows: dict[str, list[int]] = {word: [] for word in self.idf}
        weights: dict[str, list[float]] = {word: [] for word in self.idf}
        for row, count in enumerate(counts):
            weighted = {word: n * self.idf[word] for word, n in count.items()}
            length = float(np.linalg.norm(list(weighted.values())))
            for word, weight in weighted.items():
                rows[word].append(row)
                weights[word].append(weight / length)
        self.size = len(texts)
        self.postings = {w: (np.array(rows[w]), np.array(weights[w])) for w in self.idf}

    def similarities(self, query: str) -> npt.NDArray[np.float64]:
        """The cosine between the query and each text, (N,), in 0 to 1; words in no text count 0."""
        cosines = np.zeros(self.size)
        weighted = {w: n * self.idf[w] for w, n in Counter(words(query)).items() if w in self.idf}
        length = float(np.linalg.norm(list(weighted.values()))) or 1.0
        for word, weight in weighted.items():
            rows, weights = self.postings[word]  # each text stands once in a row
            cosines[rows] += weight / length * weights
        return cosines

    def ranked(self, query: str) -> list[int]:
        """The indices of all texts, most similar first; ties in their order."""
        order: list[int] = np.argsort(-self.similarities(query), kind="stable").tolist()
        return order


def words(text: str) -> list[str]:
    """
    >>> words("The U.S. Constitution, 1787")
    ['the', 'u', 's', 'constitution', '1787']
    """
    return re.findall(r"\w+", text.casefold())


def make_negatives(
    examples: Sequence[Example],
    share: float,
    seed: int,
    company: Iterable[Example] = (),
    kinds: Mapping[str, float] = KINDS,
) -> dict[str, list[Example]]:
    """For a share of the answerable examples, one more without an answer each: kind -> examples.

    `share` is from 0 to 1. Which examples, and the kind of each, follow the `seed`; where a kind
    is not to be had (an article of one paragraph has no similar one), the next of `kinds` is taken,
    and a question that no kind fits is left out. Other paragraphs come from `examples` and
    `company`, articles are told apart by `Example.title`, and "similar" is like the question. No
    gold answer of the question stands anywhere in the new text. The new id is the old one with the
    kind behind it. Raises `InputError` for a share out of range.
    """
    if not 0 <= share <= 1:
        raise InputError(f"negatives={share}: expected a share of the questions, 0 to 1")
    generator = random.Random(seed)
    articles: dict[str, dict[str, None]] = {}  # title -> its paragraphs, each once, in order
    for example in (*examples, *company):
        articles.setdefault(example.title, {})[example.context] = None
    paragraphs = {title: list(contexts) for title, contexts in articles.items()}
    indices: dict[str, TfIdf] = {}  # of the articles asked for so far
    ids = {example.id for example in examples}
    negatives: dict[str, list[Example]] = {kind: [] for kind in kinds}

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

    answerable = [example for example in examples if example.answers]
    wanted = wanted_negatives(share, len(answerable))
    chosen = sorted(generator.sample(range(len(answerable)), wanted))
    for example in (answerable[place] for place in chosen):
        [first] = generator.choices(list(kinds), list(kinds.values()))
        for kind in (first, *(kind for kind in kinds if kind != first)):
            context = context_of(kind, example)
            if context is not None:
                name = f"{example.id}:{kind}"
                while name in ids:
                    name += "'"
                ids.add(name)
                negative = Example(name, example.question, context, (), True, example.title)
                negatives[kind].append(negative)
                break
    return negatives


def wanted_negatives(share: float, answerable: int) -> int:
    return round(share * answerable)


def other_articles(
    title: str, paragraphs: dict[str, list[str]], generator: random.Random
) -> Iterable[str]:
    titles = [other for other in paragraphs if other != title]
    for _ in range(OTHER_ARTICLE_TRIES if titles else 0):
        yield generator.choice(paragraphs[generator.choice(titles)])


def without_answer_sentences(example: Example) -> str:
    """The context without the sentences that any of the answers touches.

    >>> answer = GoldAnswer("at dusk", 17)
    >>> without_answer_sentences(Example("", "", "Ada lit the lamp at dusk. She slept.", (answer,)))
    'She slept.'
    """
    text = example.context
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    bounds = zip([0, *ends], [*ends, len(text)], strict=True)
    return "".join(
        text[start:end]
        for start, end in bounds
        if not any(a.char_start < end and start < a.char_end for a in example.answers)
    )


def lacks_answers(text: str, answers: Iterable[GoldAnswer]) -> bool:
    """Whether a text has words, and no answer stands in it: neither as characters nor as words.

    Case does not count, and between words neither do articles and punctuation, as in the metric.
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
    """How many `make_negatives` made of each kind from these examples, and how many it couldn't."""
    wanted = wanted_negatives(share, sum(bool(example.answers) for example in examples))
    counts = {f"negatives_{kind}": len(made) for kind, made in negatives.items()}
    return counts | {"negatives_not_to_be_had": wanted - sum(counts.values())}
