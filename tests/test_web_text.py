"""The page's own way of a text, in plain JavaScript: it equals Python's, step by step."""

import json
import random
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import tokenizers
from siblings import tokenizer_of_words
from test_hostile_text import ANSWERED, unicode_texts
from test_tokenization import SPECIAL_TOKENS, STRANGE
from tokenizers import AddedToken
from tokenizers.normalizers import BertNormalizer
from tokenizers.processors import TemplateProcessing

import minibert
from minibert import AnswerSettings, Calibration, Tokenizer, WindowSettings, best_spans
from minibert.engine import Engine
from minibert.explain import explanation
from minibert.explain.attribution import Candidates
from minibert.explain.explanation import Asked
from minibert.explain.page import FOLDER
from minibert.features import Feature, window_bounds
from minibert.graphemes import whole_graphemes
from minibert.reader import BUNDLED
from minibert.spans import WindowLogits, argmax_span, beam_spans
from minibert.tokenization import Pieces
from minibert.tokenizer_files import TOKENIZER_FILES

SCRIPTS = ("wordpiece.js", "features.js", "spans.js", "explanation.js")

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def run(browser: Any) -> Iterator[Run]:
    """Runs JavaScript in a page that has the scripts: `(argument) => value`."""
    page = browser.new_page()
    for name in SCRIPTS:
        page.add_script_tag(path=FOLDER / name)

    def run(function: str, argument: Any) -> Any:
        # as JSON, because playwright itself takes minutes for many values
        code = f"async (argument) => JSON.stringify(await ({function})(JSON.parse(argument)))"
        return json.loads(page.evaluate(code, json.dumps(argument)))

    yield run
    page.close()


def files_of(folder: Path) -> dict[str, str]:
    """The texts of a model's small files, by their names."""
    paths = (folder / name for name in (*TOKENIZER_FILES, "config.json"))
    return {path.name: path.read_text(encoding="utf-8") for path in paths if path.exists()}


ENCODE = """([files, texts]) => {
  const tokenizer = makeTokenizer(files);
  return texts.map((text) => {
    const {ids, offsets, words, tokens} = tokenizer.encode(text);
    return [ids, offsets, words, tokens];
  });
}"""


def assert_pieces_equal(run: Run, folder: Path, texts: Sequence[str]) -> int:
    """Compare ids, offsets, words and tokens. Returns the number of pieces."""
    tokenizer = Tokenizer.from_pretrained(folder)
    pieces = tokenizer.encode_batch(texts)
    for text, ours, theirs in zip(
        texts, run(ENCODE, [files_of(folder), list(texts)]), pieces, strict=True
    ):
        ids, offsets, words, tokens = ours
        assert ids == theirs.ids.tolist(), text
        assert offsets == theirs.offsets.tolist(), text
        assert words == theirs.words.tolist(), text
        assert tokens == tokenizer.tokens(theirs.ids), text
    return sum(map(len, pieces))


HOSTILE = [*STRANGE, *(text for pair in ANSWERED.values() for text in pair)]


@pytest.mark.parametrize("model", [BUNDLED, "tiny", "distilbert", "electra"])
def test_pieces_of_hostile_texts(run, tiny, model):
    assert assert_pieces_equal(run, tiny.parent / model, HOSTILE) > 1000


def test_pieces_of_squad(run, squad):
    examples = minibert.load_squad(squad / "dev-v1.1.json.gz")
    contexts = list(dict.fromkeys(example.context for example in examples))
    assert assert_pieces_equal(run, BUNDLED, contexts[:2000]) > 250_000


def letters_like(texts: Sequence[str], folder: Path, **settings: Any) -> Path:
    """A tokenizer in which every letter of the normalized texts is a piece of its own."""
    normalizer = BertNormalizer(**settings)
    letters = sorted(set("".join(map(normalizer.normalize_str, texts))))
    state = json.loads(
        Tokenizer.from_vocabulary(
            [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters)]
        ).backend.to_str()
    )
    state["normalizer"] = json.loads(normalizer.__getstate__())
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    return folder


POINTS = [chr(k) for k in range(0x110000) if not 0xD800 <= k < 0xE000]
MARKS = regex.findall(r"\p{M}", "".join(POINTS))
COMPOSED = [c for c in POINTS if unicodedata.decomposition(c)]


def generated_texts(count: int, seed: int) -> list[str]:
    """Texts of several scripts, of any code points, and of letters with several marks. At the end,
    each mark together with others: a normal form puts them in order."""
    generator = random.Random(seed)

    def anything() -> str:
        return POINTS[generator.randrange(generator.choice([0x3000, 0xF000, 0x20000, 0x10F000]))]

    def marked() -> str:
        letter = generator.choice([*"aE东", *generator.choices(COMPOSED, k=3)])
        return letter + "".join(generator.choices(MARKS, k=generator.randint(0, 4)))

    texts = [text for pair in unicode_texts(count // 4, seed) for text in pair]
    while len(texts) < count:
        letters = generator.choice([anything, marked])
        texts.append("".join(letters() for _ in range(generator.randint(1, 30))))
    return texts + [f"a{mark}\u0334{mark}\u0345e{mark}\u0315" for mark in MARKS]


NORMALIZERS: list[tuple[int, dict[str, bool | None]]] = [
    (5000, {}),
    (1000, {"lowercase": False}),
    (1000, {"strip_accents": False, "handle_chinese_chars": False}),
    (1000, {"lowercase": False, "strip_accents": True}),
    (1000, {"clean_text": False, "strip_accents": False}),
]


@pytest.mark.parametrize(("count", "settings"), NORMALIZERS, ids=str)
def test_pieces_of_generated_texts(run, tmp_path, count, settings):
    texts = [*HOSTILE, *generated_texts(count, seed=6)]
    folder = letters_like(texts, tmp_path, **settings)
    assert assert_pieces_equal(run, folder, texts) > 10 * count


WORDS = """([files, texts]) => {
  const tokenizer = makeTokenizer(files);
  return texts.map((text) => preTokenized(tokenizer.normalize(lettersOf(text)))
    .map((letters) => letters.map(({char}) => char).join("")));
}"""


def test_every_code_point(run, tmp_path):
    """How each is normalized, and whether text is split before and after it."""
    texts = ["a".join(POINTS[k : k + 4096]) for k in range(0, len(POINTS), 4096)]
    files = files_of(letters_like("ab", tmp_path))
    backend = tokenizers.Tokenizer.from_str(files["tokenizer.json"])
    for text, ours in zip(texts, run(WORDS, [files, texts]), strict=True):
        normal = backend.normalizer.normalize_str(text)
        assert ours == [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]


ADDED = [
    AddedToken("[ENT]", normalized=True),
    AddedToken("[ENTITY]", normalized=False),
    AddedToken("Zoë", normalized=True, single_word=True),
    AddedToken("q", normalized=False, single_word=True),
    AddedToken("x y", normalized=False),
    AddedToken("x y b", normalized=False),
    AddedToken("bab", normalized=False),
    AddedToken("[MASK]", normalized=False, lstrip=True),
    AddedToken("<left>", normalized=False, lstrip=True, rstrip=True),
]


@pytest.mark.parametrize("lowercase", [True, False])
def test_added_tokens(run, tmp_path, lowercase):
    """Tokens that a user added are always recognised; the model's own ones never are."""
    letters = "abcdefghijklmnopqrstuvwxyzABCZMSKTENIYë[]<>.0"
    words = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters)]
    state = json.loads(Tokenizer.from_vocabulary(words, lowercase).backend.to_str())
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    backend.add_tokens(ADDED)
    (tmp_path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    generator = random.Random(7)
    parts = [
        *(t.content for t in ADDED),
        *SPECIAL_TOKENS,
        *"abqxyZ .\n",
        "zoe",
        "ZOË",
        "[ent]",
        "  ",
    ]
    texts = ["".join(generator.choices(parts, k=generator.randint(1, 9))) for _ in range(2_000)]
    texts += ["babab", "bababab", "x y b x y x y b", "q q.q qq"]
    assert assert_pieces_equal(run, tmp_path, texts) > 10_000


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the sentence of its error."""
    try:
        return call()
    except minibert.MinibertError as error:
        return str(error)


OUTCOME = (
    "const outcome = (call) => { try { return call(); } catch (error) { return error.message; } };"
)


VOCABULARY = "\n".join([*SPECIAL_TOKENS, *"abÉé東", "##b", "##京", "lamp"])
FOLDERS = {
    "vocab.txt": {"vocab.txt": VOCABULARY + "\n"},
    "byte order mark": {"vocab.txt": "\ufeff" + VOCABULARY},
    "uncased": {"vocab.txt": VOCABULARY.replace("É\n", "")},
    "cased": {"vocab.txt": VOCABULARY, "tokenizer_config.json": '{"do_lower_case": false}'},
    "accents": {
        "vocab.txt": VOCABULARY,
        "tokenizer_config.json": '{"do_lower_case": true, "strip_accents": false}',
    },
    "Chinese": {
        "vocab.txt": VOCABULARY,
        "tokenizer_config.json": '{"tokenize_chinese_chars": false}',
    },
    "other names": {
        "vocab.txt": VOCABULARY.replace("[CLS]", "<s>").replace("[UNK]", "<unk>"),
        "special_tokens_map.json": '{"cls_token": {"content": "<s>"}, "pad_token": "[PAD]"}',
        "tokenizer_config.json": '{"sep_token": "[SEP]"}',
    },
    "added tokens": {"vocab.txt": VOCABULARY, "added_tokens.json": '{"[ENT]": 13}'},
    "listed tokens": {
        "vocab.txt": VOCABULARY,
        "tokenizer_config.json": '{"added_tokens_decoder": {"13": {"content": "[ENT]"}}}',
    },
    "DistilBERT": {
        "vocab.txt": VOCABULARY,
        "config.json": '{"model_type": "distilbert", "tokenizer_class": "DistilBertTokenizerFast"}',
        "tokenizer_config.json": '{"model_max_length": 9}',
    },
}
FACTS = """([files, text]) => {
  const t = makeTokenizer(files);
  return [t.encode(text).tokens, t.padId, t.clsId, t.sepId, t.contextSegment, t.separators,
    t.maxLength, t.vocabSize, t.specialTokens];
}"""


@pytest.mark.parametrize("name", FOLDERS)
def test_the_files_of_a_tokenizer(run, tmp_path, name):
    for file, text in FOLDERS[name].items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    t = Tokenizer.from_pretrained(tmp_path)
    text = "ÉB 東京 Lamp [ENT] [CLS] <s>"
    assert run(FACTS, [FOLDERS[name], text]) == [
        t.tokens(t.encode(text).ids), t.pad_id, t.cls_id, t.sep_id, t.context_segment,
        t.separators, t.max_length, t.vocab_size, t.special_tokens,
    ]  # fmt: skip


def template(tokens: str) -> str:
    """A tokenizer.json that joins a pair in this way."""
    backend = tokenizer_of_words([*SPECIAL_TOKENS, "a"])
    ids = [(token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = TemplateProcessing("$A", tokens, ids)
    return backend.to_str()


UNUSABLE: dict[str, tuple[dict[str, str], str]] = {
    "no file": ({}, "no tokenizer: expected tokenizer.json or vocab.txt"),
    "broken": ({"tokenizer.json": "{"}, "tokenizer.json: not readable as JSON"),
    "a list": ({"tokenizer.json": "[]"}, "tokenizer.json: expected an object"),
    "nothing": ({"tokenizer.json": "{}"}, "the tokenizer's model is none; this page reads only"),
    "byte pairs": (
        {"tokenizer.json": '{"model": {"type": "BPE"}}'},
        "the tokenizer's model is BPE",
    ),
    "a unigram model": (
        {"tokenizer.json": '{"model": {"type": "Unigram"}}'},
        "the tokenizer's model is Unigram",
    ),
    "another class": (
        {"vocab.txt": VOCABULARY, "tokenizer_config.json": '{"tokenizer_class": "MPNetTokenizer"}'},
        "tokenizer_class MPNetTokenizer: for a vocab.txt, this page reads BertTokenizer",
    ),
    "another way to split words": (
        {"vocab.txt": VOCABULARY, "config.json": '{"word_tokenizer_type": "mecab"}'},
        "tokenizer_class BertTokenizer with mecab words: for a vocab.txt, this page reads Bert",
    ),
    "a setting that is a number": (
        {"vocab.txt": VOCABULARY, "tokenizer_config.json": '{"do_lower_case": 1}'},
        "do_lower_case=1; expected true or false",
    ),
    "a limit that is text": (
        {"vocab.txt": VOCABULARY, "tokenizer_config.json": '{"model_max_length": "9"}'},
        'model_max_length="9"; expected a number of 1 or more',
    ),
    "no [PAD]": (
        {"vocab.txt": VOCABULARY.replace("[PAD]", "x")},
        "the vocabulary has no [PAD], which is the pad_token",
    ),
    "an added token with another id": (
        {"vocab.txt": VOCABULARY, "added_tokens.json": '{"[ENT]": 99}'},
        "the added token [ENT] has id 13, not 99",
    ),
    "a pad token that is a word": (
        {"vocab.txt": VOCABULARY, "tokenizer_config.json": '{"pad_token": "lamp"}'},
        "the special token lamp is also a word",
    ),
    "a pair without [CLS]": (
        {"tokenizer.json": template("[SEP] $A [CLS] $B [SEP]")},
        "it joins a pair as [SEP] question [CLS] context [SEP]; expected",
    ),
    "an id beyond all": (
        {"tokenizer.json": template("[CLS] $A [SEP] $B [SEP]").replace('"a":5', '"a":1000000000')},
        "the vocabulary has the id 1000000000: too large",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_other_tokenizers_are_refused_by_one_sentence(run, name):
    files, sentence = UNUSABLE[name]
    told = run(f"(files) => {{ {OUTCOME} return outcome(() => makeTokenizer(files)); }}", files)
    assert (
        isinstance(told, str) and told.startswith(sentence.partition(":")[0]) and sentence in told
    )
    assert "\n" not in told


def test_two_separators_in_the_middle(run):
    files = {"tokenizer.json": template("[CLS] $A [SEP] [SEP] $B [SEP]")}
    assert run("(files) => makeTokenizer(files).separators", files) == 2


# --- windows

WINDOWS = (
    """([files, rows]) => {
  const tokenizer = makeTokenizer(files);
  """
    + OUTCOME
    + """
  return rows.map(([question, context, settings]) => {
    const cut = [];
    const onCut = (sentence) => cut.push(sentence);
    const windows = outcome(() => makeWindows(question, context, tokenizer, settings, onCut));
    if (typeof windows === "string") return windows;
    return [cut, windows[0].context.offsets, windows.map((window) => [window.inputIds,
      window.tokenTypeIds, window.tokenStart, window.tokenEnd, window.contextSlice])];
  });
}"""
)


def assert_windows_equal(run: Run, folder: Path, rows: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Compare the windows of many (question, context, settings), or the sentences of errors."""
    qa = minibert.QuestionAnswerer.from_pretrained(folder, precision="fp32")
    windows = run(WINDOWS, [files_of(folder), rows])
    for ours, (question, context, settings) in zip(windows, rows, strict=True):
        qa.window_settings = WindowSettings(**settings)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            features = outcome(lambda: Asked.of(qa, question, context, AnswerSettings()).features)  # noqa: B023
        if isinstance(features, str):
            assert ours == features
            continue
        cut, offsets, rest = ours
        assert cut == [str(warning.message) for warning in told]
        assert offsets == features[0].context.offsets.tolist(), ascii(context)
        assert rest == [
            [f.input_ids, f.token_type_ids, f.token_start, f.token_end,
             [f.context_slice.start, f.context_slice.stop]]
            for f in features
        ]  # fmt: skip
    return windows


def random_settings(generator: random.Random) -> dict[str, int | None]:
    return {
        "max_length": generator.choice([12, 20, 33, 64, 96]),
        "doc_stride": generator.choice([None, None, 0, 5, 16, 60]),
        "max_question_len": generator.choice([64, 64, 9, 3, None]),
    }


def segmentable(text: str) -> str:
    """The text without what Python and the browser read in different ways: characters that only one
    of them may know yet, and viramas. If a virama has no consonant before it, only `regex`
    joins it with a consonant after it."""
    viramas = "\u094d\u09cd\u0acd\u0b4d\u0c4d\u0d4d\u1039\u17d2\u1a60\u1b44\u1bab\ua9c0\uaaf6"
    return "".join(c for c in text if c not in viramas and unicodedata.category(c) != "Cn")


@pytest.mark.parametrize("model", ["tiny", "distilbert"])
def test_windows_equal(run, tiny, field_notes, model):
    generator = random.Random(8)
    pairs = [(e.question, e.context) for e in field_notes[:60]]
    pairs += [*ANSWERED.values(), ("Who?", "\u200b"), ("", "Ada"), ("\u00ad 'x\"\\\x07", " \n")]
    pairs += [tuple(map(segmentable, pair)) for pair in unicode_texts(300, seed=9)]
    pairs += [("who " * 30 + "\U0001f600", "Ada lit it"), ('Who\'s "it"? ' * 30, "Ada " * 50)]
    rows = [(*pair, random_settings(generator)) for pair in pairs]
    windows = assert_windows_equal(run, tiny.parent / model, rows)
    errors = {re.sub(r"\d+|['\"].*", "", each) for each in windows if isinstance(each, str)}
    assert len(errors) == 3  # no words in the question or in the context; no room for the context
    several = [each for each in windows if not isinstance(each, str)]
    assert (
        sum(len(each[2]) > 3 for each in several) > 50 and sum(len(each[0]) for each in several) > 5
    )


GRAPHEMES = (
    "(texts) => texts.map((text) => wholeGraphemes(text, Array.from(text, (_, k) => [k, k + 1])))"
)


def test_letters_of_several_characters_are_whole(run):
    pool = (
        "a1\r\n\u0301\u0903\u0915\u0937\u093f\u0e33\u200d\u200c\U0001f468\U0001f469\U0001f3fb\ufe0f"
    )
    pool += "\U0001f1eb\U0001f1f7\u1100\u1161\u11a8\uac00\uac01\u00ad\u00a9\u20e3é東"
    generator = random.Random(10)
    texts = ["".join(generator.choices(pool, k=generator.randint(1, 12))) for _ in range(5_000)]
    texts += ["क्षत्रिय हिन्दी नमस्ते।", *(c for _, c in ANSWERED.values())]
    for text, ours in zip(texts, run(GRAPHEMES, texts), strict=True):
        places = np.stack((np.arange(len(text)), np.arange(len(text)) + 1), 1)
        assert ours == whole_graphemes(text, places).tolist(), ascii(text)


def test_a_value_that_is_no_text(run):
    code = "(value) => { " + OUTCOME + "return outcome(() => requireText('question', value)); }"
    assert run(code, 3.5) == "the question is a number; expected a string"
    lone = "() => { " + OUTCOME + "return outcome(() => requireText('context', 'a \\ud800 b')); }"
    assert run(lone, None) == "the context is not valid Unicode: it holds a lone surrogate"


# --- spans

SPANS = """(rows) => rows.map(([windows, offsets, settings, calibration, place]) => {
  const logits = windows.map(([tokenStart, start, end, nullLogits]) => ({tokenStart, nullLogits,
    startLogits: Float32Array.from(start), endLogits: Float32Array.from(end)}));
  return [
    bestSpans(logits, settings, offsets, calibration).map(
      (s) => [s.tokenStart, s.tokenEnd, s.startLogit, s.endLogit, s.score, s.window]),
    logPOf(logits, settings, offsets, calibration, place),
    argmaxSpan(logits[0].startLogits, logits[0].endLogits),
    beamSpans(logits[0].startLogits, logits[0].endLogits, settings.n_best),
  ];
})"""


def random_logits(generator: np.random.Generator) -> tuple[list[WindowLogits], np.ndarray]:
    """The logits of some overlapping windows, and the offsets of the context's tokens.

    In half of the cases the logits are whole numbers, so that many spans have equal scores, and
    several tokens have the same characters.
    """
    tokens, room = int(generator.integers(1, 60)), int(generator.integers(2, 25))
    bounds = window_bounds(tokens, room, int(generator.integers(0, room - 1)))
    whole = bool(generator.integers(2))

    def logits(count: int) -> np.ndarray:
        values = generator.normal(0, 4, count)
        return (values.round() if whole else values).astype(np.float32)

    windows = [
        WindowLogits(a, logits(b - a), logits(b - a), tuple(logits(2).tolist())) for a, b in bounds
    ]
    starts = np.cumsum(generator.integers(0 if whole else 1, 3, tokens))
    return windows, np.stack((starts, starts + 1), 1)


def as_candidates(
    windows: Sequence[WindowLogits], offsets: np.ndarray, settings: AnswerSettings, c: Calibration
) -> Candidates:
    pieces = Pieces(np.zeros(len(offsets), dtype=np.int32), offsets, np.arange(len(offsets)))
    features = [
        Feature("", k, (1, 2), pieces, w.token_start, w.token_start + len(w.start_logits) - 1)
        for k, w in enumerate(windows)
    ]
    return Candidates.of(features, settings.max_answer_len, settings.no_answer, c)


def test_spans_equal(run):
    generator = np.random.default_rng(11)
    cases, rows = [], []
    for k in range(400):
        windows, offsets = random_logits(generator)
        longest, count = (int(n) for n in generator.choice([1, 2, 5, 30, 200], 2))
        settings = AnswerSettings(count, longest, no_answer=k % 3 > 0)
        calibration = Calibration(*generator.choice([[1, 0], [0.7, 2.5], [2.3, -1]]).tolist())
        spans = best_spans(windows, settings, offsets, calibration=calibration)
        place = (0, 0)
        if not spans[-1].is_null:
            place = int(offsets[spans[-1].token_start, 0]), int(offsets[spans[-1].token_end, 1])
        cases.append((windows, offsets, settings, calibration, spans, place))
        rows.append([
            [[w.token_start, w.start_logits.tolist(), w.end_logits.tolist(), w.null_logits]
             for w in windows],
            offsets.tolist(),
            {"n_best": count, "max_answer_len": longest, "no_answer": settings.no_answer},
            asdict(calibration),
            place,
        ])  # fmt: skip
    assert sum(len(windows) > 2 for windows, *_ in cases) > 100
    for ours, case in zip(run(SPANS, rows), cases, strict=True):
        windows, offsets, settings, calibration, spans, place = case
        best, log_p, argmax, beam = ours
        assert [span[:4] + span[5:] for span in best] == [
            [s.token_start, s.token_end, s.start_logit, s.end_logit, s.window] for s in spans
        ]
        assert [span[4] for span in best] == pytest.approx([s.score for s in spans], rel=1e-9)
        theirs = as_candidates(windows, offsets, settings, calibration).log_p_of(windows, *place)
        assert log_p == pytest.approx(theirs, abs=1e-5)
        sides = windows[0].start_logits, windows[0].end_logits
        assert tuple(argmax) == argmax_span(*sides)
        if len({*sides[0]}) == len({*sides[1]}) == len(sides[0]):  # else the order is numpy's own
            assert [tuple(span) for span in beam] == beam_spans(*sides, settings.top_k)


def test_logits_that_are_not_finite(run):
    rows = [[[[0, [1, 2], [1, 2], [0, 0]]], [[0, 1], [1, 2]], {"n_best": 1, "max_answer_len": 2}]]
    code = f"(rows) => {{ {OUTCOME} return outcome(() => ({SPANS})(rows)); }}"
    assert run(code, [[*rows[0], asdict(Calibration()), [0, 1]]])[0][0][0][:2] == [1, 1]
    rows[0][0][0][1][1] = 1e39  # Infinity in float32
    sentence = "logits are not finite: check the model's weights and precision"
    assert run(code, [[*rows[0], asdict(Calibration()), [0, 1]]]) == sentence


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("answerSettings({n_best: 0})", "n_best=0: expected 1 or more"),
        ("answerSettings({max_answer_len: 1.5})", "max_answer_len=1.5: expected 1 or more"),
        (
            "storedCalibration({minibert: {temperature: 0}})",
            "config: minibert: temperature=0: expected a number above 0",
        ),
        (
            "storedCalibration({minibert: {null_threshold: '1'}})",
            'config: minibert: null_threshold="1": expected a number',
        ),
        ("storedCalibration({minibert: {size: 1}})", "config: minibert has no setting size"),
    ],
)
def test_settings_out_of_range(run, code, sentence):
    assert run(f"() => {{ {OUTCOME} return outcome(() => {code}); }}", None) == sentence


# --- the whole explanation

# test_site.py compares what the model itself gives: its inside, and what it was made with
BY_THE_MODEL = {"made_with": None, "embeddings": None, "attention": None}
EXPLAIN = """async ([files, calibration, settings, rows]) => {
  globalThis.insideOf = async () => ({embeddings: null, attention: null});
  const tokenizer = makeTokenizer(files);
  return Promise.all(rows.map(async ([question, context, asked, depths]) => {
    const read = async (features, onProgress) => {
      onProgress(features.length, features.length);
      return depths.map((depth) => depth.map(([start, end]) =>
        ({start: Float32Array.from(start), end: Float32Array.from(end)})));
    };
    const engine = {tokenizer, settings, calibration, read, madeWith: null};
    return explain(engine, question, context, asked);
  }));
}"""


def assert_close(ours: Any, theirs: Any, at: str) -> None:
    """Equal, key for key and in the same order; floats within 1e-5."""
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs), at
        for key in theirs:
            assert_close(ours[key], theirs[key], f"{at}.{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), at
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_close(a, b, f"{at}[{k}]")
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=1e-5), at
    else:
        assert ours == theirs and type(ours) is type(theirs), at


def random_layers(
    engine: Engine, features: Sequence[Feature], on_batch: Any
) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Logits for each layer and window, instead of a model's."""
    generator = np.random.default_rng(len(features[0].context))
    return [
        [
            tuple(generator.normal(0, 4, (2, len(feature))).astype(np.float32))
            for feature in features
        ]
        for _ in range(4)
    ]


def assert_explained(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    qa: minibert.QuestionAnswerer,
    asked: Sequence[tuple[str, str, AnswerSettings]],
    layer_logits: Callable[..., Any],
) -> list[dict[str, Any]]:
    """Compare the explanations; the page gets the logits of each layer that Python had."""
    rows: list[Any] = []

    def keep(*arguments: Any) -> Any:
        depths = layer_logits(*arguments)
        rows.append([[[side.tolist() for side in sides] for sides in depth] for depth in depths])
        return depths

    monkeypatch.setattr(explanation, "layer_logits", keep)
    theirs = [qa.explain(q, c, *astuple(s)[:3], attribution=False) for q, c, s in asked]
    for k, (question, context, s) in enumerate(asked):
        names = {"n_best": s.top_k, "max_answer_len": s.max_answer_len, "no_answer": s.no_answer}
        rows[k] = [question, context, names, rows[k]]
    windows = asdict(qa.window_settings)
    files = files_of(Path(qa.source[0]))
    explained = run(EXPLAIN, [files, asdict(qa.calibration), windows, rows])
    for a, b in zip(explained, theirs, strict=True):
        assert_close(a, b.to_dict() | BY_THE_MODEL, "")
    return [each.to_dict() for each in theirs]


@pytest.mark.parametrize("calibration", [Calibration(), Calibration(1.6, -20.0)])
@pytest.mark.parametrize("model", ["tiny", "distilbert"])
def test_explanations_equal(run, monkeypatch, tiny, field_notes, model, calibration):
    qa = minibert.QuestionAnswerer.from_pretrained(
        tiny.parent / model, precision="fp32", attention="eager", max_length=64, doc_stride=20
    )
    qa.calibration = calibration
    asked = [
        (example.question, example.context, AnswerSettings(10, 30, k % 2 == 0))
        for k, example in enumerate(field_notes[:12])
    ]
    asked += [(q, segmentable(c[:300]), AnswerSettings(3, 4, True)) for q, c in ANSWERED.values()]
    explained = assert_explained(run, monkeypatch, qa, asked, random_layers)
    windows = [window for each in explained for window in each["windows"]]
    assert {d["rule"] for w in windows for d in w["decoders"]} >= {"", "order", "outside", "length"}
    assert any(w["left"] is None for w in windows) and any(len(e["windows"]) > 2 for e in explained)
    assert any(not each["answers"][0]["answer"] for each in explained)


def test_explanations_of_the_bundled_model_equal(run, monkeypatch, field_notes):
    qa = minibert.QuestionAnswerer.from_pretrained(BUNDLED, precision="fp32")
    stored = json.loads((BUNDLED / "config.json").read_text(encoding="utf-8"))
    assert run("storedCalibration", stored) == asdict(qa.calibration)
    code = "(files) => windowSettings(makeTokenizer(files), 512)"
    assert run(code, files_of(BUNDLED)) == asdict(qa.window_settings)
    asked = [
        (example.question, example.context, AnswerSettings(5, 30, k > 0))
        for k, example in enumerate(field_notes[:2])
    ]
    explained = assert_explained(run, monkeypatch, qa, asked, explanation.layer_logits)
    assert all(each["stays_from"] > 0 for each in explained)
