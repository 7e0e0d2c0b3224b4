"""The span head, the loss and saving, compared with transformers."""

import importlib

import pytest
import torch
from safetensors.torch import load_file
from test_model import HERE, random_batch

import minibert
from minibert.qa import BertForQuestionAnswering, span_loss


@pytest.fixture(scope="module")
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(6, 11) * 3, torch.randn(6, 11) * 3


def test_logits_bit_for_bit(transformers, tiny):
    ours = BertForQuestionAnswering.from_pretrained(tiny)
    theirs = transformers.BertForQuestionAnswering.from_pretrained(
        tiny, attn_implementation="eager"
    )
    ids, mask, segments = random_batch(ours.config, 4, 60)
    with torch.no_grad():
        a = ours(ids, mask, segments)
        b = theirs.eval()(input_ids=ids, attention_mask=mask, token_type_ids=segments)
    assert torch.equal(a.start_logits, b.start_logits)
    assert torch.equal(a.end_logits, b.end_logits)


def test_stored_logits(tiny):
    expected = load_file(HERE / "reference" / "tiny.safetensors")
    model = BertForQuestionAnswering.from_pretrained(tiny)
    with torch.no_grad():
        out = model(expected["input_ids"], expected["attention_mask"], expected["token_type_ids"])
    for name in ("start_logits", "end_logits"):
        torch.testing.assert_close(getattr(out, name), expected[name], rtol=0, atol=1e-5)


def test_logits_are_dot_products_with_S_and_E(tiny):
    model = BertForQuestionAnswering.from_pretrained(tiny)
    with torch.no_grad():
        out = model(torch.randint(100, (2, 8)))
    T = out.hidden_states[-1]
    start = (T * model.head.S).sum(-1) + model.head.bias[0]
    torch.testing.assert_close(out.start_logits, start, rtol=0, atol=1e-5)
    end = (T * model.head.E).sum(-1) + model.head.bias[1]
    torch.testing.assert_close(out.end_logits, end, rtol=0, atol=1e-5)


def test_the_last_hidden_state_alone(tiny):
    model = BertForQuestionAnswering.from_pretrained(tiny)
    ids = torch.randint(100, (2, 8))
    with torch.no_grad():
        every, last = model(ids), model(ids, output_hidden_states=False)
    assert len(every.hidden_states) == model.config.num_hidden_layers + 1
    (state,) = last.hidden_states
    assert torch.equal(state, every.hidden_states[-1])
    assert torch.equal(last.start_logits, every.start_logits)


def test_the_biases_cancel_in_the_softmax(tiny):
    model = BertForQuestionAnswering.from_pretrained(tiny)
    ids = torch.randint(100, (2, 8))
    with torch.no_grad():
        before = model(ids)
        model.head.bias += torch.tensor([3.0, -5.0])
        after = model(ids)
    assert not torch.allclose(before.start_logits, after.start_logits)
    for name in ("start_logits", "end_logits"):
        a, b = getattr(before, name).softmax(-1), getattr(after, name).softmax(-1)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_loss_equals_the_reference(transformers, tiny):
    """Some labels are beyond the window. Both ignore these."""
    ours = BertForQuestionAnswering.from_pretrained(tiny)
    theirs = transformers.BertForQuestionAnswering.from_pretrained(
        tiny, attn_implementation="eager"
    )
    ids, mask, segments = random_batch(ours.config, 5, 20)
    starts, ends = torch.tensor([0, 3, 19, 20, 7]), torch.tensor([0, 5, 19, 31, 25])
    with torch.no_grad():
        out = ours(ids, mask, segments)
        reference = theirs.eval()(
            input_ids=ids,
            attention_mask=mask,
            token_type_ids=segments,
            start_positions=starts,
            end_positions=ends,
        )
    loss = span_loss(out.start_logits, out.end_logits, starts, ends)
    torch.testing.assert_close(loss, reference.loss, rtol=1e-6, atol=0)  # the sum has another order


def test_the_edges_of_the_loss_and_the_reference_s(transformers, logits):
    """Both ignore a label past the window. The reference treats a negative label as the [CLS]. Here
    it marks an unlabelled window, and is ignored too."""
    start, end = logits  # (6, 11)
    theirs = importlib.import_module("transformers.loss.loss_utils").ForQuestionAnsweringLoss

    def both(positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.tensor(positions)
        return span_loss(start, end, labels, labels), theirs(start, end, labels.clone(), labels)

    last, past, negative, first = ([3, 4, k, 6, 7, 8] for k in (10, 11, -1, 0))
    for positions in (last, past, first):
        torch.testing.assert_close(*both(positions))
    ours, reference = both(negative)
    torch.testing.assert_close(reference, both(first)[0])
    torch.testing.assert_close(ours, both(past)[0])
    assert not torch.isclose(ours, reference)


def test_loss_is_the_mean_negative_log_likelihood(logits):
    start, end = logits
    starts, ends = torch.arange(6), torch.arange(6) + 2
    terms = [
        -logits[k].softmax(-1)[positions[k]].log()
        for logits, positions in ((start, starts), (end, ends))
        for k in range(6)
    ]
    loss = span_loss(start, end, starts, ends)
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_padding_takes_no_probability_in_the_masked_loss(logits):
    start, end = logits
    mask = torch.ones(6, 11)
    mask[:, 8:] = 0
    positions = torch.arange(6)
    masked = span_loss(start, end, positions, positions, mask)
    short = span_loss(start[:, :8], end[:, :8], positions, positions)
    torch.testing.assert_close(masked, short)
    torch.testing.assert_close(
        span_loss(start, end, positions, positions, torch.ones(6, 11)),
        span_loss(start, end, positions, positions),
    )


@pytest.mark.parametrize("outside", [-100, -1, 11, 500])
def test_labels_outside_the_window_are_ignored(logits, outside):
    start, end = logits
    positions = torch.tensor([1, outside, 4, outside, 2, 9])
    kept = torch.tensor([0, 2, 4, 5])
    loss = span_loss(start, end, positions, positions)
    torch.testing.assert_close(
        loss, span_loss(start[kept], end[kept], positions[kept], positions[kept])
    )
    nothing = torch.full((6,), outside)
    start = start.clone().requires_grad_()
    loss = span_loss(start, end, nothing, nothing)
    loss.backward()
    assert loss == 0 and start.grad is not None and (start.grad == 0).all()


def test_loss_is_float32_whatever_the_model_runs_in(logits):
    start, end = (side.to(torch.bfloat16) for side in logits)
    positions = torch.arange(6)
    loss = span_loss(start, end, positions, positions)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, span_loss(start.float(), end.float(), positions, positions))


def test_logits_are_float32_under_autocast(tiny):
    """bfloat16 would round a logit of 8 to the nearest 1/16, so answers would tie."""
    model = BertForQuestionAnswering.from_pretrained(tiny)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = model(torch.randint(100, (2, 8)))
    assert out.start_logits.dtype == torch.float32
    rounded = out.start_logits.to(torch.bfloat16).float()
    assert not torch.equal(out.start_logits, rounded)


def test_whole_models_in_other_precisions(tiny):
    ids = torch.randint(100, (2, 8))
    for dtype, logits in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        model = BertForQuestionAnswering.from_pretrained(tiny).to(dtype)
        with torch.no_grad():
            assert model(ids).start_logits.dtype == logits


def test_a_saved_model_loads_in_transformers(transformers, minilm, tmp_path):
    """MiniLM with a new head: transformers finds every file and weight, and computes the same."""
    ours = BertForQuestionAnswering.from_pretrained(minilm, new_head=True)
    ours.save_pretrained(tmp_path)
    minibert.Tokenizer.from_pretrained(minilm).save_pretrained(tmp_path)
    theirs, info = transformers.BertForQuestionAnswering.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer(
        "Who lit the lamp?", "Müller lit it; the naïve clerk didn't.", return_tensors="pt"
    )
    with torch.no_grad():
        a = ours(inputs.input_ids, inputs.attention_mask, inputs.token_type_ids)
        b = theirs.eval()(**inputs)
        again = BertForQuestionAnswering.from_pretrained(tmp_path)(
            inputs.input_ids, inputs.attention_mask, inputs.token_type_ids
        )
    for name in ("start_logits", "end_logits"):
        assert torch.equal(getattr(a, name), getattr(b, name))
        assert torch.equal(getattr(a, name), getattr(again, name))
