"""Windows and labels against the reference's tokenizer and a slow, obvious labelling."""

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import minibert
from minibert.batches import collate, length_batches, split_batch, token_batches
from minibert.features import data_report, window_bounds


def reference_windows(
    tokenizer: Any, examples: list[minibert.Example], max_length: int, doc_stride: int
) -> Any:
    return tokenizer(
        [e.question for e in examples],
        [e.context for e in examples],
        truncation="only_second",
        max_length=max_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )


def reference_label(encoding: Any, example: minibert.Example) -> tuple[int, int]:
    """The labels of `transformers`' example scripts, its slip at the window's end included: where
    no token starts after the answer's start, the search for one runs on to the final [SEP].

    The scripts look at one answer of a question. Here it is the first that the window contains.
    """
    offsets = encoding.offsets
    context = [k for k, segment in enumerate(encoding.sequence_ids) if segment == 1]
    for answer in example.answers:
        first, last = offsets[context[0]][0], offsets[context[-1]][1]
        if first > answer.char_start or last < answer.char_end:
            continue
        after = (k for k in range(context[0], len(offsets)) if offsets[k][0] > answer.char_start)
        before = (k for k in range(context[-1], -1, -1) if offsets[k][1] < answer.char_end)
        return next(after, len(offsets)) - 1, next(before) + 1
    return 0, 0


def differences(
    features: list[minibert.Feature], examples: list[minibert.Example], reference: Any
) -> list[int]:
    """Indices of windows whose labels differ; ids and segments must not."""
    assert len(features) == len(reference["input_ids"])
    wrong = []
    for k, feature in enumerate(features):
        example = examples[reference["overflow_to_sample_mapping"][k]]
        assert feature.example_id == example.id
        assert feature.input_ids == reference["input_ids"][k]
        assert feature.token_type_ids == reference["token_type_ids"][k]
        label = (feature.start_position, feature.end_position)
        if label != reference_label(reference.encodings[k], example):
            wrong.append(k)
    return wrong


def text_of_label(feature: minibert.Feature, context: str) -> str:
    shift = feature.token_start - len(feature.prefix)
    offsets = feature.context.offsets
    return context[
        offsets[feature.start_position + shift, 0] : offsets[feature.end_position + shift, 1]
    ]


@pytest.mark.parametrize(("max_length", "doc_stride"), [(384, 128), (128, 40), (64, 1), (64, 0)])
def test_windows_and_labels_equal_the_reference(
    transformers, minilm, field_notes, max_length, doc_stride
):
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)
    ours = minibert.Tokenizer.from_pretrained(minilm)
    features = minibert.prepare_train_features(field_notes, ours, max_length, doc_stride)
    reference = reference_windows(theirs, field_notes, max_length, doc_stride)
    wrong = differences(features, field_notes, reference)
    for k in wrong:  # only the reference's slip at the end of a window
        assert features[k].start_position == len(features[k]) - 2
        assert (
            reference_label(
                reference.encodings[k], field_notes[reference["overflow_to_sample_mapping"][k]]
            )[0]
            == len(features[k]) - 1
        )
    assert len(wrong) < len(features) / 50
    assert any(f.window_index for f in features) and any(f.start_position for f in features)


@pytest.mark.slow
def test_all_of_squad_equals_the_reference(transformers, minilm, squad):
    """88,524 and 10,784 windows, 725 of them labelled [CLS]. Four labels differ from the
    reference's: two answers start in their window's last token, which the reference gets wrong; and
    two begin or end in a Hangul syllable, of which the reference leaves out all pieces but one."""
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)
    ours = minibert.Tokenizer.from_pretrained(minilm)
    examples = minibert.load_squad(squad, "train")
    features = minibert.prepare_train_features(examples, ours, max_length=384, doc_stride=128)
    assert len(features) == 88_524
    assert sum(feature.start_position == 0 for feature in features) == 725

    first, at_the_end, hangul = 0, set(), set()
    for begin in range(0, len(examples), 10_000):  # the reference's encodings take much memory
        part = examples[begin : begin + 10_000]
        reference = reference_windows(theirs, part, 384, 128)
        windows = features[first : first + len(reference["input_ids"])]
        for k in differences(windows, part, reference):
            feature, example = windows[k], part[reference["overflow_to_sample_mapping"][k]]
            start, end = reference_label(reference.encodings[k], example)
            answer = example.answers[0].text
            if start > end:  # the reference's label is no span at all
                last = len(feature) - 2  # the window's last token of context
                assert feature.start_position == feature.end_position == last
                assert answer in text_of_label(feature, example.context)
                at_the_end.add(answer)
            else:  # ours has all pieces of the same characters
                assert text_of_label(feature, example.context) == answer
                its = replace(feature, start_position=start, end_position=end)
                assert text_of_label(its, example.context) == answer
                assert feature.start_position <= start <= end <= feature.end_position
                hangul.add(answer)
        first += len(windows)
    assert first == len(features)
    assert at_the_end == {"Salzburg", "22nd"}
    assert hangul == {"기독교도, Kidok-kyo-do", "Kurisudo 그리스도"}

    dev = minibert.prepare_features(minibert.load_squad(squad, "validation"), ours)
    assert len(dev) == 10_784


def answer_at_the_edge(
    tokenizer: minibert.Tokenizer,
) -> tuple[minibert.Example, int, minibert.Feature]:
    """An example as those two, the window length that ends with its answer, and that window."""
    context = "Seven keepers lived on the rock, and the eldest of them was named Ada."
    answer = minibert.GoldAnswer("and", context.index("and the eldest"))
    example = minibert.Example("rock", "Which word joins the two?", context, (answer,))
    upto = len(tokenizer.encode(context[: answer.char_end]))
    max_length = upto + len(tokenizer.encode(example.question)) + 3
    feature = minibert.prepare_train_features([example], tokenizer, max_length, 2)[0]
    return example, max_length, feature


def test_an_answer_in_the_window_s_last_token(tiny):
    example, _, feature = answer_at_the_edge(minibert.Tokenizer.from_pretrained(tiny))
    assert feature.start_position == feature.end_position == len(feature) - 2
    assert text_of_label(feature, example.context) == "and"


def test_there_the_reference_labels_sep(transformers, minilm):
    ours = minibert.Tokenizer.from_pretrained(minilm)
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)
    example, max_length, feature = answer_at_the_edge(ours)
    reference = reference_windows(theirs, [example], max_length, 2)
    last = len(feature) - 2
    assert (feature.start_position, feature.end_position) == (last, last)
    assert reference_label(reference.encodings[0], example) == (last + 1, last)


def test_each_window_is_labelled_with_the_first_answer_that_it_holds(minilm):
    """A contract, as in CUAD: one question, and clauses in several places answer it."""
    clauses = ["Ada Lamp Ltd.", "the Keeper", "Northern Lights Board", "the Keeper"]
    context = " ".join(
        f"{'The parties agree to keep it lit. ' * 30}{clause}," for clause in clauses
    )
    starts = [context.index(clause) for clause in clauses[:3]]
    starts.append(context.rindex("the Keeper"))
    order = (2, 0, 3, 1)  # annotators need not follow the text
    gold = tuple(minibert.GoldAnswer(clauses[k], starts[k]) for k in order)
    example = minibert.Example("cuad", "Who are the parties?", context, gold)
    tokenizer = minibert.Tokenizer.from_pretrained(minilm)
    features = minibert.prepare_train_features([example], tokenizer, 128, 32)
    labels = []
    for feature in features:
        places = feature.context.offsets[feature.token_start : feature.token_end + 1]
        begin, end = places[0, 0], places[-1, 1]
        held = [a for a in gold if begin <= a.char_start and a.char_end <= end]
        labels.append(text_of_label(feature, context) if feature.start_position else "")
        assert labels[-1] == (held[0].text if held else "")
    assert set(labels) == {"", *clauses}  # in every place, and there are windows without an answer

    report = data_report([example, replace(example, answers=gold[:1] * 2)], tokenizer, 128, 32)
    assert report["several_answers"] == 1 and report["answers_without_a_window"] == 0


def test_no_answer_of_a_question_fits_into_a_window(tiny):
    """It counts as one question without a window, however many answers it has."""
    context = "Ada lit the lamp. " * 30
    gold = tuple(minibert.GoldAnswer(context[a : a + 300], a) for a in (0, 18))
    example = minibert.Example("k", "lamp", context, gold)
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    assert data_report([example], tokenizer, 32, 8)["answers_without_a_window"] == 1
    short = replace(example, answers=(*gold, minibert.GoldAnswer("Ada", 0)))
    assert data_report([short], tokenizer, 32, 8)["answers_without_a_window"] == 0


def test_every_answer_of_a_question_needs_a_place(tiny):
    """Otherwise a window that contains the answer would be trained as "no answer"."""
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    gold = (minibert.GoldAnswer("Ada", 0), minibert.GoldAnswer("lamp", -1))
    example = minibert.Example("k", "lamp", "Ada lit the lamp.", gold)
    with pytest.raises(minibert.DataError, match=r"k: the data do not say where .* 'lamp'"):
        minibert.prepare_train_features([example], tokenizer, 32, 8)


@given(pieces=st.integers(1, 300), room=st.integers(1, 60), overlap=st.integers(0, 59))
def test_windows_cover_the_context_and_overlap(pieces, room, overlap):
    overlap = min(overlap, room - 1)
    bounds = window_bounds(pieces, room, overlap)
    assert bounds[0][0] == 0 and bounds[-1][1] == pieces
    assert all(0 < end - first <= room for first, end in bounds)
    for (first, end), (next_first, next_end) in pairwise(bounds):
        assert end - next_first == overlap and first < next_first and end < next_end


def test_labels_point_at_the_answer(tiny, field_notes):
    """Where a window holds an answer, its labelled tokens cover it; somewhere one does."""
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    features = minibert.prepare_train_features(field_notes, tokenizer, 96, 32)
    examples = {e.id: e for e in field_notes}
    held = set()
    for feature in features:
        example = examples[feature.example_id]
        if feature.start_position == 0:
            assert feature.end_position == 0
            continue
        assert len(feature.prefix) <= feature.start_position <= feature.end_position
        labelled = text_of_label(feature, example.context)
        assert any(answer.text in labelled for answer in example.answers)
        held.add(example.id)
    assert held == {e.id for e in field_notes if e.answers}


def test_each_context_is_tokenized_once(tiny, field_notes, monkeypatch):
    seen: list[str] = []
    encode_batch = minibert.Tokenizer.encode_batch

    def counting(self: minibert.Tokenizer, texts: Any) -> Any:
        texts = list(texts)
        seen.extend(texts)
        return encode_batch(self, texts)

    monkeypatch.setattr(minibert.Tokenizer, "encode_batch", counting)
    minibert.prepare_features(field_notes, minibert.Tokenizer.from_pretrained(tiny))
    assert len(seen) == len(field_notes) + len({e.context for e in field_notes})


def test_duplicate_ids_keep_their_own_answers(tiny):
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    a = minibert.Example(
        "same", "Which?", "the lamp and the tower", (minibert.GoldAnswer("lamp", 4),)
    )
    b = replace(a, answers=(minibert.GoldAnswer("tower", 17),))
    texts = [
        text_of_label(f, a.context) for f in minibert.prepare_train_features([a, b], tokenizer, 64)
    ]
    assert texts == ["lamp", "tower"]


def test_doc_stride_left_out(tiny):
    """min(128, max_length // 2), an overlap in tokens."""
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    example = minibert.Example("k", "lamp", "light " * 500)
    for max_length, overlap in ((384, 128), (100, 50)):
        a, b, *_ = minibert.prepare_features([example], tokenizer, max_length)
        assert a.token_end - b.token_start + 1 == overlap


@pytest.mark.parametrize(
    ("question", "context", "arguments", "named"),
    [
        ("lamp " * 400, "a tower", {}, "k: max_length=384 leaves room for 0 tokens"),
        ("lamp " * 300, "a tower", {"doc_stride": 128}, "doc_stride=128 needs 129"),
        ("lamp", "a tower", {"doc_stride": 380}, "leaves room for 377 tokens"),
        ("lamp", "a tower", {"doc_stride": -1}, "doc_stride=-1"),
        ("", "a tower", {}, "k: no words in the question ''"),
        ("  \n", "a tower", {}, "no words in the question"),
        ("lamp", "", {}, "k: no words in the context ''"),
        ("lamp", "\u200b ", {}, "no words in the context"),
    ],
)
def test_bad_examples_are_named(tiny, question, context, arguments, named):
    example = minibert.Example("k", question, context)
    with pytest.raises(minibert.InputError, match=named):
        minibert.prepare_features([example], minibert.Tokenizer.from_pretrained(tiny), **arguments)


def test_collate_pads_to_the_longest(tiny, field_notes):
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    features = minibert.prepare_train_features(field_notes[:40], tokenizer, 96, 32)[::7]
    batch = collate(features, tokenizer.pad_id)
    assert batch.input_ids.shape == (len(features), max(map(len, features)))
    for row, feature in enumerate(features):
        n = len(feature)
        assert batch.input_ids[row].tolist()[:n] == feature.input_ids
        assert batch.token_type_ids[row].tolist()[:n] == feature.token_type_ids
        assert batch.attention_mask[row].tolist() == [1] * n + [0] * (batch.input_ids.shape[1] - n)
        assert (batch.input_ids[row, n:] == tokenizer.pad_id).all()
        assert batch.start_positions[row] == feature.start_position
        assert batch.end_positions[row] == feature.end_position
    unlabelled = minibert.prepare_features(field_notes[:2], tokenizer, 96)
    assert (collate(unlabelled, tokenizer.pad_id).start_positions == -1).all()


@pytest.mark.parametrize("multiple", [1, 16])
def test_batches_hold_no_more_tokens_than_asked(tiny, field_notes, multiple):
    """Padding counts; and every window is in one batch."""
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    features = minibert.prepare_features(field_notes, tokenizer, 96, 32)
    batches = token_batches(features, 500, multiple)
    assert sorted(k for batch in batches for k in batch) == list(range(len(features)))
    shapes = [collate([features[k] for k in b], 0, multiple).input_ids.shape for b in batches]
    assert all(b * t <= 500 and t % multiple == 0 for b, t in shapes)
    lengths = [[len(features[k]) for k in batch] for batch in batches]
    assert all(min(tokens) >= 0.7 * max(tokens) for tokens in lengths)
    assert len(set(shapes)) < len(shapes) or multiple == 1


def test_batches_without_padding_hold_the_tokens_of_their_windows(tiny, field_notes):
    """So all of them are nearly full, except the last ones and those that lengths end."""
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    features = minibert.prepare_features(field_notes, tokenizer, 96, 32)
    batches = token_batches(features, 500, 16, padded=False)
    assert sorted(k for batch in batches for k in batch) == list(range(len(features)))
    sizes = [sum(len(features[k]) for k in batch) for batch in batches]
    assert max(sizes) <= 500 and sorted(sizes)[len(sizes) // 2] > 500 - 96
    assert len(batches) < len(token_batches(features, 500, 16))


@pytest.mark.parametrize("seed", [0, 1])
def test_batches_hold_every_window_once_and_like_lengths(tiny, field_notes, seed):
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    features = minibert.prepare_features(field_notes, tokenizer, 96, 32)
    batches = length_batches(features, 8, seed)
    assert sorted(k for batch in batches for k in batch) == list(range(len(features)))
    assert all(len(batch) <= 8 for batch in batches)
    padded = sum(len(b) * max(len(features[k]) for k in b) for b in batches)
    assert padded < 1.05 * sum(map(len, features))
    assert batches == length_batches(features, 8, seed)
    assert batches != length_batches(features, 8, seed + 1)


def test_batches_are_made_of_windows_in_random_order(tiny, field_notes):
    """Shuffled from the order in which they stand, sorted by length within pools of 64 batches."""
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    features = minibert.prepare_features(field_notes, tokenizer, 96, 32)
    assert len(features) > 2 * 64  # several pools of batches of one
    generator = random.Random(5)
    order = list(range(len(features)))
    generator.shuffle(order)
    pools = [order[i : i + 64] for i in range(0, len(order), 64)]
    expected = [[k] for pool in pools for k in sorted(pool, key=lambda k: len(features[k]))]
    generator.shuffle(expected)
    assert length_batches(features, 1, seed=5) == expected


@pytest.mark.parametrize("multiple", [1, 8, 48])
def test_the_parts_of_a_batch_are_no_larger_than_asked(tiny, field_notes, multiple):
    """Padding counted; one window at least."""
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    features = minibert.prepare_features(field_notes[:20], tokenizer, 93, 32)
    longest = max(map(len, features))  # its multiples leave no room for padding
    for max_tokens in (1, 200, 2 * longest, 300, 3 * longest, 1000):
        parts = split_batch(features, max_tokens, multiple)
        assert [window for part in parts for window in part] == features
        for part in parts:
            batch = collate(part, 0, multiple).input_ids
            assert batch.numel() <= max_tokens or len(part) == 1
