"""The whole arrow: its promise, its windows, and the best answers of the reference pipeline."""

import json
import shutil
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minibert
from minibert import InputError, QuestionAnswerer, reader
from minibert.data.metric import normalize_answer
from minibert.fast.processor import choose_device

HERE = Path(__file__).parent
PIPELINE = json.loads((HERE / "reference" / "pipeline.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def qa(tiny: Path) -> QuestionAnswerer:
    return QuestionAnswerer.from_pretrained(tiny, attention="eager", precision="fp32")


@settings(max_examples=200, deadline=None)
@given(question=st.text(min_size=1), context=st.text(min_size=1, max_size=400))
def test_an_answer_is_the_text(qa, question, context):
    try:
        answers = qa(question, context, top_k=5)
    except minibert.InputError as error:
        assert "no words" in str(error) or "leaves room" in str(error)
        return
    for answer in answers:
        assert context[answer.start : answer.end] == answer.answer
        assert answer.answer
        assert 0.0 <= answer.score <= 1.0


def test_best_answers_equal_the_reference_pipeline_s(qa, field_notes):
    """Where that pipeline is right: on contexts of one window. Over several it compares scores of
    softmaxes that have nothing to do with each other, and it sums those of equal texts."""
    max_answer_len = PIPELINE["settings"]["max_answer_len"]
    examples = {example.id: example for example in field_notes}
    compared = runners_up = 0
    for row in PIPELINE["rows"]:
        example = examples[row["id"]]
        windows = minibert.prepare_features([example], qa.tokenizer)
        if len(windows) > 1:
            continue
        ours = qa(example.question, example.context, 5, max_answer_len)
        theirs = row["answers"]
        a, b = ours[0], theirs[0]
        assert (a.start, a.end, a.answer) == (b["start"], b["end"], b["answer"])
        compared += 1
        texts = [answer.answer.lower() for answer in ours]
        if len(theirs) == 5 and len(set(texts)) == 5:  # no text summed away
            assert texts == [answer["answer"].lower() for answer in theirs]
            runners_up += 1
    assert compared >= 15 and runners_up >= 10


def test_live_pipeline(transformers, qa, tiny, field_notes):
    """The same against the pipeline itself, where the installed transformers has it."""
    if not hasattr(transformers, "QuestionAnsweringPipeline"):
        pytest.skip("this transformers has no question-answering pipeline (5.2.0 is the last)")
    reader = transformers.pipeline("question-answering", model=str(tiny), tokenizer=str(tiny))
    for example in field_notes[::10]:
        context = example.context[:300]
        theirs = reader(
            question=example.question, context=context, max_answer_len=30, align_to_words=False
        )
        ours = qa(example.question, context)
        assert (ours.start, ours.end) == (theirs["start"], theirs["end"])


def test_a_span_of_several_windows_counts_once(tiny):
    """Each place stands once among the answers, and all their scores sum to 1."""
    question, context = "Who lit the lamp?", "The keeper lit the lamp at dusk and slept. " * 6
    for max_length, doc_stride in ((384, 128), (40, 20), (40, 24)):
        qa = QuestionAnswerer.from_pretrained(tiny, max_length=max_length, doc_stride=doc_stride)
        answers = qa(question, context, top_k=10_000, max_answer_len=5)
        assert len({(a.start, a.end) for a in answers}) == len(answers)
        assert sum(a.score for a in answers) == pytest.approx(1.0)
        assert [astuple(a) for a in answers[:7]] == [
            astuple(a) for a in qa(question, context, top_k=7, max_answer_len=5)
        ]


@pytest.mark.parametrize("align_to_words", [False, True])
def test_text_scores_sum_to_one(qa, align_to_words):
    """Over windows too; and asking for them changes nothing else. Uncalibrated, they are sums of
    scores."""
    context = "The keeper, Ada, lit the lamp. Ada slept; the lamp burned. " * 4
    short = QuestionAnswerer(qa.model, qa.tokenizer, max_length=40, doc_stride=12)
    example = minibert.Example("", "Who lit the lamp?", context)
    settings = minibert.AnswerSettings(10_000, 4, True, align_to_words)
    (plain,) = short.answer_examples([example], settings)
    (asked,) = short.answer_examples([example], replace(settings, text_score=True))
    assert [replace(answer, text_score=None) for answer in asked] == plain
    assert "text_score" not in plain[0].to_dict() and "text_score" in asked[0].to_dict()
    once = {normalize_answer(answer.answer): answer.text_score for answer in asked}
    assert sum(once.values()) == pytest.approx(1.0) and "" in once
    if not align_to_words:
        for text, score in once.items():
            alike = [a.score for a in asked if normalize_answer(a.answer) == text]
            assert score == pytest.approx(sum(alike)) and len(alike) >= 1


def test_a_text_that_stands_twice(qa):
    qa = QuestionAnswerer(qa.model, qa.tokenizer)  # uncalibrated
    question, context = "Who lit it?", "Ada lit it. So says Ada."
    answers = qa(question, context, 99, 3, text_score=True)
    first, second = (a for a in answers if a.answer == "Ada")
    assert first.text_score == pytest.approx(first.score + second.score)
    assert first.text_score == second.text_score
    (one,) = qa.answer_many([(question, context)], 3, text_score=True)
    assert one.text_score == pytest.approx(answers[0].text_score, rel=1e-4)
    assert qa(question, context).text_score is None


def test_the_best_answer_alone_and_as_a_list(qa):
    one = qa(question="Who lit the lamp?", context="Ada lit the lamp.")
    (first, second) = qa("Who lit the lamp?", "Ada lit the lamp.", top_k=2)
    assert isinstance(one, minibert.Answer) and one == first and second.score <= first.score


def test_batching_does_not_change_an_answer(qa, field_notes):
    """1e-4: products of another shape sum in another order."""
    together = list(qa.answer_examples(field_notes, minibert.AnswerSettings(3)))
    assert len(together) == len(field_notes)
    for example, answers in zip(field_notes[::9], together[::9], strict=True):
        for a, b in zip(qa(example.question, example.context, 3), answers, strict=True):
            assert (a.start, a.end) == (b.start, b.end)
            assert a.start_logit == pytest.approx(b.start_logit, abs=1e-4)
            assert a.score == pytest.approx(b.score, rel=1e-3)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_full_windows_are_read_without_a_mask(tiny, monkeypatch, attention):
    """As with one that hides nothing: to 1e-5, since sdpa has another kernel for them."""
    qa = QuestionAnswerer.from_pretrained(tiny, attention, precision="fp32", max_length=32)
    context = "Ada lit the lamp, and the keeper slept. " * 40
    forward, unmasked = qa.model.forward, []

    def watch(ids, mask, segments, **asked):
        unmasked.append(mask is None)
        return forward(ids, torch.ones_like(ids) if mask is None else mask, segments, **asked)

    without = qa("Who lit it?", context, top_k=20)
    monkeypatch.setattr(qa.model, "forward", watch)
    for a, b in zip(without, qa("Who lit it?", context, top_k=20), strict=True):
        assert (a.start, a.end) == (b.start, b.end)
        assert a.score == pytest.approx(b.score, abs=1e-5)
    assert any(unmasked) and not all(unmasked)  # the last window is shorter


def test_a_model_stays_in_its_mode(tiny):
    """A model that is being trained is read without dropout, and its training continues."""
    model = minibert.BertForQuestionAnswering.from_pretrained(tiny).train()
    model.bert.embeddings.eval()  # frozen, as some users do
    modes = [part.training for part in model.modules()]
    qa = QuestionAnswerer(model, minibert.Tokenizer.from_pretrained(tiny))
    answers = [qa("Who?", "Ada lit it.") for _ in range(2)]
    assert answers[0] == answers[1]
    assert [part.training for part in model.modules()] == modes and any(modes)
    with pytest.raises(InputError):
        list(qa.answer_many(iter([("Who?", "Ada lit it."), ("", "")])))
    assert [part.training for part in model.modules()] == modes


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_saved_weights_are_the_source_s(tiny, tmp_path, precision):
    """Loading in bfloat16 rounds them. A copy of the source is written as long as it is one."""
    qa = QuestionAnswerer.from_pretrained(tiny, precision=precision)
    qa.save_pretrained(tmp_path / "same")
    wanted, saved = (
        minibert.BertForQuestionAnswering.from_pretrained(folder).state_dict()
        for folder in (tiny, tmp_path / "same")
    )
    assert all(torch.equal(saved[name], tensor) for name, tensor in wanted.items())


def test_rounded_weights_are_saved_with_a_warning(tiny, tmp_path):
    """If the weights have changed, or the source is gone."""
    source = shutil.copytree(tiny, tmp_path / "source")
    qa, other = (QuestionAnswerer.from_pretrained(source, precision="bf16") for _ in range(2))
    with torch.no_grad():
        qa.model.head.S.add_(1)
    with pytest.warns(UserWarning, match=r"rounded to torch\.bfloat16.*precision='fp32'"):
        qa.save_pretrained(tmp_path / "changed")
    saved = minibert.BertForQuestionAnswering.from_pretrained(tmp_path / "changed")
    assert torch.equal(saved.head.S, qa.model.head.S.float())
    shutil.rmtree(source)
    with pytest.warns(UserWarning, match="rounded"):
        other.save_pretrained(tmp_path / "orphan")


def test_max_answer_len_counts_tokens(qa):
    context = "one two three four five six seven eight nine ten"
    pieces = qa.tokenizer.encode(context).offsets.tolist()
    lengths = [
        sum(answer.start <= a and b <= answer.end for a, b in pieces)
        for answer in qa("how many?", context, top_k=999, max_answer_len=2)
    ]
    assert set(lengths) == {1, 2}


def test_bf16_runs_and_is_close(tiny):
    fp32, bf16 = (QuestionAnswerer.from_pretrained(tiny, precision=p) for p in ("fp32", "bf16"))
    a, b = (qa("Who lit the lamp?", "Ada lit the lamp.", 3)[0] for qa in (fp32, bf16))
    assert b.start_logit == pytest.approx(a.start_logit, abs=0.5) and a.start_logit != b.start_logit


@pytest.mark.parametrize(
    ("question", "context", "named"),
    [
        ("", "a tower", "no words in the question ''"),
        (" ", "a tower", "no words in the question ' '"),
        ("Who?", "", "no words in the context ''"),
        (None, "a tower", "the question is a NoneType"),
        ("Who?", b"a tower", "the context is a bytes"),
    ],
)
def test_bad_input_is_named(qa, question, context, named):
    with pytest.raises(minibert.InputError, match=named):
        qa(question, context)


def test_a_long_question_is_cut_and_the_rest_named(qa):
    question = "who " * 63 + "lit a lamp"
    with pytest.warns(UserWarning, match="max_question_len=64; this part is not read: '.*a lamp'"):
        cut = qa(question, "Ada lit the lamp.")
    place = qa.tokenizer.encode(question).offsets[64, 0]
    assert cut == qa(question[:place], "Ada lit the lamp.")
    whole = QuestionAnswerer(qa.model, qa.tokenizer, max_question_len=None)
    assert whole(question, "Ada lit the lamp.") != cut
    short = QuestionAnswerer(qa.model, qa.tokenizer, max_length=70, doc_stride=3)
    with pytest.raises(minibert.InputError, match="room for 3 tokens of context, but doc_stride=3"):
        short(question, "Ada lit the lamp.")


def test_top_k_is_named(qa):
    with pytest.raises(minibert.InputError, match="top_k=0"):
        qa("Who?", "a tower", top_k=0)


def test_a_tokenizer_that_does_not_fit(qa, minilm, tiny):
    with pytest.raises(minibert.PretrainedError, match="30522 tokens, but the model"):
        QuestionAnswerer(qa.model, minibert.Tokenizer.from_pretrained(minilm))
    with pytest.raises(minibert.InputError, match="max_length=512, but this model has 384"):
        QuestionAnswerer.from_pretrained(tiny, max_length=512)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"precision": "fp16"}, "precision='fp16'"), ({"batch_size": 0}, "batch_size=0")],
)
def test_bad_settings_are_named(qa, arguments, named):
    with pytest.raises(minibert.InputError, match=named):
        QuestionAnswerer(qa.model, qa.tokenizer, **arguments)
    with pytest.raises(minibert.InputError, match="device='abacus'"):
        choose_device("abacus")


def test_weights_that_are_not_numbers_raise(tiny):
    qa = QuestionAnswerer.from_pretrained(tiny)
    with torch.no_grad():
        qa.model.head.S[3] = float("nan")
    with pytest.raises(minibert.InputError, match="not finite"):
        qa("Who?", "a tower")


def test_the_configuration_is_read_once_before_the_model(tiny, monkeypatch):
    """The calibration and the shapes that are measured come from one reading."""
    read = []
    config = reader.read_config(tiny)
    monkeypatch.setattr(reader, "read_config", lambda *given: read.append(given) or config)
    monkeypatch.setattr(reader, "choose_precision", lambda *given: "auto")
    monkeypatch.setattr(reader, "fastest_precision", lambda *given: "fp32")
    qa = QuestionAnswerer.from_pretrained(tiny, device="cpu")
    assert read == [(tiny, None)]
    assert (qa.reason, qa.source) == ("the fastest here", (tiny, None))
