"""Why this span: the explanation beside plain calls, plain loops, captum."""

import copy
import dataclasses
import itertools
import json
import math
import os
import random
from typing import Any

import numpy as np
import pytest
import torch

import minibert
from minibert.batches import collate
from minibert.explain.attribution import integrated_gradients, sentences
from minibert.explain.explanation import Explanation, integrate, left_out, occlude

QUESTION = "Who lit the lamp?"
CONTEXT = "At dusk the keeper, Ada, lit the lamp. By dawn it had burned a pint of oil."


@pytest.fixture(scope="module")
def qa(tiny):
    """A random model that reads the notes in windows of 64 tokens."""
    return minibert.QuestionAnswerer.from_pretrained(
        tiny, precision="fp32", attention="eager", max_length=64, doc_stride=20
    )


@pytest.fixture(scope="module")
def bundled():
    return minibert.QuestionAnswerer.from_pretrained(precision="fp32")


def answers_of(explanation: Explanation) -> list[minibert.Answer]:
    names = ("answer", "score", "start", "end", "start_logit", "end_logit")
    return [minibert.Answer(*(getattr(a, name) for name in names)) for a in explanation.answers]


def light(qa: Any, *arguments: Any, **options: Any) -> Explanation:
    return qa.explain(*arguments, attribution=False, **options)


@pytest.mark.parametrize("null", [False, True])
def test_it_explains_what_is_answered(qa, field_notes, null):
    for example in field_notes[:5]:
        asked = (example.question, example.context)
        found = light(qa, *asked, top_k=7, max_answer_len=9, no_answer=null)
        (wanted,) = qa.answer_examples(
            [minibert.Example("", *asked)], minibert.AnswerSettings(7, 9, null)
        )
        # the best 7; and "no answer", if it is allowed but not among them
        assert answers_of(found) == wanted[:7] + [a for a in wanted[7:] if not a.answer]
        assert "" not in [a.answer for a in wanted] or null
        for a in found.answers:
            window = found.windows[a.window]
            assert window.start_logits[a.token_start] == a.start_logit
            assert window.end_logits[a.token_end] == a.end_logit
            if a.answer:
                assert window.starts[a.token_start] == a.start
                assert window.ends[a.token_end] == a.end


@pytest.mark.parametrize("null", [False, True])
def test_a_calibrated_model_is_explained_as_it_answers(qa, null):
    """Its temperature and its threshold count in every probability."""
    calibration = minibert.spans.Calibration(temperature=1.7, null_threshold=-3.0)
    reader = minibert.QuestionAnswerer(qa.model, qa.tokenizer, calibration=calibration)
    options = {"no_answer": null}
    found = reader.explain(QUESTION, CONTEXT, top_k=5, **options)
    assert answers_of(found)[:5] == reader(QUESTION, CONTEXT, top_k=5, **options)
    best = found.answers[0]
    assert best.score != qa(QUESTION, CONTEXT, **options).score
    assert (found.temperature, found.null_threshold) == (1.7, -3.0)
    assert math.isclose(found.layers[-1].final_score, best.score, rel_tol=1e-5)
    assert math.isclose(found.attribution.gradients.log_p, math.log(best.score), abs_tol=1e-4)


def test_the_default_precision_is_explained_as_it_answers():
    qa = minibert.QuestionAnswerer.from_pretrained()
    found = qa.explain(QUESTION, CONTEXT, top_k=5)
    assert answers_of(found) == qa(QUESTION, CONTEXT, top_k=5)
    assert found.attribution.gradients.gap < 0.01  # in float32, whatever the answer was read in


def test_full_windows_are_explained_as_they_answer():
    """To the last bit, though they are read without a mask."""
    qa = minibert.QuestionAnswerer.from_pretrained()
    context = CONTEXT * 90
    found = qa.explain(QUESTION, context, top_k=5, attribution=False)
    assert answers_of(found)[:5] == qa(QUESTION, context, top_k=5)
    assert len(found.windows) > qa.batch_size


def test_a_window_alone(qa, field_notes):
    """As if its part of the context were all there is; and what it shows around the answer."""
    lengths, same = set(), 0
    for example in field_notes[::15]:
        found = light(qa, example.question, example.context)
        best = found.answers[0]
        lengths.add(len(found.windows))
        for window in found.windows:
            inside = slice(window.context_start, window.context_end)
            start, end = window.starts[inside][0], window.ends[inside][-1]
            assert (window.left is not None) == (start <= best.start and best.end <= end)
            if qa.tokenizer.encode(example.context[start:end]).ids.tolist() != list(
                window.ids[inside]
            ):
                continue  # cut within a word
            alone = qa(example.question, example.context[start:end])
            same += 1
            assert window.alone.answer == alone.answer
            assert (window.alone.start, window.alone.end) == (
                start + alone.start,
                start + alone.end,
            )
            assert math.isclose(window.alone.score, alone.score, rel_tol=1e-4)
            if window.left is not None:
                assert (
                    window.ends[inside][window.left]
                    > best.start
                    >= window.starts[inside][window.left]
                )
                assert window.ends[inside][-1 - window.right] == best.end
    assert max(lengths) > 2 and same > 4


def test_the_decoders(qa, field_notes):
    """Each beside a loop of its own, in each window, and the rule that parts them."""
    seen = set()
    for example in field_notes[:60:4]:
        found = light(qa, example.question, example.context, max_answer_len=5)
        for window in found.windows:
            s, e = window.start_logits, window.end_logits
            argmax, beam, exact = window.decoders
            assert (argmax.token_start, argmax.token_end) == (s.index(max(s)), e.index(max(e)))
            inside = range(window.context_start, window.context_end)
            legal = [(s[i] + e[j], -i, -j) for i in inside for j in inside if i <= j < i + 5]
            score, i, j = max(legal)
            assert (exact.logit, exact.token_start, exact.token_end) == (score, -i, -j)
            best = sorted(range(len(s)), key=lambda k: -s[k])[:20]
            ends = sorted(range(len(s)), key=lambda k: -e[k])[:20]
            assert beam.logit == max(s[i] + e[j] for i in best for j in ends if i <= j)
            for pick in (argmax, beam, exact):
                i, j = pick.token_start, pick.token_end
                ordered, within = i <= j, {i, j} <= set(inside)
                same = (i, j) == (exact.token_start, exact.token_end)
                rule = (
                    "" if same else "order" if not ordered else "outside" if not within
                    else "length" if j - i >= 5 else pick.rule
                )  # fmt: skip
                assert pick.rule == rule and (rule == "" or rule in found.rules)
                seen.add(rule)
                if within and ordered:
                    text = example.context[window.starts[i] : window.ends[j]]
                    assert pick.text == text
    assert {"", "order", "outside", "length"} <= seen
    assert found.rules["length"] == "it is longer than 5 tokens"


def test_no_answer_as_a_decoder_s_choice(qa, monkeypatch):
    """The two [CLS] mean "no answer" if this is allowed. Otherwise they are outside the passage."""
    monkeypatch.setattr("minibert.explain.explanation.argmax_span", lambda s, e: (0, 0))
    for null, rule in ((True, "null"), (False, "outside")):
        found = light(qa, QUESTION, CONTEXT, no_answer=null)
        assert found.windows[0].decoders[0].rule == rule and rule in found.rules


def test_it_says_what_it_was_made_with(qa, bundled, tiny):
    made = light(qa, QUESTION, CONTEXT).made_with
    assert made["model"] == tiny.name and made["computes_with"] == qa.computes_with
    assert light(bundled, QUESTION, CONTEXT).made_with["model"] == "minilm-squad"
    reader = minibert.QuestionAnswerer(qa.model, qa.tokenizer)
    assert reader.name == "a model in memory"
    reader.source = "owner/model", "abc"
    assert reader.name == "owner/model@abc"


def test_the_beam_s_own_rule(qa, monkeypatch):
    """A beam too narrow for the best legal pair."""
    narrow = minibert.spans.beam_spans
    monkeypatch.setattr(
        "minibert.explain.explanation.beam_spans",
        lambda s, e: [x for x in narrow(s, e, 1000) if x[0] == x[1] == 30],
    )
    window = light(qa, QUESTION, CONTEXT * 2, top_k=1).windows[0]
    assert window.decoders[1].rule == "beam" and window.decoders[1].token_start == 30


def test_the_span_lens(qa, field_notes):
    """S and E by hand at every depth, and a loop over all spans: one window."""
    example = field_notes[3]
    context = example.context[:90]
    found = light(qa, example.question, context, max_answer_len=6)
    (feature,) = minibert.prepare_features(
        [minibert.Example("", example.question, context)], qa.tokenizer, 64, 20
    )
    batch = collate([feature], qa.tokenizer.pad_id)
    with torch.inference_mode():
        out = qa.model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
    head, offsets = qa.model.head, feature.context.offsets.tolist()
    assert len(found.layers) == len(out.hidden_states) == 4
    final = (found.answers[0].start, found.answers[0].end)
    for layer, states in zip(found.layers, out.hidden_states, strict=True):
        inside = states[0, feature.context_slice]
        with torch.inference_mode():
            s = (inside @ head.S + head.bias[0]).tolist()
            e = (inside @ head.E + head.bias[1]).tolist()
        odds = {
            (offsets[i][0], offsets[j][1]): math.exp(s[i] + e[j])
            for i, j in itertools.product(range(len(s)), repeat=2)
            if i <= j < i + 6
        }
        total = sum(odds.values())
        best = max(odds, key=odds.get)
        assert (layer.start, layer.end) == best and layer.answer == context[slice(*best)]
        assert math.isclose(layer.score, odds[best] / total, rel_tol=1e-4)
        assert math.isclose(layer.final_score, odds[final] / total, rel_tol=1e-4)
    stays = [(layer.start, layer.end) == final for layer in found.layers]
    assert all(stays[found.stays_from :]) and not any(
        stays[found.stays_from - 1 : found.stays_from]
    )


@pytest.mark.parametrize("null", [False, True])
def test_occlusion_is_a_loop_of_calls(qa, field_notes, null):
    """Words of the question, and sentences of the context, the answer's own among them."""
    gone = 0
    for example in field_notes[:3]:
        question, context = example.question, example.context[:300]
        found = light(qa, question, context, no_answer=null)
        best, sides = found.answers[0], set()
        rows = left_out(qa, found)
        examples = [minibert.Example("", r.question, r.context) for r in rows]
        windows = list(qa.windows_of(examples, {}))
        for o in occlude(qa, found, rows, windows, lambda count: None):
            sides.add(o.side)
            asked, read = question, context
            if o.side == "question":
                asked = question[: o.start] + question[o.end :].lstrip()
            else:
                read = context[: o.start] + context[o.end :].lstrip()
            cut = len(context) - len(read)
            every = qa(asked, read, top_k=10**6, no_answer=null)
            assert o.answer == every[0].answer
            assert math.isclose(o.score, every[0].score, rel_tol=1e-4)
            if best.answer and cut and best.start < o.start + cut and o.start < best.end:
                assert o.log_p is None
                gone += 1
                continue
            shift = cut if best.start > o.start else 0
            place = (best.start - shift, best.end - shift)
            (again,) = [a for a in every if (a.start, a.end) == place]
            assert again.answer == best.answer
            assert math.isclose(o.log_p, math.log(again.score), rel_tol=1e-4, abs_tol=1e-5)
        assert sides == {"question", "context"}
    assert gone


def test_sentences_cover_the_text(field_notes):
    for example in field_notes:
        parts = [example.context[a:b] for a, b in sentences(example.context)]
        assert "".join("".join(parts).split()) == "".join(example.context.split())


# --- integrated gradients


def test_attributions_of_a_linear_function_are_its_terms():
    weight, x = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
    shares = integrated_gradients(
        lambda p: (p * weight).flatten(1).sum(1), x, torch.zeros_like(x), steps=7, at_once=3
    )
    assert torch.allclose(shares, (weight * x).sum(-1), atol=1e-5)


def spans_by_loop(found: Explanation) -> dict[tuple[int, int], tuple[int, int, int]]:
    """Each legal span's characters -> window, start, end: of the window that shows most around."""
    best: dict[tuple[int, int], tuple[int, tuple[int, int, int]]] = {}
    for w, window in enumerate(found.windows):
        a, b = window.context_start, window.context_end
        for i in range(a, b):
            for j in range(i, min(b, i + found.max_answer_len)):
                place = (window.starts[i], window.ends[j])
                around = min(i - a, b - 1 - j)
                if place not in best or around > best[place][0]:
                    best[place] = (around, (w, i, j))
    return {place: span for place, (_, span) in best.items()}


@pytest.mark.parametrize("windows", [1, 3])
def test_integrated_gradients_equal_captum_s(qa, field_notes, windows):
    """captum's own walk along the line, and a loop over all spans."""
    captum = pytest.importorskip("captum.attr", reason="the reference: pip install captum")
    example = field_notes[5]
    context = example.context[: {1: 90, 3: 300}[windows]]
    found = qa.explain(example.question, context)
    assert len(found.windows) == windows
    features = minibert.prepare_features(
        [minibert.Example("", example.question, context)], qa.tokenizer, 64, 20
    )
    batch = collate(features, qa.tokenizer.pad_id)
    table = qa.model.bert.embeddings.word

    def forward(points: torch.Tensor) -> torch.Tensor:  # (S, W, T, H) -> (S,)
        values = []
        for vectors in points:
            hook = table.register_forward_hook(lambda m, i, o, vectors=vectors: vectors)
            out = qa.model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
            hook.remove()
            scores = out.start_logits[rows, starts] + out.end_logits[rows, ends]
            values.append(scores[answer] - scores.logsumexp(0))
        return torch.stack(values)

    places = spans_by_loop(found)
    rows, starts, ends = torch.tensor(list(places.values())).T
    answer = list(places).index((found.answers[0].start, found.answers[0].end))
    vectors = table(batch.input_ids).detach()
    special = torch.ones(batch.input_ids.shape, dtype=torch.bool)
    for row, window in zip(special, found.windows, strict=True):
        row[[k for k, start in enumerate(window.starts) if start >= 0]] = False
    pad = table.weight[qa.tokenizer.pad_id].detach()
    baseline = torch.where(special[..., None], vectors, pad)
    reference, gap = captum.IntegratedGradients(forward).attribute(
        vectors[None],
        baseline[None],
        n_steps=64,
        method="riemann_middle",
        internal_batch_size=1,
        return_convergence_delta=True,
    )
    reference = reference[0].sum(-1).detach()  # (W, T)
    words: dict[tuple[str, int], float] = {}
    for w, window in enumerate(found.windows):
        for k, start in enumerate(window.starts):
            if start >= 0:
                side = "context" if k >= window.context_start else "question"
                words[side, start] = words.get((side, start), 0.0) + reference[w, k].item()
    for side in ("question", "context"):
        ours = getattr(found.attribution.gradients, side)
        for (a, b), share in zip(getattr(found, f"{side}_words"), ours, strict=True):
            theirs = sum(v for (s, start), v in words.items() if s == side and a <= start < b)
            assert math.isclose(share, theirs, abs_tol=1e-4), (side, a)
    assert math.isclose(
        found.attribution.gradients.log_p, math.log(found.answers[0].score), abs_tol=1e-5
    )
    difference = found.attribution.gradients.log_p - found.attribution.gradients.baseline_log_p
    assert math.isclose(found.attribution.gradients.gap, abs(gap.item() / difference), abs_tol=1e-4)


def test_the_answer_s_own_word_adds_most(bundled):
    """Of the words: the comma that sets it off may add more."""
    found = bundled.explain(QUESTION, CONTEXT)
    shares = found.attribution.gradients.context
    words = [k for k, (a, b) in enumerate(found.context_words) if CONTEXT[a:b].isalnum()]
    a, b = found.context_words[max(words, key=shares.__getitem__)]
    assert CONTEXT[a:b] == found.answers[0].answer == "Ada"
    assert found.attribution.gradients.gap < 0.01
    total = sum(shares) + sum(found.attribution.gradients.question)
    assert math.isclose(
        total,
        found.attribution.gradients.log_p - found.attribution.gradients.baseline_log_p,
        rel_tol=0.01,
    )


def test_memory_of_one_batch_gives_the_same(qa, field_notes):
    """More windows than a batch are read twice; the attributions stay."""
    context = field_notes[5].context[:300]
    few = minibert.QuestionAnswerer(qa.model, qa.tokenizer, 64, 20, batch_size=1)
    asked = (QUESTION, context)
    whole, parts = (integrate(reader, light(reader, *asked), steps=8) for reader in (qa, few))
    assert len(light(few, *asked).windows) > 1
    assert np.allclose(whole.context, parts.context, atol=1e-5)
    assert np.allclose(whole.question, parts.question, atol=1e-5)


@pytest.mark.slow
def test_completeness_on_squad(bundled, squad):
    """What the attributions miss is below 1 % of the difference. (200 questions take a while.)"""
    count = int(os.environ.get("MINIBERT_ATTRIBUTED", 10))
    examples = random.Random(0).sample(minibert.load_squad(squad, "validation"), count)
    gaps = []
    for example in examples:
        found = light(bundled, example.question, example.context)
        gaps.append(integrate(bundled, found).gap)
    print(f"gap: median {np.median(gaps):.5%}, largest {max(gaps):.4%}")
    assert max(gaps) < 0.01


# --- what goes in, what comes out


def test_plain_data(qa, field_notes):
    found = qa.explain(QUESTION, CONTEXT)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["answers"][0]["score"] == found.answers[0].score
    assert data["windows"][0]["end_logits"] == list(found.windows[0].end_logits)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.question = "Why?"  # type: ignore[misc]

    def leaves(value: Any) -> Any:
        if isinstance(value, dict):
            return itertools.chain.from_iterable(map(leaves, value.values()))
        if isinstance(value, tuple | list):
            return itertools.chain.from_iterable(map(leaves, value))
        return [value]

    assert {type(leaf) for leaf in leaves(found.to_dict())} <= {int, float, str, bool, type(None)}


TEXTS = [
    ("Where?", "مرحبا بالعالم. the lamp של המגדל"),
    ("누구?", "에이다가 등불을 켰다"),
    ("Who?", "e\u0301toile a\u0300 l'E\u0301st 😀👩‍👩‍👧 <script>alert(1)</script> <!-- x -->"),
    ("<b>Who</b>?", "[CLS] [SEP] </script> Ada"),
    ("Who", "Ada"),
]


@pytest.mark.parametrize(("question", "context"), TEXTS)
def test_any_text(qa, question, context):
    found = qa.explain(question, context)
    assert answers_of(found)[:1] == [qa(question, context)]
    for a, b in found.context_words:
        assert 0 <= a < b <= len(context)
    assert len(found.attribution.gradients.question) == len(found.question_words)
    assert len(found.attribution.gradients.context) == len(found.context_words)


def test_no_answer_is_explained_too(qa, field_notes):
    """Where "no answer" is the best, it is what the rest is about."""
    feature = minibert.prepare_features([minibert.Example("", QUESTION, CONTEXT)], qa.tokenizer)[0]
    model = copy.deepcopy(qa.model)
    with torch.no_grad():
        ids, segments = torch.tensor([feature.input_ids, feature.token_type_ids])[:, None]
        states = model.bert(ids, None, segments).hidden_states[-1][0]  # (T, H)
    vectors = torch.randn(5000, states.shape[1])
    scores = vectors @ states.T  # of [CLS] beside the context's
    ahead = scores[:, 0] - scores[:, feature.context_slice].amax(1)
    vector = vectors[ahead.argmax()]
    assert ahead.max() > 0
    model.head.S.data, model.head.E.data = vector, vector.clone()
    reader = minibert.QuestionAnswerer(model, qa.tokenizer)
    found = reader.explain(QUESTION, CONTEXT, no_answer=True)
    assert reader(QUESTION, CONTEXT, no_answer=True).answer == ""
    best = found.answers[0]
    assert (best.answer, best.token_start, best.token_end) == ("", 0, 0)
    assert {window.left for window in found.windows} == {None}
    assert math.isclose(found.layers[-1].final_score, best.score, rel_tol=1e-5)
    assert math.isclose(math.exp(found.attribution.gradients.log_p), best.score, rel_tol=1e-4)


def test_progress_is_told_to_its_end(qa, field_notes):
    told: list[tuple[int, int]] = []
    qa.explain(
        QUESTION, field_notes[0].context, on_progress=lambda done, total: told.append((done, total))
    )
    assert told[-1][0] == told[-1][1] and all(done <= total for done, total in told)


def test_a_context_with_one_candidate(bundled):
    """Its probability is 1 with every vector, and so there is nothing to divide among the words."""
    gradients = bundled.explain("Who?", "Ada").attribution.gradients
    assert gradients.log_p == gradients.baseline_log_p == 0 and gradients.gap == 0


def test_a_question_that_is_cut(qa):
    reader = minibert.QuestionAnswerer(qa.model, qa.tokenizer, 64, 20, max_question_len=5)
    with pytest.warns(UserWarning, match="this part is not read:"):
        found = reader.explain("Who lit the lamp of the old tower at dusk?", CONTEXT)
    assert (
        found.attribution.gradients.question[-1] == 0.0
        and found.attribution.gradients.question[0] != 0.0
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((" ", "Ada"), "no words in the q"), (("Who?", ""), "no words in the c"), ((1, "a"), "int")],
)
def test_what_goes_wrong(qa, arguments, named):
    with pytest.raises(minibert.MinibertError, match=named):
        qa.explain(*arguments)
    with pytest.raises(minibert.MinibertError, match="expected 1 or more"):
        qa.explain("Who?", "Ada", top_k=0)
