"""A tokenizer's files: folder or hub id -> a tokenizer of the `tokenizers` library, its settings.

`tokenizer.json` describes a complete tokenizer. The older files are only vocabularies: `vocab.txt`
of WordPieces, `vocab.json` with `merges.txt` of byte pairs. For these, `tokenizer_config.json`
names the class that splits text. A class that splits text in another way is an error.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.processors import BertProcessing, RobertaProcessing

from .errors import PretrainedError, first_line
from .families import ANGLES, BRACKETS, FAMILIES, Family
from .hub import find_file, read_json, refuse_pointer, with_revision

# Names in tokenizer_config.json -> names in the `tokenizers` library
NORMALIZER_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}

# Vocabulary file -> the classes that split text in the same way as minibert
CLASSES = {
    "vocab.txt": ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"),
    "vocab.json": ("RobertaTokenizer",),
}

# Vocabularies that only another library can read
SENTENCE_PIECE = ("sentencepiece.bpe.model", "spiece.model", "spm.model")

# All files that a tokenizer may have. A saved tokenizer replaces all of another one's.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *(*CLASSES, "merges.txt", *SENTENCE_PIECE),
)

Settings = Mapping[str, Any]


def read_tokenizer(
    source: str | Path, revision: str | None = None
) -> tuple[tokenizers.Tokenizer, dict[str, Any], Family | None]:
    """From `tokenizer.json`, else `vocab.txt`, else `vocab.json` and `merges.txt`.

    Returns the library's tokenizer, the settings, and the family in `config.json` (None: unknown).
    A setting comes from `tokenizer_config.json`, or else from `special_tokens_map.json`. The
    settings decide about case, accents, Chinese characters and the space before the first word,
    whatever `tokenizer.json` says. Raises `PretrainedError`.
    """
    paths = (find_file(source, name, revision) for name in ("tokenizer.json", *CLASSES))
    path = next((path for path in paths if path is not None), None)
    if path is None:
        reason = why_no_tokenizer(source, revision)
        raise PretrainedError(f"{with_revision(source, revision)}: {reason}")

    def read_if_any(name: str) -> dict[str, Any]:
        path = find_file(source, name, revision)
        return read_json(path) if path else {}

    settings = read_if_any("special_tokens_map.json") | read_if_any("tokenizer_config.json")
    config = read_if_any("config.json")
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    try:
        refuse_pointer(path)
        if path.name != "tokenizer.json":
            refuse_other_kinds(path.name, config | settings)
        if path.name == "vocab.txt":
            # split only at "\n", because U+2028 and similar characters may be tokens
            tokens = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
            backend = word_pieces(tokens, is_uncased(tokens), settings, family)
        elif path.name == "vocab.json":
            merges = find_file(source, "merges.txt", revision)
            if merges is None:
                raise PretrainedError("no merges.txt in the same folder")
            backend = byte_pairs(path, merges, settings, family)
        else:
            backend = tokenizers.Tokenizer.from_file(str(path))
        backend = configured(backend, settings)
        add_tokens(backend, read_if_any("added_tokens.json"), settings)
    except Exception as error:  # the library raises `Exception` itself for a broken file
        raise PretrainedError(f"{path}: not usable as a tokenizer: {first_line(error)}") from error
    return backend, settings, family


def why_no_tokenizer(source: str | Path, revision: str | None) -> str:
    if find_file(source, "merges.txt", revision) is not None:
        return "no vocab.json, only merges.txt"
    for name in SENTENCE_PIECE:
        if find_file(source, name, revision) is not None:
            return (
                f"no tokenizer.json, only {name}; to make one: transformers.AutoTokenizer."
                f"from_pretrained({str(source)!r}).save_pretrained(FOLDER)"
            )
    return "no tokenizer (tokenizer.json, vocab.txt, or vocab.json with merges.txt)"


def refuse_other_kinds(name: str, settings: Settings) -> None:
    """Refuse a vocabulary whose class splits text in another way. Raises `PretrainedError`."""
    kind = settings.get("tokenizer_class") or CLASSES[name][0]
    words = settings.get("word_tokenizer_type") or "basic"
    if str(kind).removesuffix("Fast") not in CLASSES[name] or words != "basic":
        known = ", ".join(CLASSES[name])
        raise PretrainedError(f"tokenizer_class={kind!r}; for a {name}, minibert reads {known}")


def is_uncased(tokens: Sequence[str]) -> bool:
    """Whether a vocabulary has no capital letter of any script. Names such as "[unused1]" and "<S>"
    are not looked at.

    >>> is_uncased(["[CLS]", "élan", "東"]), is_uncased(["[CLS]", "Élan"])
    (True, False)
    """
    plain = (token for token in tokens if token[:1] + token[-1:] not in ("[]", "<>"))
    return all(token == token.lower() for token in plain)


def read_flag(settings: Settings, name: str, default: bool | None = None) -> bool | None:
    """A setting that is true or false. If it is missing or null, `default`."""
    value = settings.get(name)
    if not isinstance(value, bool | None):
        raise PretrainedError(f"{name}={value!r}; expected a bool")
    return default if value is None else value


def special_tokens(
    backend: tokenizers.Tokenizer, settings: Settings, family: Family | None, ends: Sequence[str]
) -> dict[str, str]:
    """The model's own tokens by their roles: "pad", "cls", "sep", and others if they exist.

    The names come from the files. If the files lack a name, it comes from the tokens that the
    tokenizer puts around a text (`ends`, which may be empty), or else from the family, or else from
    BERT or RoBERTa. Raises `PretrainedError` for a token that the vocabulary lacks.
    """
    usual = [family.special_tokens] if family else []
    tables = [t for t in (*usual, BRACKETS, ANGLES) if backend.token_to_id(t["cls"]) is not None]
    names = dict(tables[0] if tables else (*usual, BRACKETS)[0])
    names |= dict(zip(("cls", "sep"), ends, strict=False))
    for role in (*names, "bos", "eos"):
        value = settings.get(f"{role}_token")
        if isinstance(value, Mapping):
            value = value.get("content")
        if not isinstance(value, str | None):
            raise PretrainedError(f"{role}_token={value!r}; expected a string")
        if value is not None:
            names[role] = value
    needed = ["pad", "cls", "sep"]
    if isinstance(backend.model, WordPiece):  # the other models need no "unk"
        names["unk"] = backend.model.unk_token
        needed = ["pad", "unk", "cls", "sep"]
    for role in needed:
        if backend.token_to_id(names[role]) is None:
            raise PretrainedError(f"the vocabulary has no {names[role]}, which is the {role}_token")
    return {role: t for role, t in names.items() if backend.token_to_id(t) is not None}


def word_pieces(
    tokens: Sequence[str], lowercase: bool, settings: Settings, family: Family | None = None
) -> tokenizers.Tokenizer:
    """BERT's tokenizer, from tokens in the order of their ids. `lowercase` removes accents too."""
    ids = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(WordPiece(ids))
    unknown = settings.get("unk_token") or ("<unk>" if "<unk>" in ids else "[UNK]")
    backend.model.unk_token = unknown["content"] if isinstance(unknown, Mapping) else str(unknown)
    backend.normalizer = BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    own = special_tokens(backend, settings, family, ())
    backend.post_processor = BertProcessing(*((own[r], ids[own[r]]) for r in ("sep", "cls")))
    # for other programs that read our tokenizer.json; in minibert, text is never a special token
    backend.add_special_tokens(sorted(set(own.values()), key=ids.__getitem__))
    return backend


def byte_pairs(
    vocabulary: Path, merges: Path, settings: Settings, family: Family | None
) -> tokenizers.Tokenizer:
    """RoBERTa's tokenizer, from its vocabulary and the pairs in the order in which to join them."""
    backend = tokenizers.Tokenizer(BPE.from_file(str(vocabulary), str(merges)))
    first = read_flag(settings, "add_prefix_space", False)
    trim = read_flag(settings, "trim_offsets", True)
    backend.pre_tokenizer = ByteLevel(add_prefix_space=first)
    backend.decoder = decoders.ByteLevel()
    own = special_tokens(backend, settings, family, ())
    sep, cls = ((own[role], backend.token_to_id(own[role])) for role in ("sep", "cls"))
    backend.post_processor = RobertaProcessing(sep, cls, trim_offsets=trim, add_prefix_space=first)
    backend.add_special_tokens(sorted(set(own.values()), key=backend.token_to_id))
    return backend


def configured(backend: tokenizers.Tokenizer, settings: Settings) -> tokenizers.Tokenizer:
    """The tokenizer, with the settings applied: of WordPieces the `NORMALIZER_SETTINGS`, of byte
    pairs the space before the first word."""
    first = read_flag(settings, "add_prefix_space")
    if isinstance(backend.pre_tokenizer, ByteLevel) and first is not None:
        backend.pre_tokenizer.add_prefix_space = first
    if not isinstance(backend.model, WordPiece):
        return backend
    wanted = {ours: read_flag(settings, theirs) for theirs, ours in NORMALIZER_SETTINGS.items()}
    wanted = {ours: value for ours, value in wanted.items() if value is not None}
    normalizer = backend.normalizer
    if isinstance(normalizer, BertNormalizer):
        for name, value in wanted.items():
            setattr(normalizer, name, value)
    elif normalizer is not None and wanted:  # another kind, or a sequence of several
        state = json.loads(backend.to_str())
        parts = state["normalizer"].get("normalizers", [state["normalizer"]])
        lower = wanted.get("lowercase")
        if lower is False:
            parts = [part for part in parts if part["type"] != "Lowercase"]
        elif lower and not any(p["type"] in ("Lowercase", "BertNormalizer") for p in parts):
            parts = [*parts, {"type": "Lowercase"}]
        parts = [p | wanted if p["type"] == "BertNormalizer" else p for p in parts]
        state["normalizer"] = {"type": "Sequence", "normalizers": parts}
        return tokenizers.Tokenizer.from_str(json.dumps(state))
    return backend


def add_tokens(backend: tokenizers.Tokenizer, added: Settings, settings: Settings) -> None:
    """Add the tokens of an `added_tokens.json` and of the settings, if their ids are the next."""
    listed = settings.get("added_tokens_decoder") or {}
    tokens: dict[str, Any] = {t["content"]: int(id) for id, t in listed.items()} | dict(added)
    special = {token["content"] for token in listed.values() if token.get("special")}
    for token, id in sorted(tokens.items(), key=lambda item: str(item[1]).zfill(12)):
        if backend.token_to_id(token) is None:
            backend.add_tokens([AddedToken(token, normalized=False, special=token in special)])
        if (own := backend.token_to_id(token)) != id:
            raise PretrainedError(f"the added token {token} has id {own}, not {id}")
