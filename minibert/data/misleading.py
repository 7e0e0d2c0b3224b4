"""Misleading questions: one change to a question, and its text does not answer it any more.

Each rule makes a change that people made for the unanswerable questions of SQuAD v2.0
(arXiv:1806.03822 section 3 and table 1): a name, a number or a date is exchanged for another one
from the same article; a word is exchanged for its opposite; "not" is added or removed; a year is
added that does not fit. As in arXiv:1707.07328 section 4.1, the rules look only at the words
themselves. They keep the words that ask (who, when), so the answer's type stays the same.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .similarity import TfIdf

MONTHS = "January February March April May June July August September October November December"
# Words that begin with a capital letter, but name nothing
SMALL_WORDS = """
    A After All Also Although An And Another Are As At Because Before Both But By Can Could Did Do
    Does During Each Either Every Few For From Had Has Have He Her Here His How However If In Is It
    Its Many May Most Much No Not Of On One Only Or Other Our Over She Since So Some Such That The
    Their Then There These They This Those Three Through To Two Under Until Was We Were What When
    Where Whether Which While Who Whom Whose Why Will With Within Would You
"""
NO_NAMES = frozenset(SMALL_WORDS.split())
PARTICLES = {"of", "the", "de", "von", "van"}
NAME_WORD = r"[^\W\d_a-zß-ÿ](?:[\w.-]|['’](?!s\b))*(?<![.'’-])"  # it begins with a capital letter
NAME = re.compile(rf"{NAME_WORD}(?:(?: of the| of| de| von| van|) {NAME_WORD})*")
NUMBER = re.compile(r"(?<![\w.,-])\d+(?:[.,]\d+)*(?![\w-])")
YEAR = re.compile(r"1\d{3}|20\d\d")
MONTH = re.compile(rf"\b(?:{MONTHS.replace(' ', '|')})\b")
EXACT = re.compile(
    r"\b(?:when|year|years|date|century|decade|long|old|often|many|much|day|month)\b", re.I
)
AUXILIARY = re.compile(r"\b(was|were|is|are|did|does|do|has|have|had|could|would|should)\b(?!n)")
# After these words, a year near the real one may have the same answer: "before 1948", "before 1945"
OPEN = re.compile(
    r"\b(?:before|after|since|by|until|till|from|between|and|to|over|than)(?: the)? $", re.I
)
NOT = re.compile(r"(?<=\w)n['’]t\b| (?:not|never)\b")
CHOICE = 8  # the new name is drawn from this many, the most similar ones
LIKE = 0.2  # the least cosine of two names that may be exchanged; chosen by eye
YEARS_AWAY = 20  # an invented year is at most this far from the real one
LAST_YEAR = 2016  # SQuAD's texts are from this year


def opposites() -> dict[str, str]:
    """Each word of `opposites.txt` -> its opposite, in both directions. A word's first pair counts.

    Both words of a pair have the same form, so a sentence stays correct. Pairs that one sentence
    often has together (won and lost, began and ended) are left out: such a question may have an
    answer.
    """
    lines = Path(__file__).with_name("opposites.txt").read_text(encoding="utf-8").splitlines()
    pairs = [(one, other) for one, other in map(str.split, lines)]
    return {other: one for one, other in reversed(pairs)} | dict(reversed(pairs))


OPPOSITE = opposites()


class Place(NamedTuple):
    """A name, number or month in a text, and the words before and after it."""

    text: str
    around: str  # such as "before_in after_was"
    start: int
    end: int


def place(text: str, start: int, end: int) -> Place:
    before = re.search(r"(\w+)\W*$", text[max(0, start - 30) : start])
    after = re.match(r"\W*(\w+)", text[end : end + 30])
    around = [f"before_{before[1]}"] if before else []
    around += [f"after_{after[1]}"] if after else []
    return Place(text[start:end], " ".join(around), start, end)


def names(text: str) -> Iterator[Place]:
    """The names in a text. A sentence's first word is one only if it has more capitalised words.

    >>> [name.text for name in names("In May Ada of Kent met Bo Lee. She left for New York.")]
    ['Ada of Kent', 'Bo Lee', 'New York']
    """
    for match in NAME.finditer(text):
        words = match[0].split()
        while words and words[0] in NO_NAMES:
            words = words[1:]
        name = " ".join(words)
        start = match.end() - len(name)
        begins = not re.search(r"[\w,;:’'\"(] ?$", text[: match.start()])
        if len(name) < 2 or MONTH.fullmatch(name) or (begins and " " not in name):
            continue
        yield place(text, start, match.end())


def numbers(text: str) -> Iterator[Place]:
    for match in NUMBER.finditer(text):
        yield place(text, *match.span())


def months(text: str) -> Iterator[Place]:
    for match in MONTH.finditer(text):
        yield place(text, *match.span())


def words_of(name: str) -> set[str]:
    """The beginnings of a name's words: Alaska and Alaskan are not two things."""
    return {word[:4] for word in re.findall(r"\w+", name.lower())} - PARTICLES


def initials(name: str) -> str:
    return "".join(word[0] for word in re.findall(r"\w+", name) if word[0].isupper())


def may_be_one_thing(name: str, other: str) -> bool:
    """Whether two names may be names of one thing."""
    shares_a_word = bool(words_of(name) & words_of(other))
    return shares_a_word or initials(name) == other or initials(other) == name


class Article:
    """The names and numbers of an article, for exchanging one with another."""

    def __init__(self, paragraphs: Iterable[str]) -> None:
        around: dict[str, list[str]] = defaultdict(list)  # name -> the words next to it
        numbers_of: dict[str, None] = {}
        for text in paragraphs:
            for name in names(text):
                around[name.text].append(name.around)
            numbers_of.update((number.text, None) for number in numbers(text))
        self.numbers = list(numbers_of)
        self.around = {name: " ".join(words) for name, words in around.items()}
        self.names = list(self.around)
        self.index = TfIdf(list(self.around.values()))

    def like(self, name: Place) -> list[str]:
        """Other names between the same words, so probably of the same kind; the likest first."""
        length = len(name.text.split())
        cosines = self.index.similarities(f"{name.around} {self.around.get(name.text, '')}")
        others = (self.names[k] for k in np.argsort(-cosines, kind="stable") if cosines[k] > LIKE)
        return [
            other
            for other in others
            if abs(len(other.split()) - length) <= 1 and not may_be_one_thing(name.text, other)
        ]


@dataclass(frozen=True)
class Asked:
    """A question, its text, the sentences that have its answers, and the answers."""

    question: str
    context: str
    sentences: str
    answers: tuple[str, ...]
    article: Article

    def may_use(self, text: str) -> bool:
        """Whether a name or a number is neither in the question, nor near the answer."""
        near = f"{self.question} {self.sentences} {' '.join(self.answers)}"
        return not words_of(text) & words_of(near)

    @cached_property
    def years(self) -> list[str]:
        return [place.text for place in numbers(self.sentences) if YEAR.fullmatch(place.text)]


def swapped(
    asked: Asked, place: Place, others: Sequence[str], generator: random.Random
) -> str | None:
    """The question with another name or number, which is in the same text if possible."""
    usable = [other for other in others if asked.may_use(other)]
    if not usable:
        return None
    near = [other for other in usable if other in asked.context]
    other = generator.choice((near or usable)[:CHOICE])
    return asked.question[: place.start] + other + asked.question[place.end :]


def swap_name(asked: Asked, generator: random.Random) -> str | None:
    places = [name for name in names(asked.question) if name.text in asked.context]
    generator.shuffle(places)
    changed = (swapped(asked, place, asked.article.like(place), generator) for place in places)
    return next((question for question in changed if question), None)


def swap_number(asked: Asked, generator: random.Random) -> str | None:
    """The question with another number, year or month."""
    places = [
        place
        for place in (*numbers(asked.question), *months(asked.question))
        if not OPEN.search(asked.question[: place.start])
    ]
    generator.shuffle(places)
    for place in places:
        if YEAR.fullmatch(place.text):
            others = [n for n in asked.article.numbers if YEAR.fullmatch(n)]
            others += years_near(place.text)
        elif place.text.isalpha():
            others = MONTHS.split()
        else:
            others = [n for n in asked.article.numbers if shape(n) == shape(place.text)]
        if question := swapped(asked, place, others, generator):
            return question
    return None


def shape(number: str) -> str:
    return re.sub(r"\d", "9", number)


def years_near(year: str) -> list[str]:
    """Other years. Years in the future would be too easy to doubt."""
    last = min(int(year) + YEARS_AWAY, LAST_YEAR)
    return [str(n) for n in range(int(year) - YEARS_AWAY, last + 1) if n != int(year)]


def exchange_opposite(asked: Asked, generator: random.Random) -> str | None:
    """The question with the opposite of one of its words. The text must not have this opposite."""
    context = set(re.findall(r"\w+", asked.context.lower()))
    places = [
        match
        for match in re.finditer(r"(?<![\w-])[a-z]+(?![\w-])", asked.question)
        if (other := OPPOSITE.get(match[0]))
        and other not in context
        and not re.search(r"\b(?:how|at|not|or) $", asked.question[: match.start()], re.I)
        and not re.match(r" (?:of|as)\b", asked.question[match.end() :])
    ]
    if not places:
        return None
    match = generator.choice(places)
    other, start = OPPOSITE[match[0]], asked.question[: match.start()]
    start = re.sub(r"\b([Aa])n? $", r"\1n " if other[0] in "aeiou" else r"\1 ", start)
    return start + other + asked.question[match.end() :]


def negate(asked: Asked, generator: random.Random) -> str | None:
    """The question with "not", or without its "not".

    >>> nobody = Article([])
    >>> negate(Asked("Who was not paid?", "", "", (), nobody), random.Random(0))
    'Who was paid?'
    >>> negate(Asked("When did Ada come?", "", "", (), nobody), random.Random(0))
    "When didn't Ada come?"
    """
    question = asked.question
    if match := NOT.search(question):
        return question[: match.start()] + question[match.end() :]
    match = AUXILIARY.search(question)
    if not match or re.match(r"\W*how\b", question, re.I):
        return None
    participle = re.match(r" [a-z]+(?:ed|en|wn|nt|rn|ught)\b", question[match.end() :])
    return question[: match.end()] + (" not" if participle else "n't") + question[match.end() :]


def add_year(asked: Asked, generator: random.Random) -> str | None:
    """The question about another year than the one that stands with the answer."""
    question = asked.question.rstrip()
    if (
        not asked.years
        or not question.endswith("?")
        or EXACT.search(question)
        or re.search(r"\d", question)
    ):
        return None
    if any(re.search(r"\d", answer) for answer in asked.answers):
        return None
    years = [year for year in years_near(asked.years[0]) if year not in asked.context]
    return f"{question[:-1].rstrip()} in {generator.choice(years)}?" if years else None


RULES: dict[str, Callable[[Asked, random.Random], str | None]] = {
    "swapped_name": swap_name,
    "swapped_number": swap_number,
    "opposite": exchange_opposite,
    "negation": negate,
    "added_year": add_year,
}
