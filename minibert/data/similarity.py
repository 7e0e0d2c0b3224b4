"""How similar texts are to a query, by the words that they share: texts -> cosines."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


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
