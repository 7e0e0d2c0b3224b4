"""Tokenizer: text -> pieces. Every piece knows its characters in the text, and its word.

BERT (arXiv:1810.04805v2) section 3, "Input/Output Representations". BERT, DistilBERT and ELECTRA
have WordPieces (arXiv:1609.08144 section 4.1). RoBERTa has byte pairs (arXiv:1907.11692v1 section
4.4). XLM-R and CamemBERT have a unigram model (arXiv:1804.10959v1). The `tokenizers` library splits
the text. This module ensures that text is never a special token, and that offsets count characters.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import Regex
from tokenizers.models import Unigram, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.pre_tokenizers import Split

from .errors import InputError, PretrainedError, first_line
from .families import BRACKETS, FAMILIES, Family
from .files import complete_files
from .hub import pinned
from .tokenizer_files import (
    NORMALIZER_SETTINGS,
    TOKENIZER_FILES,
    read_tokenizer,
    special_tokens,
    word_pieces,
)

MAX_TOKENS = 10**7  # XLM-R has 250,000
SPECIAL_TOKENS = tuple(BRACKETS.values())

WHITE_SPACE = np.array([k for k in range(0x3001) if chr(k).isspace()], dtype=np.uint32)

Places = npt.NDArray[np.int32]  # (T, 2): char_start and char_end, in code points, end exclusive


@dataclass(frozen=True, eq=False)
class Pieces:
    """The pieces of a text: piece k is `ids[k]`, and covers text[a:b] with a, b = offsets[k].

    In byte pairs and unigrams, a piece can be white space only, or a space that the tokenizer put
    before a word. Such a blank piece covers no text: its `a` is where the next letter starts, its
    `b` is where the last letter ended, so a >= b. So any span of pieces covers the text from its
    first piece's `a` to its last piece's `b`.

    >>> import minibert
    >>> tokenizer = minibert.QuestionAnswerer.from_pretrained(precision="fp32").tokenizer
    >>> pieces = tokenizer.encode("The lamplighter")
    >>> pieces.offsets.tolist(), pieces.words.tolist()
    ([[0, 3], [4, 8], [8, 13], [13, 15]], [0, 1, 1, 1])
    """

    ids: npt.NDArray[np.int32]  # (T,)
    offsets: Places
    words: npt.NDArray[np.int32]  # (T,): the number of each piece's word

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Pieces)
            and np.array_equal(self.ids, other.ids)
            and np.array_equal(self.offsets, other.offsets)
        )

    __hash__ = None  # type: ignore[assignment]  # the arrays can change

    @property
    def blank(self) -> npt.NDArray[np.bool_]:
        """(T,): True for a piece that covers nothing."""
        blank: npt.NDArray[np.bool_] = self.offsets[:, 0] >= self.offsets[:, 1]
        return blank

    def word_offsets(self) -> Places:
        """(T, 2): for each piece, where the whole word of the piece begins and ends in the text."""
        begins = np.diff(self.words, prepend=-1) != 0
        word = np.cumsum(begins) - 1  # the word of each piece
        ends = np.append(begins[1:], True)[: len(begins)]
        starts = self.offsets[begins, 0]
        return np.stack((starts[word], self.offsets[ends, 1][word]), axis=1)


class Tokenizer:
    """The tokenizer of BERT or a sibling, made from a tokenizer of the `tokenizers` library.

    `settings` come from a `tokenizer_config.json`. Facts that neither the settings nor the
    library's tokenizer give come from `family`. Raises `PretrainedError` when special tokens are
    missing, or when a pair is not joined as [CLS] question [SEP] context [SEP] (or with two [SEP]
    in the middle).

    >>> import minibert
    >>> tokenizer = minibert.QuestionAnswerer.from_pretrained(precision="fp32").tokenizer
    >>> tokenizer.tokens(tokenizer.encode("Lamplighters").ids)
    ['lamp', '##light', '##ers']
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        settings: Mapping[str, Any] | None = None,
        family: Family | None = None,
    ) -> None:
        # A tokenizer.json can ask to cut and to pad, but minibert cuts and pads windows itself.
        backend.no_truncation()
        backend.no_padding()
        self.settings = dict(settings or {})
        packed = pair_template(backend)
        ends = (packed[0], packed[-1]) if packed else ()
        self.special_tokens = special_tokens(backend, self.settings, family, ends)
        self.pad_id: int = backend.token_to_id(self.special_tokens["pad"])
        self.cls_id: int = backend.token_to_id(self.special_tokens["cls"])
        self.sep_id: int = backend.token_to_id(self.special_tokens["sep"])
        if family is None:
            family = FAMILIES["bert" if isinstance(backend.model, WordPiece) else "roberta"]
        self.context_segment = family.context_segment
        self.separators = family.separators  # between question and context
        if packed:
            cls, sep = self.special_tokens["cls"], self.special_tokens["sep"]
            known = [[cls, "question", *[sep] * n, "context", sep] for n in (1, 2)]
            if packed not in known:
                raise PretrainedError(
                    f"it joins a pair as {' '.join(packed)}; expected {' '.join(known[0])}"
                )
            self.separators = 1 + known.index(packed)
        self.max_length = read_limit(self.settings)  # in tokens; None: the settings don't say
        # The highest id plus one, because a file may leave ids out or name a token twice.
        self.vocab_size: int = max(backend.get_vocab().values()) + 1
        if self.vocab_size > MAX_TOKENS:
            raise PretrainedError(f"the vocabulary has the id {self.vocab_size - 1}: too large")
        added = backend.get_added_tokens_decoder().values()
        self._as_read: str | None = None  # the original tokenizer.json, if `protected` changed it
        self.backend = self.protected(backend)
        # The piece that is only a space. If the tokenizer put the space there, this piece has the
        # offsets of the letter after it.
        space = space_sign(backend)
        self._space_id = None if space is None else backend.token_to_id(space)
        # whether pieces may begin or end with white space
        self._trims = space is not None or any(token.lstrip or token.rstrip for token in added)

    def protected(self, backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
        """The tokenizer with three changes: text never becomes one of the model's own tokens, a
        token that a user added is always recognised in a text, and offsets are not trimmed.

        The library looks in a text for every added token that is not marked special. So exactly the
        model's own tokens get this mark. In a unigram model, "</s>" in a text could still become
        the token, because it is also a piece of the vocabulary. Then its first letter is split off.

        The library's post-processor can trim a space from the offsets of a piece. If the text does
        not have this space, because the tokenizer put it there, the piece loses its first letter.
        So there is no post-processor: `Feature` joins a pair, and `trimmed` looks at the text.
        """
        own = set(self.special_tokens.values())
        added = backend.get_added_tokens_decoder().values()
        trims = '"trim_offsets":true' in state_of(backend.post_processor)
        if trims or any(token.special != (token.content in own) for token in added):
            self._as_read = str(backend.to_str(pretty=True))
            state = json.loads(self._as_read)
            state["post_processor"] = None
            for token in state["added_tokens"]:
                token["special"] = token["content"] in own
            backend = tokenizers.Tokenizer.from_str(json.dumps(state))
        backend.encode_special_tokens = True
        ids = {self.pad_id, self.cls_id, self.sep_id}
        spelled_ids = {id for t in own for id in backend.encode(t, add_special_tokens=False).ids}
        if isinstance(backend.model, Unigram) or spelled_ids & ids:
            self._as_read = self._as_read or str(backend.to_str(pretty=True))
            first_letters = (f"{re.escape(t[0])}(?={re.escape(t[1:])})" for t in sorted(own))
            apart = Split(Regex("|".join(first_letters)), "isolated")
            before = [backend.pre_tokenizer] if backend.pre_tokenizer is not None else []
            backend.pre_tokenizer = PreTokenizers([*before, apart])
        return backend

    @classmethod
    def from_vocabulary(cls, vocabulary: Sequence[str], lowercase: bool = True) -> "Tokenizer":
        """From WordPieces in the order of their ids. As in BERT, `lowercase` removes accents."""
        return cls(word_pieces(vocabulary, lowercase, {}))

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> "Tokenizer":
        """From a folder or hub id (`revision`: its branch, tag or commit) with `tokenizer.json`,
        `vocab.txt`, or `vocab.json` and `merges.txt`.

        Raises `PretrainedError` when there is no such file, or it holds another kind of tokenizer.
        """
        files = read_tokenizer(source, pinned(source, revision))
        try:
            return cls(*files)
        except Exception as error:  # the library raises `Exception` itself for a broken file
            reason = f"not usable as a tokenizer: {first_line(error)}"
            raise PretrainedError(f"{source}: {reason}") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`; for WordPieces also `vocab.txt`.

        No file changes until all are complete. Raises `InputError` when they cannot be written.
        """
        pieces = isinstance(self.backend.model, WordPiece)
        kind = "BertTokenizer" if pieces else "PreTrainedTokenizerFast"
        settings: dict[str, Any] = {"tokenizer_class": kind} | self.settings
        settings |= {f"{role}_token": token for role, token in self.special_tokens.items()}
        if isinstance(self.backend.normalizer, BertNormalizer):
            for theirs, ours in NORMALIZER_SETTINGS.items():
                settings[theirs] = getattr(self.backend.normalizer, ours)
        # Line k of vocab.txt is the token with id k, so an id without a token also gets a line.
        lines = [f"[unused id {k}]" for k in range(self.vocab_size)]
        for token, k in self.backend.get_vocab().items():
            lines[k] = token
        with complete_files(folder, TOKENIZER_FILES) as draft:
            text = json.dumps(settings, indent=2)
            (draft / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
            if pieces:
                (draft / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            text = self._as_read or str(self.backend.to_str(pretty=True))
            (draft / "tokenizer.json").write_text(text, encoding="utf-8")

    def encode(self, text: str) -> Pieces:
        """The pieces of a text, without special tokens: "[SEP]" in a text is plain text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[Pieces]:
        """`encode` for many texts, on all cores. Raises `InputError` for invalid Unicode."""
        texts = list(texts)
        try:
            encodings = self.backend.encode_batch(texts, add_special_tokens=False)
        except TypeError as error:  # a lone surrogate, as JSON's "\\ud800" gives
            raise InputError("a text is not valid Unicode: it holds a lone surrogate") from error
        encoded = []
        for text, e in zip(texts, encodings, strict=True):
            ids, words = (np.array(numbers, dtype=np.int32) for numbers in (e.ids, e.word_ids))
            offsets = np.array(e.offsets, dtype=np.int32).reshape(-1, 2)  # (0, 2) without pieces
            if self._trims:
                space = ids == self._space_id
                offsets[space, 1] = offsets[space, 0]
                offsets = trimmed(text, offsets)
            encoded.append(Pieces(ids, offsets, words))
        return encoded

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The strings of the vocabulary for these ids."""
        return [self.backend.id_to_token(int(i)) for i in ids]


def pair_template(backend: tokenizers.Tokenizer) -> list[str]:
    """How a tokenizer joins two texts, for example [CLS] question [SEP] context [SEP], or [].

    >>> pair_template(Tokenizer.from_vocabulary([*SPECIAL_TOKENS, "a"]).backend)
    ['[CLS]', 'question', '[SEP]', 'context', '[SEP]']
    """
    if backend.post_processor is None:
        return []
    encoding = backend.encode("a", "a")
    template: list[str] = []
    for token, text in zip(encoding.tokens, encoding.sequence_ids, strict=True):
        name = token if text is None else ("question", "context")[text]
        if text is None or template[-1:] != [name]:
            template.append(name)
    return template if len(template) > 2 else []  # with only two there are no special tokens


def state_of(part: Any) -> str:
    """The JSON of a tokenizer's part, for example of its post-processor; "" for None."""
    return "" if part is None else part.__getstate__().decode()


def space_sign(backend: tokenizers.Tokenizer) -> str | None:
    """How the vocabulary writes a space; None for WordPieces, which have no spaces."""
    if '"ByteLevel"' in state_of(backend.pre_tokenizer):
        return "Ġ"
    return None if isinstance(backend.model, WordPiece) else "▁"


def read_limit(settings: Mapping[str, Any]) -> int | None:
    """`model_max_length`, or None. A huge value means "no limit". Raises `PretrainedError`."""
    limit = settings.get("model_max_length")
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 1:
        raise PretrainedError(f"model_max_length={limit!r}; expected a number of 1 or more")
    return int(limit) if limit < 10**6 else None


def trimmed(text: str, offsets: Places) -> Places:
    """The places without the white space at their edges, in the form that `Pieces` needs.

    >>> trimmed("Ada  lit", np.array([[0, 3], [3, 4], [4, 8]])).tolist()
    [[0, 3], [5, 3], [5, 8]]
    """
    letters = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    white = np.isin(letters, WHITE_SPACE)
    places = np.arange(len(text) + 1, dtype=np.int32)
    # for each place: the next letter at or after it, and the end of the last letter before it
    following = np.where(np.append(white, False), len(text), places)
    following = np.minimum.accumulate(following[::-1])[::-1]
    preceding = np.maximum.accumulate(np.where(np.insert(white, 0, True), 0, places))
    starts, ends = offsets.T
    return np.stack((following[starts], preceding[ends]), axis=1)
