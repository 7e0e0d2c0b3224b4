"""Tokenizer: text -> WordPieces, each with the place in the text that it came from.

BERT (arXiv:1810.04805v2) section 3, "Input/Output Representations"; WordPiece itself is in
arXiv:1609.08144 section 4.1. The `tokenizers` library does the splitting; this module sees to it
that a folder's files configure it, that text stays text, and that offsets stay character offsets.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from .errors import InputError, PretrainedError
from .files import all_or_nothing
from .pretrained import find_file, named, read_json

MAX_TOKENS = 10**7  # multilingual BERT has 120,000
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# names in a tokenizer_config.json -> names in the `tokenizers` library
NORMALIZER_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


@dataclass(frozen=True, eq=False)
class Pieces:
    """A text's WordPieces: `ids[k]` is the k-th, and it covers text[a:b] with a, b = offsets[k]."""

    ids: npt.NDArray[np.int32]  # (T,)
    offsets: npt.NDArray[np.int32]  # (T, 2): char_start, char_end (code points, end exclusive)

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Pieces)
            and np.array_equal(self.ids, other.ids)
            and np.array_equal(self.offsets, other.offsets)
        )

    __hash__ = None  # type: ignore[assignment]  # the arrays can change


class Tokenizer:
    """A BERT tokenizer around one of the `tokenizers` library.

    Raises `PretrainedError` when that one is no WordPiece, or lacks BERT's special tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        if not isinstance(backend.model, WordPiece):
            kind = type(backend.model).__name__
            raise PretrainedError(f"a {kind} tokenizer; BERT's is a WordPiece")
        for token in SPECIAL_TOKENS[:4]:
            if backend.token_to_id(token) is None:
                raise PretrainedError(f"the vocabulary has no {token}")
        # what a tokenizer.json may carry along; windows are cut and padded by minibert
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # "[SEP]" in a text is three plain tokens
        self.backend = backend
        self.pad_id: int = backend.token_to_id("[PAD]")
        self.cls_id: int = backend.token_to_id("[CLS]")
        self.sep_id: int = backend.token_to_id("[SEP]")
        # for each id, whether it goes on with the word of the piece before it, as "##ing" does
        vocabulary = backend.get_vocab()
        # one more than the highest id: a file may leave ids out, or name a token twice
        self.vocab_size: int = max(vocabulary.values()) + 1
        if self.vocab_size > MAX_TOKENS:
            raise PretrainedError(f"the vocabulary has an id of {self.vocab_size - 1}")
        self._continues = np.zeros(self.vocab_size, dtype=bool)
        self._continues[[i for token, i in vocabulary.items() if token.startswith("##")]] = True

    @classmethod
    def from_vocabulary(cls, vocabulary: Sequence[str], lowercase: bool = True) -> "Tokenizer":
        """From the tokens in the order of their ids; accents go with the case, as BERT's do."""
        ids = {token: i for i, token in enumerate(vocabulary)}
        backend = tokenizers.Tokenizer(WordPiece(ids, unk_token="[UNK]"))
        backend.normalizer = BertNormalizer(lowercase=lowercase)
        backend.pre_tokenizer = BertPreTokenizer()
        backend.decoder = decoders.WordPiece(prefix="##")
        tokenizer = cls(backend)
        # for other programs that read our tokenizer.json: text here is never a special token
        backend.add_special_tokens([token for token in SPECIAL_TOKENS if token in ids])
        backend.post_processor = BertProcessing(
            ("[SEP]", tokenizer.sep_id), ("[CLS]", tokenizer.cls_id)
        )
        return tokenizer

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> "Tokenizer":
        """From a folder or hub id (at that branch, tag or commit): `tokenizer.json`, else
        `vocab.txt`; `tokenizer_config.json` beside either has the last word on case, accents and
        Chinese characters.

        Raises `PretrainedError` when there is no such file, or it isn't a BERT tokenizer's.
        """
        path = find_file(source, "tokenizer.json", revision)
        path = path or find_file(source, "vocab.txt", revision)
        if path is None:
            raise PretrainedError(
                f"{named(source, revision)}: no tokenizer (tokenizer.json or vocab.txt)"
            )
        settings_path = find_file(source, "tokenizer_config.json", revision)
        settings = read_json(settings_path) if settings_path else {}
        try:
            if path.suffix == ".json":
                tokenizer = cls(tokenizers.Tokenizer.from_file(str(path)))
            else:
                # split at "\n" alone: a vocabulary may hold U+2028 and its like as tokens
                text = path.read_text(encoding="utf-8")
                tokenizer = cls.from_vocabulary(text.removesuffix("\n").split("\n"))
        except Exception as error:  # the library raises bare `Exception` for a broken file
            raise PretrainedError(f"{path}: not usable as a tokenizer: {error}") from error

        normalizer = tokenizer.backend.normalizer
        if isinstance(normalizer, BertNormalizer):
            for theirs, ours in NORMALIZER_SETTINGS.items():
                value = settings.get(theirs)  # null says nothing
                if not isinstance(value, bool | None):
                    raise PretrainedError(f"{settings_path}: {theirs}={value!r}; expected a bool")
                if value is not None:
                    setattr(normalizer, ours, value)
        return tokenizer

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `tokenizer.json`, and the `vocab.txt` and `tokenizer_config.json` beside it.

        Either all of them appear or nothing changes; raises `InputError`.
        """
        settings: dict[str, Any] = {"tokenizer_class": "BertTokenizer"}
        settings |= {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}
        if isinstance(self.backend.normalizer, BertNormalizer):
            for theirs, ours in NORMALIZER_SETTINGS.items():
                settings[theirs] = getattr(self.backend.normalizer, ours)
        # line k of a vocab.txt is the token of id k: an id without a token has a line too
        lines = [f"[unused id {k}]" for k in range(self.vocab_size)]
        for token, k in self.backend.get_vocab().items():
            lines[k] = token
        with all_or_nothing(folder) as draft:
            text = json.dumps(settings, indent=2)
            (draft / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
            (draft / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            self.backend.save(str(draft / "tokenizer.json"))

    def encode(self, text: str) -> Pieces:
        """A text's pieces, without [CLS] and [SEP]; whatever stands in the text is text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[Pieces]:
        """`encode` for many texts, on all cores. Raises `InputError` for a lone surrogate."""
        try:
            encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        except TypeError as error:  # a lone surrogate, as JSON's "\\ud800" gives
            raise InputError("a text is not valid Unicode: it holds a lone surrogate") from error
        return [
            Pieces(
                np.array(e.ids, dtype=np.int32),
                np.array(e.offsets, dtype=np.int32).reshape(-1, 2),  # (0, 2) for an empty text
            )
            for e in encodings
        ]

    def word_offsets(self, pieces: Pieces) -> npt.NDArray[np.int32]:
        """For each piece, (T, 2), the place in the text of the whole word that it belongs to."""
        begins = ~self._continues[pieces.ids]
        begins[:1] = True
        word = np.cumsum(begins) - 1  # of each piece
        ends = np.append(begins[1:], True)
        starts = pieces.offsets[begins, 0]
        return np.stack((starts[word], pieces.offsets[ends[: len(begins)], 1][word]), axis=1)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The strings of the vocabulary for these ids."""
        return [self.backend.id_to_token(int(i)) for i in ids]

    def tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Words glued from pieces and spaced as WordPiece's decoder does: not the original text.

        The blog post's way to print an answer; `Answer.answer` is cut from the context instead.

        >>> Tokenizer.from_vocabulary(SPECIAL_TOKENS).tokens_to_string(["over", "3", "##2", "+"])
        'over 32 +'
        """
        return str(decoders.WordPiece(prefix="##", cleanup=True).decode(list(tokens)))
