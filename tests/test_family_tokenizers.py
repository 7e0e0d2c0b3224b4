"""Tokenizers of every kind: ids and offsets compared with the reference, whole words, text that is
never a special token, files under every name, and files that are refused."""

import itertools
import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import siblings
from hypothesis import given, settings
from hypothesis import strategies as st
from test_features import differences, reference_label, reference_windows
from test_hostile_text import ANSWERED, unicode_texts
from test_tokenization import STRANGE, VOCABULARY
from tokenizers import pre_tokenizers as pre
from tokenizers import processors

import minibert
from minibert import QuestionAnswerer, Tokenizer
from minibert.tokenization import Pieces

ALL = siblings.FAMILIES
KINDS = {
    "WordPiece": siblings.word_pieces(600),
    "byte-level BPE": siblings.byte_level(600),
    "with a space first": siblings.byte_level(600, add_prefix_space=True),
    "offsets not trimmed": siblings.byte_level(600, trim_offsets=False),
    "BPE with ▁": siblings.space_pairs(600),
    "XLM-R's Unigram": siblings.unigram(600, words_first=True),
    "CamemBERT's Unigram": siblings.unigram(600, words_first=False),
}
CONTROL = re.compile(r"\[(PAD|UNK|CLS|SEP|MASK)\]|</?s>|<(pad|unk|mask)>")


def hostile_texts() -> list[str]:
    return [*STRANGE, *chain.from_iterable(ANSWERED.values())]


def generated_texts(count: int) -> list[str]:
    return list(chain.from_iterable(unicode_texts(count // 2, seed=14)))


@cache
def of_kind(kind: str) -> Tokenizer:
    return Tokenizer(KINDS[kind].from_str(KINDS[kind].to_str()))


def stripped(text: str, start: int, end: int) -> list[int]:
    """The place without the white space at its edges."""
    inner = text[start:end]
    first = start + len(inner) - len(inner.lstrip())
    return [first, max(first, start + len(inner.rstrip()))]


def assert_theirs(transformers: Any, kind: str, texts: list[str]) -> None:
    """Ids and offsets equal the reference's, with one exception: here no piece includes the white
    space at its edges, as in byte-level BPE and Unigram, and a "▁" or "Ġ" alone covers nothing."""
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=KINDS[kind])
    texts = [text for text in texts if not CONTROL.search(text)]
    encoded = theirs(texts, add_special_tokens=False, return_offsets_mapping=True)
    for k, (text, pieces) in enumerate(zip(texts, of_kind(kind).encode_batch(texts), strict=True)):
        assert pieces.ids.tolist() == encoded["input_ids"][k], text
        places = [stripped(text, *place) for place in encoded["offset_mapping"][k]]
        tokens = theirs.convert_ids_to_tokens(encoded["input_ids"][k])
        for ours, wanted, token in zip(pieces.offsets.tolist(), places, tokens, strict=True):
            blank = token in ("▁", "Ġ") or wanted[0] == wanted[1]
            assert ours[0] >= ours[1] if blank else ours == wanted, text


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_offsets_equal_the_reference(transformers, kind):
    assert_theirs(transformers, kind, hostile_texts())


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_offsets_of_5000_generated_texts(transformers, kind):
    assert_theirs(transformers, kind, generated_texts(5_000))


@pytest.mark.parametrize("kind", KINDS)
def test_whole_words_are_the_library_s(kind):
    tokenizer = of_kind(kind)
    for text in hostile_texts():
        encoding = tokenizer.backend.encode(text, add_special_tokens=False)
        pieces = tokenizer.encode(text)
        for k, word in enumerate(pieces.word_offsets().tolist()):
            place = stripped(text, *encoding.word_to_chars(encoding.token_to_word(k)))
            assert word == place or (word[0] >= word[1] and pieces.blank[k]), text


@pytest.mark.parametrize("kind", KINDS)
def test_a_piece_begins_and_ends_in_text(kind):
    """A piece without text, as for the second of two spaces, is between two pieces with text."""
    tokenizer = of_kind(kind)
    for text in [*hostile_texts(), "Ada  lit\n\n\nthe lamp ", "   ", "\n"]:
        pieces = tokenizer.encode(text)
        starts = pieces.offsets[:, 0].tolist()
        assert starts == sorted(starts), text
        ends = pieces.offsets[:, 1].tolist()
        assert ends == sorted(ends), text
        for start, end in zip(starts, ends, strict=True):
            assert 0 <= start <= len(text) and 0 <= end <= len(text)
            assert text[start:end].strip() == text[start:end]
            assert start < end or text[end:start].strip() == ""


@settings(deadline=None)
@given(text=st.text())
def test_offsets_are_slices_of_any_text(text):
    for kind in ("byte-level BPE", "offsets not trimmed", "CamemBERT's Unigram"):
        pieces = of_kind(kind).encode(text)
        for start, end in pieces.offsets.tolist():
            assert text[start:end].strip() == text[start:end]
            assert start < end or text[end:start].strip() == ""


# Steps before the byte level. `ByteLevel(add_prefix_space=True)` puts a space before each part.
STEPS: dict[str, list[Any]] = {
    "ByteLevel alone": [],
    "digits first": [pre.Digits(individual_digits=True)],
    "punctuation first": [pre.Punctuation()],
    "white space first": [pre.WhitespaceSplit()],
    "words first": [pre.Whitespace()],
}


def post_processors(backend: Any, space: bool, trim: bool) -> dict[str, Any]:
    """Every post-processor that can trim, with these flags, and none."""
    bert = backend.token_to_id("[CLS]") is not None
    cls, sep = ("[CLS]", "[SEP]") if bert else ("<s>", "</s>")
    ids = [(token, backend.token_to_id(token)) for token in (sep, cls)]
    ends = processors.TemplateProcessing(
        f"{cls} $A {sep}", f"{cls} $A {sep} {sep} $B {sep}", special_tokens=ids
    )
    flags = {"add_prefix_space": space, "trim_offsets": trim}
    return {
        "none": None,
        "RobertaProcessing": processors.RobertaProcessing(*ids, **flags),
        "ByteLevel": processors.ByteLevel(**flags),
        "ByteLevel and template": processors.Sequence([processors.ByteLevel(**flags), ends]),
    }


def byte_levels(steps: str) -> Iterator[tuple[str, Tokenizer]]:
    """Byte-level tokenizers with these steps, all post-processors and all flags."""
    for space, regex, first, trim in itertools.product((True, False), repeat=4):
        backend = KINDS["byte-level BPE"].from_str(siblings.trained("roberta"))
        level = pre.ByteLevel(add_prefix_space=space, use_regex=regex)
        backend.pre_tokenizer = pre.Sequence([*STEPS[steps], level]) if STEPS[steps] else level
        for name, post in post_processors(backend, first, trim).items():
            backend.post_processor = post
            flags = f"space={space}, regex={regex}; {name}, space={first}, trim={trim}"
            yield flags, Tokenizer(backend)


def assert_letters_are_covered(tokenizer: Tokenizer, texts: list[str], kind: str) -> None:
    """Each letter belongs to a piece. A piece that is only a space covers no letter."""
    for text, pieces in zip(texts, tokenizer.encode_batch(texts), strict=True):
        spaces = [token in ("▁", "Ġ") for token in tokenizer.tokens(pieces.ids)]
        assert pieces.blank[spaces].all(), f"{kind}: {text!r}"
        covered = {k for start, end in pieces.offsets.tolist() for k in range(start, end)}
        missing = [c for k, c in enumerate(text) if c.isprintable() and k not in covered]
        assert set(missing) <= {" "}, f"{kind}: {text!r}"


PLAIN = [
    "Joris woont in Gent.", "a b", "I", "  Ada  lit", "\nAda lit the lamp.", "x=3.14, (in 1874)!",
    "Joris\n\nZed\tQ ", "Élan vital, über", "東京タワー 😀 z", "\u00a0Zed\u3000Q",
]  # fmt: skip


@pytest.mark.parametrize("steps", STEPS)
def test_every_letter_is_covered_by_byte_pairs(steps):
    """Whatever the flags of pre-tokenizer and post-processor say, also if the flags disagree. They
    disagree in RobBERT, and if tokenizer_config.json changes the flag of tokenizer.json."""
    count = 0
    for flags, tokenizer in byte_levels(steps):
        assert_letters_are_covered(tokenizer, PLAIN, flags)
        count += 1
    assert count == 64


@pytest.mark.parametrize("kind", KINDS)
def test_every_letter_is_covered(kind):
    for space, trim in itertools.product((True, False), repeat=2):
        backend = KINDS[kind].from_str(KINDS[kind].to_str())
        for name, post in post_processors(backend, space, trim).items():
            backend.post_processor = post
            assert_letters_are_covered(Tokenizer(backend), PLAIN, f"{name}, {space}, {trim}")


def test_settings_can_change_the_space_of_tokenizer_json(tmp_path):
    """tokenizer_config.json asks for a space before the first word. tokenizer.json does not."""
    siblings.write_tokenizer("roberta", tmp_path)
    settings = siblings.settings("roberta") | {"add_prefix_space": True}
    write(tmp_path, tokenizer_config__json=settings)
    for folder in (tmp_path, tmp_path / "saved"):
        tokenizer = Tokenizer.from_pretrained(folder)
        assert tokenizer.tokens(tokenizer.encode("Joris").ids)[0].startswith("Ġ")
        assert_letters_are_covered(tokenizer, PLAIN, folder.name)
        tokenizer.save_pretrained(tmp_path / "saved")


SPELLED = [
    "see [SEP] and [CLS], [MASK] [PAD]",
    "a </s> b</s>c <s><s> <mask> <pad> x<unk>y",
    "＜／ｓ＞ is </s> in full width",
    "</s>",
    "<mask>",
]


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_never_a_control_token(kind):
    """Unigram's vocabulary has "</s>" as a piece like any other. No text may become this piece."""
    tokenizer = of_kind(kind)
    ids = {tokenizer.backend.token_to_id(t) for t in (*siblings.BRACKETS, *siblings.ANGLES)}
    ids -= {None, *map(tokenizer.backend.token_to_id, ("[UNK]", "<unk>"))}
    assert len(ids) == 4
    for text in SPELLED:
        pieces = tokenizer.encode(text)
        assert not ids & set(pieces.ids.tolist()), text
        covered = {k for start, end in pieces.offsets.tolist() for k in range(start, end)}
        assert covered == {k for k, letter in enumerate(text) if not letter.isspace()}


def test_a_control_word_without_brackets_stays_text(tmp_path):
    """Special tokens whose names are words: a text may contain such a word."""
    tokens = ["pad", "unk", "cls", "sep", *"abcdefghijklmnopqrstuvwxyz", "##s", "##l", "##e", "##p"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    names = {f"{name}_token": name for name in ("pad", "unk", "cls", "sep")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id) == (0, 2, 3)
    assert not {0, 2, 3} & set(tokenizer.encode("a sep is a cls").ids.tolist())


# --- the whole arrow -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def readers(transformers, tmp_path_factory) -> dict[str, QuestionAnswerer]:
    qa = {}
    for model_type in ALL:
        folder = tmp_path_factory.mktemp(model_type)
        siblings.checkpoint(transformers, model_type, folder)
        qa[model_type] = QuestionAnswerer.from_pretrained(
            folder, precision="fp32", max_length=64, doc_stride=16
        )
    return qa


@pytest.mark.parametrize("model_type", ALL)
def test_an_answer_is_the_text(readers, model_type):
    qa = readers[model_type]
    for question, context in ANSWERED.values():
        for align in (False, True):
            settings = minibert.AnswerSettings(30, 8, align_to_words=align)
            (answers,) = qa.answer_examples([minibert.Example("", question, context)], settings)
            for a in answers:
                assert context[a.start : a.end] == a.answer and a.answer
                assert stripped(context, a.start, a.end) == [a.start, a.end] or "\u0308" in a.answer
            assert len({(a.start, a.end) for a in answers}) == len(answers)
            assert sum(a.score for a in answers) <= 1 + 1e-9


@pytest.mark.parametrize("model_type", ALL)
def test_the_pieces_of_one_character_are_one_place(readers, model_type):
    """An emoji of four bytes, so of four tokens, is one answer, and occurs once."""
    answers = readers[model_type]("Who?", "Ada 😀 lit", top_k=1000)
    places = [(a.start, a.end) for a in answers]
    assert len(set(places)) == len(places) and (4, 5) in places


@pytest.mark.parametrize("model_type", ALL)
@pytest.mark.parametrize("context", ["", "   ", " \t\n\u3000"])
def test_a_context_of_white_space_has_no_words(readers, model_type, context):
    for pair in (("Who?", context), (context, "Ada")):
        with pytest.raises(minibert.InputError, match="no words"):
            readers[model_type](*pair)


@cache
def small_reader(kind: str) -> QuestionAnswerer:
    """A small random model with this tokenizer, and windows of 32 tokens."""
    tokenizer = of_kind(kind)
    sizes = {
        "vocab_size": 600, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": tokenizer.pad_id,
    }  # fmt: skip
    family = "bert" if kind == "WordPiece" else "roberta"
    config = minibert.BertConfig.from_dict({"model_type": family, **sizes})
    model = minibert.BertForQuestionAnswering(config).eval()
    return QuestionAnswerer(model, tokenizer, max_length=32, doc_stride=8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_blank_context_is_blank_for_every_kind(kind):
    qa = minibert.pipeline(model=small_reader(kind))
    for blank in ("", "   ", " \n\t", "\u00a0"):
        pair = {"question": "Who?", "context": blank}
        assert qa(**pair, allow_blank=True) == {"score": 0.0, "start": 0, "end": 0, "answer": ""}
        both = [pair, pair | {"context": "Ada lit it."}]
        nothing, answer = qa(both, allow_blank=True)
        assert nothing["answer"] == "" and answer["answer"] in "Ada lit it."
        with pytest.raises(minibert.InputError, match="no words in the context"):
            qa(**pair)


SPACED = [
    ("Who?", "\nAda lit the lamp."),
    ("\nWho?", "  Ada lit  the lamp.  \n"),
    (" Who  lit it? \n", "Ada lit. \n\n Then she slept."),
    ("Who?", "Ada lit it." + 20 * " \n\t" + "She slept."),  # whole windows of white space
    ("Who?", 60 * "\n" + "Ada lit it."),
    ("Who?", "Ada lit it." + 60 * "\n"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(len(SPACED)))
def test_white_space_is_no_word_of_an_explanation(monkeypatch, kind, number):
    monkeypatch.setattr("minibert.explain.explanation.STEPS", 8)  # takes less time
    question, context = SPACED[number]
    why = small_reader(kind).explain(question, context, no_answer=bool(number % 2))
    assert why.attribution
    for text, places in ((question, why.question_words), (context, why.context_words)):
        assert [text[a:b] for a, b in places] == [text[a:b].strip() for a, b in places]
        assert [a for a, _ in places] == sorted(a for a, _ in places)
        assert "" not in [text[a:b] for a, b in places]
    for occlusion in why.attribution.occlusions:
        text = question if occlusion.side == "question" else context
        rest = text[: occlusion.start] + text[occlusion.end :]
        assert text[occlusion.start : occlusion.end].strip() and rest.strip()
    shares = why.attribution.gradients  # the words have all of the difference
    assert sum(shares.question) + sum(shares.context) == pytest.approx(
        shares.log_p - shares.baseline_log_p, abs=1e-3
    )
    for window in why.windows:
        first, last = window.context_start, window.context_end
        spans = zip(window.starts[first:last], window.ends[first:last], strict=True)
        blank = all(a >= b for a, b in spans)
        assert [d.decoder for d in window.decoders] == ["argmax", "beam", "exact"][: 3 - blank]
        assert not (blank and window.alone.answer)
        assert all(decoded.rule for decoded in window.decoders) or not blank
    assert json.dumps(why.to_dict(), allow_nan=False)  # for the page


def text_windows(
    transformers: Any,
    model_type: str,
    folder: Path,
    examples: list[minibert.Example],
    sizes: tuple[int, int],
) -> tuple[list[int], list[minibert.Feature], Any]:
    ours = Tokenizer.from_pretrained(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    features = minibert.prepare_train_features(examples, ours, *sizes)
    reference = reference_windows(theirs, examples, *sizes)
    if "token_type_ids" not in reference:  # a family without segments
        reference["token_type_ids"] = [[0] * len(ids) for ids in reference["input_ids"]]
    return differences(features, examples, reference), features, reference


def assert_labels_are_theirs(
    transformers: Any,
    model_type: str,
    folder: Path,
    examples: list[minibert.Example],
    sizes: tuple[int, int] = (128, 40),
) -> None:
    """All windows and labels equal the reference's, except for two mistakes of the reference. If an
    answer begins in a window's last token, its label is no span. If an answer begins with a
    character of several pieces, its label can begin at another piece of this character."""
    siblings.write_tokenizer(model_type, folder)
    wrong, features, reference = text_windows(transformers, model_type, folder, examples, sizes)
    for k in wrong:
        feature, encoding = features[k], reference.encodings[k]
        example = examples[reference["overflow_to_sample_mapping"][k]]
        start, end = reference_label(encoding, example)
        place = encoding.offsets[feature.start_position]
        assert start > end or encoding.offsets[start][0] == place[0]
    assert len(wrong) < len(features) / 50
    assert sum(f.start_position != 0 for f in features) > len(features) / 10


@pytest.mark.parametrize("model_type", ALL)
def test_windows_and_labels_equal_the_reference(transformers, tmp_path, field_notes, model_type):
    assert_labels_are_theirs(transformers, model_type, tmp_path, field_notes)


@pytest.mark.parametrize("kind", KINDS)
def test_white_space_around_an_answer_changes_no_label(kind):
    """Also if the white space has pieces of its own, which cover nothing."""
    context = "At dusk  \n Ada lit  the lamp.  "
    tokenizer = of_kind(kind)
    labels = set()
    for text in ("Ada lit", " Ada lit", "  \n Ada lit  ", "Ada lit  ", " \n Ada lit "):
        gold = minibert.GoldAnswer(text, context.index(text))
        example = minibert.Example("k", "Who?", context, (gold,))
        (feature,) = minibert.prepare_train_features([example], tokenizer, 96)
        labels.add((feature.start_position, feature.end_position))
        start, end = (p - len(feature.prefix) for p in labels.copy().pop())
        offsets = feature.context.offsets
        assert context[offsets[start, 0] : offsets[end, 1]] == "Ada lit"
    assert len(labels) == 1


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "camembert", "electra"])
def test_windows_and_labels_of_2000_squad_questions(transformers, tmp_path, squad, model_type):
    examples = minibert.load_squad(squad, "train")[::40][:2000]
    siblings.write_tokenizer(model_type, tmp_path)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    lengths = map(len, tokenizer.encode_batch([example.question for example in examples]))
    # We cut longer questions. The reference does not; its windows show less of the context.
    examples = [e for e, length in zip(examples, lengths, strict=True) if length <= 64]
    assert len(examples) > 1900
    assert_labels_are_theirs(transformers, model_type, tmp_path, examples, (384, 128))


# --- files ---------------------------------------------------------------------------------------


def write(folder: Path, **files: Any) -> Path:
    """Write files by name ("__" means "."). A value that is not text is written as JSON."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def merges(model: dict[str, Any]) -> str:
    return "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"])


@pytest.mark.parametrize("prefix", [False, True])
def test_vocab_and_merges_are_the_same_tokenizer(transformers, tmp_path, prefix):
    backend = siblings.byte_level(600, add_prefix_space=prefix)
    model = json.loads(backend.to_str())["model"]
    settings = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": prefix}
    write(tmp_path, vocab__json=model["vocab"], merges__txt=merges(model),
          tokenizer_config__json=settings)  # fmt: skip
    old, whole = Tokenizer.from_pretrained(tmp_path), Tokenizer(backend)
    theirs = transformers.RobertaTokenizer.from_pretrained(tmp_path)
    for text in hostile_texts():
        a, b = old.encode(text), whole.encode(text)
        assert a.ids.tolist() == b.ids.tolist() and (a.offsets == b.offsets).all()
        if not CONTROL.search(text):
            assert a.ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    assert (old.separators, old.context_segment) == (2, 0)
    old.save_pretrained(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again("Who?", "Ada  lit it.")["input_ids"] == theirs("Who?", "Ada  lit it.")["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_loads_the_same(tmp_path, kind):
    tokenizer = of_kind(kind)
    tokenizer.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    for text in [*hostile_texts(), *SPELLED]:
        a, b = tokenizer.encode(text), again.encode(text)
        assert a.ids.tolist() == b.ids.tolist() and (a.offsets == b.offsets).all()
    packed = ("cls_id", "sep_id", "pad_id", "separators", "context_segment", "vocab_size")
    assert all(getattr(tokenizer, name) == getattr(again, name) for name in packed)
    again.save_pretrained(tmp_path / "again")
    texts = [(f / "tokenizer.json").read_text() for f in (tmp_path, tmp_path / "again")]
    assert texts[0] == texts[1]


NEW = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
def test_a_token_that_someone_added_is_one_piece(transformers, tmp_path, model_type, special):
    """In tokenizer.json, special or not. As in transformers, and also after saving."""
    siblings.write_tokenizer(model_type, tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    size = Tokenizer.from_pretrained(tmp_path).vocab_size
    state["added_tokens"].append(NEW | {"id": size, "content": "<lamp>", "special": special})
    write(tmp_path, tokenizer__json=state)
    text = "a <lamp> and</s>[SEP]"
    for folder in (tmp_path, tmp_path / "saved"):
        tokenizer = Tokenizer.from_pretrained(folder)
        pieces = tokenizer.encode(text)
        assert pieces.ids.tolist().count(size) == 1 and tokenizer.vocab_size == size + 1
        assert pieces.offsets[pieces.ids == size].tolist() == [[2, 8]]
        assert not {tokenizer.cls_id, tokenizer.sep_id} & set(pieces.ids.tolist())
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert theirs("a <lamp> b")["input_ids"].count(size) == 1
        assert theirs.added_tokens_decoder[size].special == special
        tokenizer.save_pretrained(tmp_path / "saved")


def test_added_tokens_json_with_a_vocabulary(tmp_path):
    """The slow tokenizers' added_tokens.json, and the list in later tokenizer_config.json files."""
    vocabulary = "\n".join(VOCABULARY)
    size = len(VOCABULARY)
    write(tmp_path, vocab__txt=vocabulary, added_tokens__json={"<bulb>": size + 1, "<lamp>": size})
    pieces = Tokenizer.from_pretrained(tmp_path).encode("a <lamp>b <bulb>[SEP]")
    assert {size, size + 1} < set(pieces.ids.tolist())
    decoder = {str(size): {"content": "<lamp>", "special": True}}
    (tmp_path / "added_tokens.json").unlink()
    write(tmp_path, tokenizer_config__json={"added_tokens_decoder": decoder})
    assert size in Tokenizer.from_pretrained(tmp_path).encode("a <lamp>b").ids
    write(tmp_path, tokenizer_config__json={}, added_tokens__json={"<lamp>": size + 7})
    with pytest.raises(minibert.PretrainedError, match=rf"<lamp>.*{size + 7}"):
        Tokenizer.from_pretrained(tmp_path)


def test_control_tokens_that_are_not_marked_special(tmp_path):
    """A tokenizer.json with [SEP] as an ordinary added token: "[SEP]" in a text is still text."""
    siblings.write_tokenizer("bert", tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in state["added_tokens"]:
        token["special"] = False
    write(tmp_path, tokenizer__json=state)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.sep_id not in tokenizer.encode("a [SEP] b").ids


ANGLED = [*siblings.ANGLES, *"abcde", *(f"##{c}" for c in "abcde"), "<", ">", "/"]


@pytest.mark.parametrize("where", ["special_tokens_map.json", "tokenizer_config.json"])
@pytest.mark.parametrize("form", ["text", "dict"])
def test_special_tokens_under_other_names(tmp_path, where, form):
    """A WordPiece vocabulary with <s> and </s>, and a file that gives their roles."""
    roles = {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    named: dict[str, Any] = {f"{role}_token": token for role, token in roles.items()}
    if form == "dict":
        named = {role: NEW | {"content": token} for role, token in named.items()}
    write(tmp_path, vocab__txt="\n".join(ANGLED))
    (tmp_path / where).write_text(json.dumps(named))
    for folder in (tmp_path, tmp_path / "saved"):
        tokenizer = Tokenizer.from_pretrained(folder)
        assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id) == (0, 2, 1)
        assert tokenizer.tokens(tokenizer.encode("ab z").ids) == ["a", "##b", "<unk>"]
        assert not {0, 1, 2, 4} & set(tokenizer.encode("a </s> <mask>").ids.tolist())
        tokenizer.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"special_tokens_map__json": {"cls_token": "<bos>"}}, "no <bos>, which is the cls_token"),
        ({"special_tokens_map__json": {"cls_token": 5}}, "cls_token=5"),
        ({"special_tokens_map__json": "["}, "not readable as JSON"),
        ({"added_tokens__json": {"<lamp>": "x"}}, "<lamp>"),
        ({"tokenizer_config__json": {"tokenizer_class": "BertJapaneseTokenizer"}},
         "BertJapaneseTokenizer"),
        ({"config__json": {"model_type": "bert", "tokenizer_class": "BertJapaneseTokenizer"}},
         "BertJapaneseTokenizer"),
        ({"tokenizer_config__json": {"tokenizer_class": "RobertaTokenizer"}}, "RobertaTokenizer"),
        ({"tokenizer_config__json": {"model_max_length": "x"}}, "model_max_length='x'"),
    ],
)  # fmt: skip
def test_bad_files_with_a_vocabulary(tmp_path, files, named):
    write(tmp_path, vocab__txt="\n".join(VOCABULARY), **files)
    with pytest.raises(minibert.PretrainedError, match=named) as raised:
        Tokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("tokens", "text", "wanted"),
    [
        (["Ada", "ada", "##a"], "Ada", "Ada"),
        (["ada", "##a", "東"], "Ada", "ada"),
        (["[unused1]", "[Unused2]", "ada"], "Ada", "ada"),
        (["Élan", "elan", "élan"], "Élan", "Élan"),
        (["élan", "elan"], "Élan", "elan"),  # lower-casing removes accents too
        (["Ада", "ада"], "Ада", "Ада"),
        (["ада", "ß", "ﬁ", "ª"], "Ада", "ада"),
        (["Άδα", "αδα"], "Άδα", "Άδα"),
        (["ada", "##É"], "Ada", "[UNK]"),
    ],
)
@pytest.mark.parametrize("settings", [None, {}, {"tokenizer_class": "BertTokenizer"}])
def test_the_vocabulary_tells_whether_it_is_cased(tmp_path, tokens, text, wanted, settings):
    """If no file does. A capital letter of any script makes a vocabulary cased."""
    write(tmp_path, vocab__txt="\n".join([*siblings.BRACKETS, *tokens]))
    if settings is not None:
        write(tmp_path, tokenizer_config__json=settings)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokens(tokenizer.encode(text).ids) == [wanted]


@pytest.mark.parametrize(
    ("parts", "lower", "wanted"),
    [
        ([{"type": "NFC"}, "bert"], False, "Ada"),
        ([{"type": "NFC"}, "bert"], True, "ada"),
        ([{"type": "NFD"}, {"type": "Lowercase"}], False, "Ada"),
        ([{"type": "NFD"}, {"type": "Lowercase"}], True, "ada"),
        ([{"type": "NFD"}], True, "ada"),
    ],
)
def test_case_in_a_sequence_of_normalizers(tmp_path, parts, lower, wanted):
    """`do_lower_case` decides here too."""
    backend = siblings.tokenizer_of_words([*siblings.BRACKETS, "Ada", "ada"])
    state = json.loads(backend.to_str())
    bert = state["normalizer"] | {"lowercase": not lower}
    parts = [bert if part == "bert" else part for part in parts]
    state["normalizer"] = {"type": "Sequence", "normalizers": parts}
    write(tmp_path, tokenizer__json=state, tokenizer_config__json={"do_lower_case": lower})
    for folder in (tmp_path, tmp_path / "saved"):
        tokenizer = Tokenizer.from_pretrained(folder)
        assert tokenizer.tokens(tokenizer.encode("Ada").ids) == [wanted]
        tokenizer.save_pretrained(tmp_path / "saved")


def test_a_byte_order_mark_in_a_vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\n".join(VOCABULARY).encode("utf-8-sig"))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.pad_id == 0 and tokenizer.tokens([0]) == ["[PAD]"]


@pytest.mark.parametrize(
    ("limit", "length"), [(128, 128), (512, 384), (10**30, 384), (1e30, 384), (None, 384)]
)
def test_model_max_length_is_respected(transformers, tmp_path, limit, length):
    siblings.checkpoint(transformers, "bert", tmp_path)
    settings = siblings.settings("bert") | {"model_max_length": limit}
    write(tmp_path, tokenizer_config__json=settings)
    qa = QuestionAnswerer.from_pretrained(tmp_path, precision="fp32")
    assert qa.window_settings.max_length == length
    qa = QuestionAnswerer.from_pretrained(tmp_path, precision="fp32", max_length=300)
    assert qa.window_settings.max_length == 300  # given by the caller
    qa.tokenizer.save_pretrained(tmp_path)
    qa = QuestionAnswerer.from_pretrained(tmp_path, precision="fp32")
    assert qa.window_settings.max_length == length


def test_packing_is_what_the_files_say(tmp_path):
    """The template of tokenizer.json; without one, the family's."""
    siblings.write_tokenizer("xlm-roberta", tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    assert Tokenizer.from_pretrained(tmp_path).separators == 2
    pair = state["post_processor"]["pair"]
    assert pair.pop(2) == pair[2]  # one "</s>" between the two
    write(tmp_path, tokenizer__json=state)
    assert Tokenizer.from_pretrained(tmp_path).separators == 1
    state["post_processor"] = None
    write(tmp_path, tokenizer__json=state)
    assert Tokenizer.from_pretrained(tmp_path).separators == 2
    write(tmp_path, config__json={"model_type": "bert"})
    assert Tokenizer.from_pretrained(tmp_path).separators == 1


def test_another_template_is_refused(tmp_path):
    siblings.write_tokenizer("xlm-roberta", tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["post_processor"]["pair"].pop(0)
    write(tmp_path, tokenizer__json=state)
    with pytest.raises(minibert.PretrainedError, match="joins a pair"):
        Tokenizer.from_pretrained(tmp_path)


def test_an_empty_text_has_no_pieces():
    pieces = of_kind("byte-level BPE").encode("")
    assert isinstance(pieces, Pieces) and len(pieces) == 0
    assert pieces.word_offsets().shape == (0, 2)
    assert np.array_equal(pieces.words, [])
