"""The official metric: predictions and gold answers -> exact match and F1.

The figures equal the figures of the official evaluation scripts for SQuAD v1.1 (arXiv:1606.05250)
and v2.0 (arXiv:1806.03822).
"""

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from .examples import Example

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """The text in lower case, without ASCII punctuation, English articles and extra white space.

    >>> normalize_answer("The  U.S. Constitution,")
    'us constitution'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """1.0 when both texts are equal after `normalize_answer`, else 0.0."""
    return float(normalize_answer(prediction) == normalize_answer(gold))


def f1(prediction: str, gold: str, empty_match: float = 1.0) -> float:
    """The harmonic mean of precision and recall over the words of both, after `normalize_answer`.

    `empty_match` is the F1 of two texts without words: 1 in v2.0's script, 0 in v1.1's.

    >>> f1("the U.S. Constitution", "Constitution")
    0.6666666666666666
    """
    predicted = normalize_answer(prediction).split()
    expected = normalize_answer(gold).split()
    if not predicted and not expected:
        return empty_match
    common = (Counter(predicted) & Counter(expected)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


Score = tuple[float, float, bool]  # exact match, F1, is_impossible


def _scores(
    predictions: Mapping[str, str], examples: Iterable[Example], no_answer: bool
) -> Iterator[Score]:
    """The scores of each example: with `no_answer` by v2.0's rules, otherwise by v1.1's."""
    for example in examples:
        golds = [answer.text for answer in example.answers]
        if no_answer:
            golds = [gold for gold in golds if normalize_answer(gold)] or [""]
        exact = overlap = 0.0
        if example.id in predictions and golds:
            text = predictions[example.id]
            exact = max(exact_match(text, gold) for gold in golds)
            overlap = max(f1(text, gold, float(no_answer)) for gold in golds)
        yield exact, overlap, example.is_impossible


def squad_metrics(
    predictions: Mapping[str, str], examples: Iterable[Example]
) -> dict[str, float | int]:
    """The official figures: `exact_match` and `f1` from 0 to 100, and the `total` of questions.

    A question gets the best score over its gold answers. A missing prediction scores 0, as in
    v1.1's script; v2.0's script leaves the question out. If any question is unanswerable, v2.0's
    rules hold: gold answers that normalise to "" don't count, and if no others are left, "" is
    right. The figures then also have `exact`, and `_exact`, `_f1` and `_total` for the answerable
    (`HasAns`) and unanswerable (`NoAns`) questions.

    >>> import minibert
    >>> answers = (minibert.GoldAnswer("the keeper Ada", 8),)
    >>> example = minibert.Example("1", "Who lit it?", "At dusk the keeper Ada lit it.", answers)
    >>> minibert.squad_metrics({"1": "Ada"}, [example])
    {'exact_match': 0.0, 'f1': 66.66666666666666, 'total': 1}
    """
    examples = list(examples)
    no_answer = any(example.is_impossible for example in examples)
    scores = list(_scores(predictions, examples, no_answer))

    def percent(column: int, rows: Sequence[Score]) -> float:
        return 100.0 * sum(row[column] for row in rows) / max(len(rows), 1)

    metrics = {"exact_match": percent(0, scores), "f1": percent(1, scores), "total": len(scores)}
    if no_answer:
        metrics["exact"] = metrics["exact_match"]
        for name, wanted in (("HasAns", False), ("NoAns", True)):
            rows = [row for row in scores if row[2] is wanted]
            if rows:
                metrics[f"{name}_exact"] = percent(0, rows)
                metrics[f"{name}_f1"] = percent(1, rows)
                metrics[f"{name}_total"] = len(rows)
    return metrics


def best_thresholds(
    predictions: Mapping[str, str], null_odds: Mapping[str, float], examples: Sequence[Example]
) -> dict[str, float]:
    """The best thresholds on the null odds, in hindsight, and the figures that they give.

    `predictions` are the best spans, even if "no answer" is likelier. The null odds are the logit
    of "no answer" minus the span's. A span counts if its null odds are at most the threshold.
    Otherwise "" counts. The keys are those in v2.0's script: `best_exact`, `best_exact_thresh`,
    `best_f1`, `best_f1_thresh`. `squad_metrics` gives the same figures at these thresholds. The
    script itself can report higher ones, because it can separate two questions with equal odds,
    which no threshold can. If it is best never to answer, the script's threshold is 0.
    """
    answered = list(_scores(predictions, examples, no_answer=True))
    silent = list(_scores(dict.fromkeys(predictions, ""), examples, no_answer=True))
    odds = [null_odds[example.id] for example in examples]
    surest_first = sorted(range(len(odds)), key=odds.__getitem__)
    least = min(odds, default=0.0)
    figures = {}
    for column, name in enumerate(("exact", "f1")):
        now = best = sum(score[column] for score in silent)
        threshold = min(0.0, math.nextafter(least, -math.inf))  # below all odds: never answer
        for value, group in groupby(surest_first, key=odds.__getitem__):
            now += sum(answered[k][column] - silent[k][column] for k in group)
            if now > best:
                best, threshold = now, value
        figures[f"best_{name}"] = 100.0 * best / max(len(examples), 1)
        figures[f"best_{name}_thresh"] = threshold
    return figures
