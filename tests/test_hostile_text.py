"""Texts that break readers: each has its defined answer, or the one-line error."""

import itertools
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from machine import needs_proc

import minibert
from minibert import BertForQuestionAnswering, InputError, QuestionAnswerer
from minibert.fast.linear import supported
from minibert.qa import QuestionAnsweringOutput

# characters that the pair ("Who?", "Ada") counts as, where questions are read in chunks
COUNTED = len("Who?Ada") + minibert.batches.QUESTION_CHARACTERS
LONG = "the keeper lit the lamp at dusk . " * 30


@pytest.fixture(scope="module")
def qa(tiny: Path) -> QuestionAnswerer:
    return QuestionAnswerer.from_pretrained(tiny, precision="fp32", max_length=64, doc_stride=16)


ANSWERED = {
    "one token": ("a", "a"),
    "first character": ("Who?", "I, Ada, lit the lamp"),
    "digits": ("How many?", "12345678901234567890"),
    "punctuation alone": ("?!", "... !!! ???"),
    "NUL within": ("Who\0?", "Ada\0 lit\0the lamp"),
    "control characters": ("Who\x07?", "Ada\x1b[31m lit\x08 the lamp\x7f"),
    "CR LF": ("Who?", "Ada\r\nlit\r\nthe lamp\r\n"),
    "tabs, form feeds": ("Who?", "\tAda\v lit\f the\x85lamp"),
    "line and paragraph separators": ("Who?", "Ada\u2028lit\u2029the lamp"),
    "lone combining marks": ("Who?", "\u0301\u0301 Ada \u0308"),
    "zalgo": ("Who?", "A\u0315\u031a\u0327d\u0322\u0340a\u0301\u0316 lit it"),
    "decomposed accents": ("Who?", "Jose\u0301 lit the lamp"),
    "composed accents": ("Who?", "José lit the lamp in Malmö"),
    "an emoji family": ("Who?", "\U0001f468\u200d\U0001f469\u200d\U0001f467 lit the lamp"),
    "flags and skin tones": ("Who?", "\U0001f1eb\U0001f1f7 \U0001f44d\U0001f3fd lit"),
    "astral plane": ("Who?", "\U0001d400\U0001d41d\U0001d41a lit \U0002070e"),
    "Chinese": ("谁？", "艾达点亮了灯。艾达睡了。"),
    "Japanese": ("だれ？", "エイダがランプを灯した。"),
    "Korean": ("누구?", "에이다가 등불을 켰다"),
    "Hebrew": ("מי?", "עדה הדליקה את המנורה"),
    "Arabic with marks of direction": ("من؟", "\u202bأضاءت آدا المصباح\u202c"),
    "Thai": ("ใคร", "เอดาจุดตะเกียง"),
    "Devanagari": ("कौन?", "अदा ने दीपक जलाया"),
    "ligatures": ("Who?", "The ﬁrst oﬃce ﬂoods"),
    "a capital that grows in lower case": ("Who?", "İstanbul İİİ lit"),
    "sharp s and final sigma": ("Who?", "STRASSE Straße ΟΔΥΣΣΕΥΣ"),
    "full width": ("Ｗｈｏ？", "Ａｄａ lit １２３"),
    "zero-width characters": ("Who?", "A\u200bda\u200c lit\u2060 the\ufeff lamp"),
    "soft hyphens": ("Who?", "light\u00adhouse keep\u00ader"),
    "no-break spaces": ("Who?", "Ada\u00a0lit\u202fthe\u3000lamp"),
    "byte order mark first": ("\ufeffWho?", "\ufeffAda lit the lamp"),
    "replacement character": ("Who?", "Ada \ufffd lit"),
    "private use": ("Who?", "\ue000 Ada \uf8ff"),
    "noncharacters": ("Who?", "Ada \ufffe\uffff lit"),
    "[SEP] and [MASK] typed by a user": ("[SEP] who [MASK]?", "[CLS] Ada [SEP] lit [PAD] [UNK]"),
    "a continuation piece typed by a user": ("##who?", "##Ada ##lit the lamp"),
    "HTML": ("Who?", "<p onclick='x'>Ada &amp; Bo</p><!-- lit --><br/>"),
    "JSON": ("Who?", '{"who": "Ada", "lit": ["the", null]}'),
    "SQL and paths": ("'; DROP TABLE x; --", "../../etc/passwd; $(rm -rf /) `ls` %s {0}"),
    "a word of 10,000 letters": ("Who?", "x" * 10_000),
    "10,000 letters between words": ("Who?", "Ada " + "x" * 10_000 + " Bo"),
    "one letter 5,000 times": ("Who?", "a " * 5_000),
    "white space around": ("  Who?  ", "   \n\n Ada lit the lamp \n\n "),
    "many windows": ("Who lit the lamp?", LONG),
    "the context is the question": ("Who lit the lamp?", "Who lit the lamp?"),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_what_is_answered(qa, name):
    """By text of the context, at its place, for all spans; and by each text once a place."""
    question, context = ANSWERED[name]
    for max_answer_len, null in itertools.product((1, 8), (False, True)):
        answers = qa(question, context, 50, max_answer_len, null)
        assert isinstance(answers, list) and answers
        for a in answers:
            assert context[a.start : a.end] == a.answer
            assert bool(a.answer) or (null and a.start == a.end == 0)
            assert 0 <= a.score <= 1
        assert len({(a.start, a.end) for a in answers}) == len(answers)
        assert sum(a.score for a in answers) <= 1 + 1e-9


REFUSED = {
    "empty question": (("", "Ada"), {}, "no words in the question"),
    "empty context": (("Who?", ""), {}, "no words in the context"),
    "white space alone": (("Who?", " \t\r\n\u00a0\u3000"), {}, "no words in the context"),
    "control characters alone": (("Who?", "\0\x01\x7f"), {}, "no words in the context"),
    "zero-width characters alone": (("\u200b\u200d", "Ada"), {}, "no words in the question"),
    "a lone surrogate": (("Who?", "Ada \ud83d"), {}, "the context is not valid Unicode"),
    "None": ((None, "Ada"), {}, "the question is a NoneType"),
    "bytes": (("Who?", b"Ada"), {}, "the context is a bytes"),
    "a number": (("Who?", 3.5), {}, "the context is a float"),
    "a list": ((["Who?"], "Ada"), {}, "the question is a list"),
    "max_answer_len 0": (("Who?", "Ada"), {"max_answer_len": 0}, "max_answer_len=0"),
    "max_answer_len -1": (("Who?", "Ada"), {"max_answer_len": -1}, "max_answer_len=-1"),
    "top_k 0": (("Who?", "Ada"), {"top_k": 0}, "top_k=0"),
    "top_k -1": (("Who?", "Ada"), {"top_k": -1}, "top_k=-1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(qa, name):
    texts, settings, named = REFUSED[name]
    with pytest.raises(InputError, match=named) as raised:
        qa(*texts, **settings)
    assert "\n" not in str(raised.value)


def test_a_question_longer_than_a_window(qa):
    with pytest.raises(InputError, match="max_length=64 leaves room for 0 tokens"):
        QuestionAnswerer(qa.model, qa.tokenizer, max_length=64, max_question_len=100)(
            "who " * 99, "Ada"
        )
    with pytest.raises(InputError, match="max_length=64 leaves room for 0 tokens"):
        qa("who " * 99, "Ada")  # cut at 64, and still too long
    read = QuestionAnswerer(
        qa.model, qa.tokenizer, max_length=64, doc_stride=16, max_question_len=40
    )
    with pytest.warns(UserWarning, match="not read"):
        assert read("who " * 99, "Ada").answer in "Ada"


@pytest.mark.parametrize("answer_at", [0, -1])
def test_an_answer_at_either_end(qa, answer_at):
    """A context of one character that stands at its first and last place."""
    context = "Z" + " and" * 200 + " Z"
    places = {(a.start, a.end) for a in qa("Who?", context, 10_000, 1)}
    assert (0, 1) in places and (len(context) - 1, len(context)) in places


def test_more_than_there_are(qa):
    assert len(qa("Who?", "a b c", top_k=10**9)) == 6
    assert qa("Who?", "a b c", max_answer_len=10**9).answer in "a b c"


UNICODE = [
    range(0x20, 0x7F), range(0xA0, 0x250), range(0x250, 0x530), range(0x590, 0x700),
    range(0x900, 0xE80), range(0x1100, 0x1200), range(0x1E00, 0x2070), range(0x20A0, 0x2C00),
    range(0x3040, 0x3100), range(0x4E00, 0x5000), range(0xAC00, 0xAE00), range(0xFB00, 0xFFFE),
    range(0x1F300, 0x1F700), range(0, 0x20), range(0x0300, 0x0370), range(0x1D400, 0x1D500),
]  # fmt: skip


def unicode_texts(count: int, seed: int) -> list[tuple[str, str]]:
    """Questions and contexts: words of one script or of all, with blanks, mostly readable."""
    generator = random.Random(seed)

    def text(words: int) -> str:
        written = []
        for _ in range(generator.randint(1, words)):
            script = generator.choice(UNICODE)
            letters = generator.choices(script, k=generator.randint(1, 9))
            written.append("".join(map(chr, letters)))
        return generator.choice([" ", "  ", "\n", "\u3000"]).join(written)

    return [(text(5), text(25)) for _ in range(count)]


def test_ten_thousand_texts(qa):
    """The promise: what is returned is the text."""
    told = refused = 0
    pairs = unicode_texts(10_000, seed=4)
    for chunk in range(0, len(pairs), 100):
        some = []
        for pair in pairs[chunk : chunk + 100]:
            try:
                list(qa._chunks([minibert.Example("", *pair)]))
            except InputError as error:
                assert "no words" in str(error) or "leaves room" in str(error)
                refused += 1
            else:
                some.append(pair)
        for (_, context), a in zip(some, qa.answer_many(some), strict=True):
            assert context[a.start : a.end] == a.answer and a.answer
            told += 1
    assert told + refused == 10_000 and told > 9_000


def test_question_and_separators_never_answer(qa, monkeypatch):
    """However high their logits are."""
    asked = [(q, c) for q, c in unicode_texts(50, seed=5) if q.strip() and c.strip()]
    before = list(qa.answer_many(asked))
    forward = qa.model.forward

    def shout(input_ids, attention_mask, token_type_ids, **asked):
        out = forward(input_ids, attention_mask, token_type_ids, **asked)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        last = mask.sum(1, keepdim=True) - 1  # the second [SEP]
        place = torch.arange(input_ids.shape[1])
        outside = (token_type_ids == 0) | (place >= last)
        logits = (t.masked_fill(outside, 1e4) for t in (out.start_logits, out.end_logits))
        return QuestionAnsweringOutput(out.hidden_states, out.attentions, *logits)

    monkeypatch.setattr(qa.model, "forward", shout)
    assert list(qa.answer_many(asked)) == before


def test_many_in_their_order(qa, field_notes):
    """The answers of one at a time, whatever the lengths: 1e-4, for products of other shapes."""
    pairs = [(e.question, e.context[: 40 + 97 * (k % 5)]) for k, e in enumerate(field_notes[:40])]
    found = list(qa.answer_many(pairs))
    assert found == list(qa.answer_many(iter(pairs)))
    for pair, answer in zip(pairs, found, strict=True):
        alone = qa(*pair)
        assert (alone.start, alone.end) == (answer.start, answer.end)
        assert alone.start_logit == pytest.approx(answer.start_logit, abs=1e-4)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (("", "Ada"), "item 3: no words in the question"),
        (("Who?", None), "item 3: the context is a NoneType"),
        ("Who?", "item 3: expected a question and a context"),
        (("Who?", "Ada", "Bo"), "item 3: expected a question and a context"),
        (None, "item 3: expected a question and a context"),
        (("who " * 99, "Ada"), "item 3: max_length=64 leaves room"),
    ],
)
def test_a_bad_item_of_many(qa, bad, named, monkeypatch):
    """Of a list it raises before any work; of an iterator after the answers to those before it."""
    pairs = [("Who?", "1"), ("Who?", "2"), ("Who?", "3"), bad, ("Who?", "4")]
    with pytest.raises(InputError, match=named):
        qa.answer_many(pairs)
    for buffer in (1, 2**20):  # characters: one item at a time, and all at once
        monkeypatch.setattr(minibert.engine, "CHUNK_CHARACTERS", buffer)
        answers = qa.answer_many(iter(pairs))
        assert [next(answers).answer for _ in range(3)] == ["1", "2", "3"]
        with pytest.raises(InputError, match=named):
            next(answers)


@pytest.mark.filterwarnings("ignore:.*this part is not read")
@pytest.mark.parametrize("settings", [{}, {"max_question_len": 9}, {"doc_stride": 40}])
def test_a_list_is_refused_where_an_iterator_would_fail(qa, settings):
    """The cheap check of a list, beside reading each item alone."""
    arguments = {"max_length": 64, "doc_stride": 16} | settings
    short = QuestionAnswerer(qa.model, qa.tokenizer, **arguments)
    contexts = ["Ada", "\u200b", "\u0301 \ufeff", "艾达点亮了灯", "\u200b" * 300 + "é", "..."]
    questions = ["Who?", "\u00ad", "누구?", "who " * 20, "who " * 45, "İ" * 30, "누" * 25]
    refused = 0
    for pair in itertools.product(questions, contexts):
        try:
            list(short.answer_many(iter([pair])))
        except InputError as error:
            refused += 1
            with pytest.raises(InputError, match=re.escape(str(error))):
                short.answer_many([pair])
        else:
            short.require_readable([minibert.Example("", *pair)])
    assert 0 < refused < len(questions) * len(contexts)


def test_a_letter_is_a_token(qa):
    """What the check of a list counts on: a context with an ASCII letter or digit has a word."""
    letters = [chr(k) for k in range(128) if minibert.engine.ASCII_WORD.search(chr(k))]
    assert len(letters) == 62
    for tokenizer in (qa.tokenizer, minibert.Tokenizer.from_pretrained(minibert.reader.BUNDLED)):
        assert all(len(tokenizer.encode(letter)) == 1 for letter in letters)


def test_a_list_is_not_held(qa, monkeypatch):
    """Its windows are made chunk by chunk, as an iterator's are."""
    monkeypatch.setattr(minibert.engine, "CHUNK_CHARACTERS", 10 * COUNTED)  # ten of these pairs
    held = []
    windows = qa._chunks

    def spy(examples):
        for chunk in windows(examples):
            held.append(len(chunk))
            yield chunk

    monkeypatch.setattr(qa, "_chunks", spy)
    answers = qa.answer_many([("Who?", "Ada")] * 35)
    assert held == []
    next(answers)
    assert held == [10]
    assert len(list(answers)) == 34 and held == [10, 10, 10, 5]


def test_the_first_chunks_are_small(qa, monkeypatch):
    """The first answers come soon: each chunk is twice the one before, up to the bound."""
    monkeypatch.setattr(minibert.engine, "CHUNK_CHARACTERS", 10 * COUNTED)
    monkeypatch.setattr(minibert.engine, "FIRST_CHUNK_CHARACTERS", 2 * COUNTED)
    read = itertools.count()
    answers = qa.answer_many(("Who?", "Ada") for _ in iter(lambda: next(read), None))
    reached = []
    for _ in range(27):
        next(answers)
        reached.append(next(read))
        read = itertools.count(reached[-1])
    assert sorted(set(reached)) == [2, 6, 14, 24, 34]


def test_an_iterator_that_fails(qa):
    """Its own error passes through, after the answers."""

    def pairs():
        yield "Who?", "1"
        raise OSError("the line is dead")

    answers = qa.answer_many(pairs())
    assert next(answers).answer == "1"
    with pytest.raises(OSError, match="the line is dead"):
        next(answers)


def test_a_context_is_tokenized_once(qa, monkeypatch):
    """Also where its questions are read in several parts."""
    monkeypatch.setattr(minibert.engine, "CHUNK_CHARACTERS", 3 * len(LONG))
    seen = []
    encode_batch = minibert.Tokenizer.encode_batch

    def spy(self, texts):
        seen.extend(texts)
        return encode_batch(self, texts)

    monkeypatch.setattr(minibert.Tokenizer, "encode_batch", spy)
    answers = list(qa.answer_many((f"Who is {k}?", LONG) for k in range(10)))
    assert len(answers) == 10 and seen.count(LONG) == 1


def test_an_iterator_is_read_no_further_than_the_buffer(qa, monkeypatch):
    monkeypatch.setattr(minibert.engine, "CHUNK_CHARACTERS", 10 * COUNTED)  # ten of these pairs
    read = itertools.count()
    answers = qa.answer_many(("Who?", "Ada") for _ in iter(lambda: next(read), None))
    for _ in range(25):
        next(answers)
    assert next(read) == 30


needs_bf16 = pytest.mark.skipif(
    not supported(torch.bfloat16), reason="bfloat16 is emulated on this processor"
)
# Peaks are VmHWM: a child's ru_maxrss begins with its parent's.
PEAK = """
import re, runpy, sys
def megabytes():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
"""
AS_A_LIBRARY = (
    PEAK
    + """
import minibert.fast.linear
from minibert import QuestionAnswerer
if sys.argv[4] != "auto":  # whether the processor has AMX decides if bfloat16 is read with padding
    minibert.fast.linear.processor_has = lambda *names: sys.argv[4] == "padded"
qa = QuestionAnswerer.from_pretrained(sys.argv[5], precision=sys.argv[1])
qa("Who lit the lamp?", "The keeper lit the lamp at dusk.")
before, told = megabytes(), 0
for answer in qa.answer_many(eval(sys.argv[2]), text_score=eval(sys.argv[3])):
    told += 1
print(told, megabytes() - before)
"""
)
AS_A_COMMAND = (
    PEAK
    + """
try:
    runpy.run_module("minibert", run_name="__main__", alter_sys=True)
finally:
    print(megabytes(), file=sys.stderr)
"""
)
MEGABYTE = '[("Who lit the lamp?", "The keeper lit the lamp at dusk. " * 32_000)]'
PAIRS = '((f"Who is {k}?", f"Ada lit lamp {k} of all.") for k in range(%d))'
MIXED = '((f"Who is {k}?", f"Ada lit lamp {k}" + " of all" * (k * 7 %% 19)) for k in range(%d))'
# The third of the largest chunks ends before 8,000 of these; the peak is flat after the first.
COUNT = int(os.environ.get("MINIBERT_PAIRS", 8_000))


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first layer of the bundled model: it needs a fifth of the time.

    The layers compute one after another, with tensors of the same shapes, so each uses the memory
    that the one before has freed. With mixed pairs the peak of one layer is 0.5 to 0.7 of the peak
    of all six (measured in float32, int8 and bfloat16), so its limit is lower.
    """
    qa = QuestionAnswerer.from_pretrained(device="cpu", precision="fp32")
    model = BertForQuestionAnswering.from_pretrained(minibert.reader.BUNDLED)
    model.config = replace(model.config, num_hidden_layers=1)
    model.bert.layers = model.bert.layers[:1]
    folder = tmp_path_factory.mktemp("one") / "layer"
    QuestionAnswerer(model, qa.tokenizer).save_pretrained(folder)
    return folder


def measured(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "pairs", "count", "budget", "padding"),
    [
        ("fp32", MEGABYTE, 1, 500, "auto"),
        ("auto", MEGABYTE, 1, 500, "auto"),
        ("auto", PAIRS % COUNT, COUNT, 200, "auto"),
        ("auto", f"list({PAIRS % COUNT})", COUNT, 200, "auto"),
        ("fp32", MIXED % COUNT, COUNT, 200, "auto"),
        ("int8", MIXED % COUNT, COUNT, 200, "auto"),
        pytest.param("bf16", MIXED % COUNT, COUNT, 150, "unpadded", marks=needs_bf16),
        pytest.param("bf16", MIXED % COUNT, COUNT, 150, "padded", marks=needs_bf16),
    ],
    ids=[
        "megabyte-fp32", "megabyte", "pairs", "list",
        "mixed-fp32", "mixed-int8", "mixed-bf16-unpadded", "mixed-bf16-padded",
    ],
)  # fmt: skip
def test_memory_is_bounded(precision, pairs, count, budget, padding, one_layer):
    """In MB beyond what one layer takes once it has answered a first question."""
    run = measured(AS_A_LIBRARY, precision, pairs, False, padding, one_layer)
    told, more = map(int, run.stdout.split())
    assert told == count and more < budget, more


@needs_proc
@pytest.mark.slow
def test_memory_of_all_layers_is_bounded():
    run = measured(AS_A_LIBRARY, "auto", MIXED % COUNT, False, "auto", minibert.reader.BUNDLED)
    told, more = map(int, run.stdout.split())
    assert told == COUNT and more < 300, more


@needs_proc
@pytest.mark.slow
def test_memory_of_text_scores_is_bounded(one_layer):
    run = measured(AS_A_LIBRARY, "auto", MEGABYTE, True, "auto", one_layer)
    told, more = map(int, run.stdout.split())
    assert told == 1 and more < 500, more


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_memory_of_the_command_is_bounded(tmp_path, precision, one_layer):
    """The same through `minibert answer`, whole processes: beyond one with a short question."""
    pairs, context = tmp_path / "pairs.jsonl", tmp_path / "megabyte.txt"
    pairs.write_text(
        "".join(
            json.dumps(dict(zip(("question", "context"), pair, strict=True))) + "\n"
            for pair in eval(MIXED % COUNT)
        )
    )
    context.write_text("The keeper lit the lamp at dusk. " * 32_000)
    command = ("answer", "--model", one_layer, "--precision", precision)
    asked = (*command, "--question", "Who lit the lamp?")
    short, megabyte, many = (
        int(measured(AS_A_COMMAND, *arguments).stderr.split()[-1])
        for arguments in (
            (*asked, "--context", "The keeper lit the lamp."),
            (*asked, "--context-file", context),
            (*command, "--input", pairs, "--output", tmp_path / "out"),
        )
    )
    assert len((tmp_path / "out").read_bytes().splitlines()) == COUNT
    assert megabyte - short < 500 and many - short < 200, (short, megabyte, many)


@pytest.mark.slow
def test_the_promise_on_all_of_dev(tiny, squad):
    """Every answer to SQuAD's dev questions is its context's own text; whatever the weights."""
    examples = minibert.load_squad(squad, "validation")
    qa = QuestionAnswerer.from_pretrained(tiny, precision="fp32")
    told = qa.answer_many([(example.question, example.context) for example in examples])
    for example, a in zip(examples, told, strict=True):
        assert example.context[a.start : a.end] == a.answer and a.answer
    assert len(examples) == 10_570


def test_what_answering_imports(tiny):
    """Starting is quick: none of what takes a second to import."""
    code = (
        "import sys; from minibert import cli; sys.argv[1:] = ['answer', '--model', sys.argv[1], "
        "'--question', 'Who?', '--context', 'Ada']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print(*{'datasets', 'matplotlib', 'transformers', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "", done.stdout


def test_a_list_is_checked_for_every_kind_of_pair(monkeypatch, tiny):
    """With two separators between question and context, as RoBERTa has them, less room is left."""
    ours = QuestionAnswerer.from_pretrained(tiny, max_length=50, doc_stride=20, precision="fp32")
    monkeypatch.setattr(ours.tokenizer, "separators", 2)
    for words in range(22, 30):
        pair = (" ".join(["lamp"] * words), "Ada lit the lamp.")
        try:
            list(ours.answer_many(iter([pair])))
        except InputError as error:
            with pytest.raises(InputError, match=re.escape(str(error))):
                ours.answer_many([pair])
        else:
            list(ours.answer_many([pair]))
