"""Compute the figures that the notebooks show for the whole of SQuAD. They contain no text from it.

python notebooks/aggregates.py EVALUATION RUN

EVALUATION is the folder that `minibert evaluate` wrote for the development set. It becomes
aggregates.json (notebook 9). This needs MINIBERT_SQUAD.
RUN is the folder that `minibert train` wrote. Its log, shortened to means over 20 steps, becomes
full-run.jsonl (notebook 8). Both files are written to the folder of this script.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import minibert
from minibert.data.metric import squad_metrics

HERE = Path(__file__).parent
QUESTION_WORDS = ("what", "who", "when", "where", "which", "why", "how many", "how")


def answer_length(example: minibert.Example) -> str:
    """The number of words in the first gold answer."""
    return between(len(example.answers[0].text.split()), (1, 2, 3, 4, 6, 10))


def question_word(example: minibert.Example) -> str:
    """The question word that comes first, anywhere in the question."""
    places = {
        word: match.start()
        for word in QUESTION_WORDS
        if (match := re.search(rf"\b{word}\b", example.question.lower()))
    }
    return min(places, key=lambda word: (places[word], -len(word)), default="other")


def distance(example: minibert.Example) -> str:
    """The number of words from the answer to the nearest word of the question; 1: next to it.

    Question words, and words of fewer than four letters, don't count.
    """
    asked = set(re.findall(r"\w{4,}", example.question.lower())) - set(QUESTION_WORDS)
    gold = example.answers[0]
    before = re.findall(r"\w+", example.context[: gold.char_start].lower())[::-1]
    after = re.findall(r"\w+", example.context[gold.char_end :].lower())
    gaps = [k + 1 for side in (before, after) for k, word in enumerate(side) if word in asked]
    return between(min(gaps), (1, 2, 3, 5, 9, 17)) if gaps else "none"


def between(value: int, edges: tuple[int, ...]) -> str:
    """The name of the bin: "3", "4 to 5" or "10+". Each edge is the first number of a bin."""
    begin = max(edge for edge in edges if edge <= value)
    later = [edge for edge in edges if edge > begin]
    if not later:
        return f"{begin}+"
    return f"{begin}" if later[0] == begin + 1 else f"{begin} to {later[0] - 1}"


def order(group: str, count: int) -> tuple[int, int]:
    """Sort bins by their first number, and question words by how often they occur."""
    number = re.match(r"\d+", group)
    return (int(number[0]), 0) if number else (sys.maxsize, -count)


GROUPS: dict[str, Callable[[minibert.Example], str]] = {
    "words in the answer": answer_length,
    "question word": question_word,
    "words to the nearest word of the question": distance,
}


def thin(log: Path, steps: int = 20) -> Iterator[dict[str, Any]]:
    rows = [row for row in map(json.loads, log.open(encoding="utf-8")) if "loss" in row]
    for k in range(0, len(rows), steps):
        part = rows[k : k + steps]
        means = {
            name: round(sum(row[name] for row in part) / len(part), 4)
            for name in ("loss", "grad_norm")
        }
        last = {name: part[-1][name] for name in ("step", "epoch", "learning_rate")}
        yield last | means


def main() -> None:
    with Path(__file__).with_name("full-run.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in thin(Path(sys.argv[2]) / "metrics.jsonl"))
    nbest = json.loads((Path(sys.argv[1]) / "nbest_predictions.json").read_text(encoding="utf-8"))
    examples = minibert.load_squad(os.environ["MINIBERT_SQUAD"], "validation")
    texts = {key: answers[0]["answer"] for key, answers in nbest.items()}
    report: dict[str, Any] = {"overall": squad_metrics(texts, examples), "groups": {}}
    for name, group_of in GROUPS.items():
        groups: dict[str, list[minibert.Example]] = {}
        for example in examples:
            groups.setdefault(group_of(example), []).append(example)
        report["groups"][name] = {
            group: [squad_metrics(texts, groups[group])["f1"], len(groups[group])]
            for group in sorted(groups, key=lambda group: order(group, len(groups[group])))
        }
    bins: list[list[tuple[float, ...]]] = [[] for _ in range(10)]
    for example in examples:
        score = nbest[example.id][0]["score"]
        right, right_first = (
            squad_metrics(texts, [replace(example, answers=golds)])["exact_match"] / 100
            for golds in (example.answers, example.answers[:1])
        )
        bins[min(int(score * 10), 9)].append((score, right, right_first))
    report["reliability"] = [
        {
            **{
                name: sum(row[k] for row in rows) / len(rows)
                for k, name in enumerate(("score", "right", "right_first"))
            },
            "answers": len(rows),
        }
        for rows in bins
        if rows
    ]
    (HERE / "aggregates.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
