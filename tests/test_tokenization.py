"""The tokenizer compared with transformers'; text stays text, and offsets are slices."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.models import WordPiece

import minibert
from minibert.tokenization import SPECIAL_TOKENS, Tokenizer

STRANGE = [
    "Over 32+ pretrained models (BERT, GPT-2…) in 100+ languages.",
    "Müller naïve Ångström İstanbul straße",
    "東京タワーは高い。 한국어 العربية हिन्दी",
    "😀 👩‍🚀 x\u200by \ufeffz\u00a0w \u2028 end",
    "a\tb\nc\r\nd\x00e\x07f \ufffd",
    "e\u0301 vs é; ﬁ ligature; ½; 10³; ①",
    "don't O'Neil's U.S.A. 3.14 1,000 $5 100% C++ a_b",
    "x" * 150 + " supercalifragilisticexpialidocious",
    "",
    "   ",
]

VOCABULARY = [
    *SPECIAL_TOKENS,
    *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZéÉüÜ東京[]",
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZéÉüÜ東京"),
]


@pytest.fixture(scope="module")
def real(minilm: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(minilm)


@pytest.mark.parametrize("text", STRANGE)
def test_ids_and_offsets_equal_the_reference(transformers, minilm, real, text):
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)(
        text, add_special_tokens=False, return_offsets_mapping=True
    )
    pieces = real.encode(text)
    assert pieces.ids.tolist() == theirs["input_ids"]
    assert pieces.offsets.tolist() == [list(pair) for pair in theirs["offset_mapping"]]
    assert real.tokens(pieces.ids) == real.backend.encode(text, add_special_tokens=False).tokens


@given(text=st.text())
def test_offsets_are_slices_of_the_text(tiny, text):
    pieces = Tokenizer.from_pretrained(tiny).encode(text)
    assert len(pieces) == len(pieces.offsets)
    for start, end in pieces.offsets.tolist():
        assert 0 <= start < end <= len(text)
    starts = pieces.offsets[:, 0].tolist()
    assert starts == sorted(starts)


def test_offsets_slice_out_the_pieces(real):
    text = "Lighthouse keepers played chess by telegraph."
    pieces = real.encode(text)
    cut = [text[a:b].lower() for a, b in pieces.offsets]
    assert cut == [token.removeprefix("##") for token in real.tokens(pieces.ids)]


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt"])
def test_text_is_never_a_control_token(real, minilm, tmp_path, form):
    tokenizer = real
    if form == "vocab.txt":
        (tmp_path / "vocab.txt").write_bytes((minilm / "vocab.txt").read_bytes())
        tokenizer = Tokenizer.from_pretrained(tmp_path)
    pieces = tokenizer.encode("see [SEP] and [CLS], [MASK] [PAD]")
    assert not set(map(tokenizer.backend.token_to_id, SPECIAL_TOKENS)) & set(pieces.ids.tolist())
    assert tokenizer.tokens(pieces.ids)[1:4] == ["[", "sep", "]"]


def test_vocab_txt_and_tokenizer_json_agree(real, minilm, tmp_path):
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((minilm / name).read_bytes())
    from_vocabulary = Tokenizer.from_pretrained(tmp_path)
    assert from_vocabulary.vocab_size == real.vocab_size == 30522
    for text in STRANGE:
        assert from_vocabulary.encode(text).ids.tolist() == real.encode(text).ids.tolist()


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"do_lower_case": True}, ["e", "##b", "東", "京"]),
        ({"do_lower_case": False}, ["É", "##B", "東", "京"]),  # cased BERT
        ({"do_lower_case": True, "strip_accents": False}, ["é", "##b", "東", "京"]),
        ({"do_lower_case": False, "tokenize_chinese_chars": False}, ["É", "##B", "東", "##京"]),
    ],
)
def test_case_accents_and_chinese_characters_as_configured(tmp_path, settings, tokens):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokens(tokenizer.encode("ÉB 東京").ids) == tokens
    # A saved tokenizer gives the same tokens, and the settings still override tokenizer.json.
    tokenizer.save_pretrained(tmp_path / "saved")
    again = Tokenizer.from_pretrained(tmp_path / "saved")
    assert again.tokens(again.encode("ÉB 東京").ids) == tokens
    (tmp_path / "saved" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = Tokenizer.from_pretrained(tmp_path / "saved")
    assert cased.backend.normalizer.lowercase is False


def test_saved_tokenizer_works_elsewhere(transformers, tmp_path):
    Tokenizer.from_vocabulary(VOCABULARY, lowercase=False).save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    encoded = theirs("Ab é", "cd")
    assert theirs.convert_ids_to_tokens(encoded["input_ids"]) == [
        "[CLS]", "A", "##b", "é", "[SEP]", "c", "##d", "[SEP]",
    ]  # fmt: skip
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 0, 1, 1, 1]


def test_tokens_to_string_is_the_blog_post_s_detokenizer(transformers, minilm, real):
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)
    for text in ["over 32+", "general-purpose architectures", "TensorFlow 2.0 and PyTorch", "it's"]:
        tokens = real.tokens(real.encode(text).ids)
        assert real.tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)
    assert real.tokens_to_string(real.tokens(real.encode("over 32+").ids)) == "over 32 +"


def test_a_lone_surrogate_is_an_input_error(real):
    with pytest.raises(minibert.InputError, match="lone surrogate"):
        real.encode("a \ud800 b")


def test_a_vocabulary_with_gaps_keeps_its_ids(tmp_path):
    """Some tools leave ids without a token. Each of these ids has a line in vocab.txt."""
    ids = {"[PAD]": 0, "[UNK]": 3, "[CLS]": 4, "[SEP]": 5, "ada": 9, "lamp": 7}
    backend = tokenizers.Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    Tokenizer(backend).save_pretrained(tmp_path)
    lines = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 10 and len(set(lines)) == 10
    assert all(lines[k] == token for token, k in ids.items())
    (tmp_path / "tokenizer.json").unlink()
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.vocab_size == 10 and again.encode("ada lamp").ids.tolist() == [9, 7]


def test_pieces_are_equal_when_ids_and_offsets_are(real):
    a, b, c = real.encode("a lamp"), real.encode("a lamp"), real.encode("lamp a")
    assert a == b and a is not b
    assert a != c and a != replace(a, offsets=a.offsets + 1) and a != "a lamp"


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({}, "no tokenizer"),
        ({"vocab.txt": "a\nb\n"}, r"no \[PAD\]"),
        ({"tokenizer.json": "{"}, "not usable as a tokenizer"),
        ({"tokenizer.json": '{"model": {}}'}, "not usable as a tokenizer"),
        (
            {"vocab.txt": "\n".join(VOCABULARY), "tokenizer_config.json": "["},
            "not readable as JSON",
        ),
        (
            {"vocab.txt": "\n".join(VOCABULARY), "tokenizer_config.json": '{"do_lower_case": 1}'},
            "do_lower_case=1; expected a bool",
        ),
    ],
)
def test_bad_tokenizer_folders(tmp_path, files, named):
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(minibert.PretrainedError, match=named):
        Tokenizer.from_pretrained(tmp_path)
