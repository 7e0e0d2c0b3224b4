"""Graphemes: what a reader sees as one letter may be several characters."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

# A run of characters in which several may form one letter. Together with the ASCII characters next
# to it, it consists of whole letters.
NOT_ASCII = re.compile(r"[^\x00-\x7f](?:[\x00-\x7f]?[^\x00-\x7f])*")
GRAPHEME = regex.compile(r"\X")  # one letter


def whole_graphemes(text: str, places: npt.NDArray[Any]) -> npt.NDArray[Any]:
    r"""Widen places in a text, (T, 2) code points, to whole graphemes.

    A letter and its combining accent are one grapheme, and so are an emoji and its skin tone. The
    rules are those for extended grapheme clusters in Unicode's Standard Annex 29.

    >>> whole_graphemes("cafe\u0301!", np.array([[0, 4], [5, 6]]))
    array([[0, 5],
           [5, 6]])
    """
    if text.isascii():  # each character is a grapheme, except CR LF, and no place is inside it
        return places
    begin, end = np.arange(len(text) + 1), np.arange(len(text) + 1)
    for run in NOT_ASCII.finditer(text):
        for grapheme in GRAPHEME.finditer(text, max(0, run.start() - 1), run.end() + 1):
            a, b = grapheme.span()
            if b - a > 1:
                begin[a:b], end[a + 1 : b + 1] = a, b
    starts, ends = places.T
    return np.stack((begin[starts], end[ends]), axis=1)
