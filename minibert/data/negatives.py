"""Questions without an answer, made from questions with an answer: examples -> more examples.

Every question in SQuAD v1.1 has an answer, so a model trained on it never learns to find none. Here
a question gets a new context that does not answer it. This is a similar paragraph, as a search
would return (arXiv:1710.10723 section 3), or its own paragraph without the answer's sentence, or a
paragraph about another subject.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .examples import Example, GoldAnswer
from .metric import normalize_answer

# The kinds of new context, and how often each is tried first. Similar paragraphs teach the most.
# The other kinds keep a model from deciding by similarity alone.
KINDS = {"similar_paragraph": 0.7, "without_the_sentence": 0.2, "other_article": 0.1}

OTHER_ARTICLE_TRIES = 20  # random paragraphs to try for "other_article"

# The end of a sentence: a mark, closing brackets and quotes, white space; or a CJK mark alone.
SENTENCE_END = re.compile(r"[.!?][\"')\]”’]*\s+|[。！？]")


class TfIdf:
    """Texts as vectors of weighted words.

    A word's weight is its count times log(1 + N / n), if n of the N texts have the word. Words are
    runs of letters and digits; case does not count. The vectors have length 1, so their products
    are cosines.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.size = len(texts)
        texts_with = Counter(word for text in texts for word in set(words(text)))
        self.idf = {word: float(np.log1p(len(texts) / n)) for word, n in texts_with.items()}
        pairs: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for row, text in enumerate(texts):
            for word, weight in self.vector(text).items():
                pairs[word].append((row, weight))
        posting = np.dtype([("row", int), ("weight", float)])
        self.postings = {word: np.array(pairs[word], posting) for word in pairs}

    def vector(self, text: str) -> dict[str, float]:
        """Weights by word. Words that are in none of the texts are left out."""
        weights = {w: n * self.idf[w] for w, n in Counter(words(text)).items() if w in self.idf}
        length = float(np.linalg.norm(list(weights.values()))) or 1.0
        return {word: weight / length for word, weight in weights.items()}

    def similarities(self, query: str) -> npt.NDArray[np.float64]:
        """The cosine between the query and each text: (N,), from 0 to 1."""
        cosines = np.zeros(self.size)
        for word, weight in self.vector(query).items():
            postings = self.postings[word]  # every text at most once
            cosines[postings["row"]] += weight * postings["weight"]
        return cosines

    def ranked(self, query: str) -> list[int]:
        """The indices of all texts, most similar first. Ties keep their order."""
        return [int(row) for row in np.argsort(-self.similarities(query), kind="stable")]


def words(text: str) -> list[str]:
    """The runs of letters and digits of a text, without case.

    >>> words("The U.S. Constitution, 1787")
    ['the', 'u', 's', 'constitution', '1787']
    """
    return re.findall(r"\w+", text.casefold())


def make_negatives(
    examples: Sequence[Example],
    share: float,
    seed: int,
    others: Iterable[Example] = (),
    kinds: Mapping[str, float] = KINDS,
) -> dict[str, list[Example]]:
    """New examples without an answer, one for each example of a `share` of the answerable ones.

    Returns kind -> examples. `share` is from 0 to 1. The `seed` decides which examples are used,
    and their kinds. If a kind is impossible (an article with one paragraph has no similar one), the
    next of `kinds` is used. If all kinds are impossible, the question is left out. Other paragraphs
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
    chosen = sorted(generator.sample(range(len(answerable)), round(share * len(answerable))))
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


def other_articles(
    title: str, paragraphs: dict[str, list[str]], generator: random.Random
) -> Iterable[str]:
    titles = [other for other in paragraphs if other != title]
    for _ in range(OTHER_ARTICLE_TRIES if titles else 0):
        yield generator.choice(paragraphs[generator.choice(titles)])


def without_answer_sentences(example: Example) -> str:
    """The context without the sentences that overlap an answer.

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
