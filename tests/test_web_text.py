"""The page's own way of a text, in plain JavaScript: it equals Python's, step by step."""

import json
import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import regex
import tokenizers
from test_hostile_text import ANSWERED, unicode_texts
from test_tokenization import SPECIAL_TOKENS, STRANGE
from tokenizers import AddedToken
from tokenizers.normalizers import BertNormalizer

import minibert
from minibert import Tokenizer
from minibert.explain.page import FOLDER
from minibert.reader import BUNDLED
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
    """Texts of several scripts, of any code points, and of letters with several marks."""
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
    return texts


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
        "special_tokens_map.json": '{"cls_token": {"content": "<s>"}, "pad_token": "[PAD]", "sep_token": "[SEP]"}',
    },
    "added tokens": {"vocab.txt": VOCABULARY, "added_tokens.json": '{"[ENT]": 13}'},
    "listed tokens": {
        "vocab.txt": VOCABULARY,
        "tokenizer_config.json": '{"added_tokens_decoder": {"13": {"content": "[ENT]"}}}',
    },
    "DistilBERT": {
        "vocab.txt": VOCABULARY,
        "config.json": '{"model_type": "distilbert"}',
        "tokenizer_config.json": '{"tokenizer_class": "DistilBertTokenizerFast", "model_max_length": 9}',
    },
}
FACTS = """([files, text]) => {
  const t = makeTokenizer(files);
  return [t.encode(text).tokens, t.padId, t.clsId, t.sepId, t.contextSegment, t.separators, t.maxLength,
    t.vocabSize, t.specialTokens];
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
