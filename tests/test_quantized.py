"""Reading in 8-bit integers, compared with float32 and with exact sums of the same integers."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import minibert
from minibert import BertConfig, BertForQuestionAnswering, QuestionAnswerer
from minibert.errors import InputError, PretrainedError
from minibert.fast import probe, quantized
from minibert.fast.processor import choose_precision
from minibert.fast.quantized import (
    FixedFeedForward,
    FixedLinear,
    QuantizedLayer,
    QuantizedLinear,
    largest_weight,
    quantize,
)
from minibert.fast.ranges import Range, measured_ranges, ranges_to_json, stored_ranges
from minibert.model import FeedForward


def kernels() -> bool:
    try:
        return choose_precision("int8", torch.device("cpu")) == "int8"
    except InputError:
        return False


pytestmark = pytest.mark.skipif(not kernels(), reason="no kernels for 8-bit integers here")

CONFIG = BertConfig(
    vocab_size=100, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=256, max_position_embeddings=64, initializer_range=0.2,
)  # fmt: skip
PAIR = ("Who lit the lamp?", "At dusk the keeper, Ada, lit the lamp.")


def by_hand(x, weight, bias, zero, least):
    """The same rounding, with sums in float64."""
    below = -x.amin(-1) if least is None else torch.tensor(-least)
    step = torch.maximum(x.amax(-1) / (255 - zero), below / zero)[:, None]
    integers = (x / step).round().double()
    assert integers.min() >= -zero and integers.max() <= 255 - zero
    scale = weight.abs().amax(1) / largest_weight()
    return (integers @ (weight / scale[:, None]).round().double().T) * scale * step + bias


@torch.inference_mode()
@pytest.mark.parametrize(("zero", "least"), [(128, None), (32, None), (32, -0.17)])
def test_a_map_in_integers_adds_up_exactly(zero, least, monkeypatch):
    """Except for float32's own rounding: it moves one number in thousands to the next step.

    No output of GELU is below -0.17, for any argument.
    """
    torch.manual_seed(0)
    maps = [nn.Linear(64, 96), nn.Linear(64, 32)]
    x = nn.functional.gelu(3 * torch.randn(70, 64)) if zero == 32 else torch.randn(70, 64)
    weight, bias = torch.cat([m.weight for m in maps]), torch.cat([m.bias for m in maps])
    if least is not None:
        x[0] = nn.functional.gelu(torch.linspace(-4, 0.1, 64))  # this row's step comes from `least`
    packed = QuantizedLinear(*maps, zero=zero, least=least)
    mapped = packed(x)
    near = by_hand(x, weight, bias, zero, least).float()
    assert ((mapped - near).abs() > 1e-5).float().mean() < 0.01
    exact = nn.functional.linear(x, weight, bias)
    assert 1e-4 < (mapped - exact).norm() / exact.norm() < 0.02
    monkeypatch.setattr(quantized, "BLOCK", 128 * 9)  # nine rows per thread in a block
    assert torch.equal(packed(x.view(7, 10, 64)), mapped.view(7, 10, 128))


@torch.inference_mode()
def test_wide_channels_do_not_cost_the_others_their_steps():
    """Some channels of a LayerNorm are wide: its gain is large there, and the weights are small."""
    torch.manual_seed(0)
    one, norm, x = nn.Linear(64, 96), nn.LayerNorm(64), torch.randn(50, 64)
    norm.weight[:3], one.weight[:, :3] = 30.0, one.weight[:, :3] / 30
    x = norm(x)
    exact = one(x)
    loss = [(QuantizedLinear(one, norm=n)(x) - exact).norm() / exact.norm() for n in (norm, None)]
    assert loss[0] < 0.5 * loss[1]


@torch.inference_mode()
def test_numbers_of_every_size_and_none_at_all():
    one = nn.Linear(64, 96)
    packed = QuantizedLinear(one)
    x = torch.randn(8, 64) * torch.logspace(-9, 9, 8)[:, None]
    x[3] = 0
    loss = (packed(x) - one(x)).norm(dim=1) / one(x).norm(dim=1)
    assert loss.max() < 0.02
    for hostile in (float("nan"), float("inf")):
        x[5, 7] = hostile
        assert not packed(x)[5].isfinite().any() and packed(x)[:5].isfinite().all()
    assert QuantizedLinear(nn.Linear(64, 96), norm=nn.LayerNorm(64))(x[:0]).shape == (0, 96)


@torch.inference_mode()
def test_a_fixed_range_adds_up_exactly():
    """Numbers outside of the range are cut off; a wide channel has a range of its own."""
    torch.manual_seed(0)
    one, x = nn.Linear(64, 96), torch.randn(70, 64).clamp(-2, 2)
    x[:, 5] *= 10
    fixed = FixedLinear(one, range=Range(2.0, ((5, 20.0),)))
    width = torch.ones(64)
    width[5] = 10
    integers = (x / width / (2 / 127)).round().double()
    scale = (one.weight * width).abs().amax(1) / largest_weight()
    weight = (one.weight * width / scale[:, None]).round().double()
    near = ((integers @ weight.T) * scale * (2 / 127) + one.bias).float()
    assert ((fixed(x) - near).abs() > 1e-5).float().mean() < 0.01
    assert 1e-4 < (fixed(x) - one(x)).norm() / one(x).norm() < 0.02
    assert torch.equal(fixed(x * 1e9), fixed(x.sign() * 1e9))
    assert torch.equal(fixed(x.view(7, 10, 64)), fixed(x).view(7, 10, 96))


@torch.inference_mode()
def test_a_fixed_feed_forward_part_is_near_the_exact_one():
    """Also for a token that makes one number between the products ten times as large as others."""
    torch.manual_seed(0)
    whole, norm, x = FeedForward(CONFIG), nn.LayerNorm(64), torch.randn(50, 64)
    whole.expand.weight[7] = 0
    whole.expand.weight[7, 3] = 5
    x = norm(x)
    x[0] = 0
    x[0, 3] = 8
    exact = whole(x) + x
    between = nn.functional.gelu(whole.expand(x)).amax(0)
    limit = float(between[between < 20].max())
    expand, contract = Range(3.0, ((3, 8.0),)), Range(limit, ((7, 40.0),))
    fixed = FixedFeedForward(whole, norm, expand, contract)(x)
    loss = (fixed - exact).norm(dim=1) / exact.norm(dim=1)
    assert 1e-4 < loss.max() < 0.03


def ranges_for(plain, ids):
    with measured_ranges(plain) as ranges:
        plain(ids)
    return ranges


@torch.inference_mode()
@pytest.mark.parametrize("fixed", [False, True], ids=["by token", "fixed"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_in_integers_is_near_the_plain_one(attention, fixed):
    torch.manual_seed(0)
    plain = BertForQuestionAnswering(CONFIG, attention).eval()
    whole = copy.deepcopy(plain)
    ids = torch.randint(0, 100, (8, 50))
    quantize(whole, ranges_for(plain, ids) if fixed else None)
    mask = (torch.arange(50) < torch.randint(20, 51, (8, 1))).long()
    exact = plain(ids, mask).start_logits[mask == 1]
    packed, padded = (
        whole(ids, mask, output_hidden_states=states).start_logits[mask == 1]
        for states in (False, True)
    )
    for logits in (packed, padded):
        assert 1e-3 < (logits - exact).norm() / exact.norm() < 0.1
    assert list(whole.state_dict()) == list(plain.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), plain.parameters(), strict=True)
    )


@torch.inference_mode()
def test_an_answer_does_not_depend_on_its_batch():
    """Each token has its own scale. The other texts of the batch change only the last bits, and
    rarely these bits move a number to the next step."""
    qa = QuestionAnswerer.from_pretrained(precision="int8")
    alone = qa(*PAIR)
    together = list(qa.answer_many([PAIR, ("How long?", "It took weeks. " * 60), ("Why?", "Ill.")]))
    assert together[0].answer == alone.answer
    assert together[0].score == pytest.approx(alone.score, abs=2e-3)


def test_the_reader_in_integers(tiny, tmp_path):
    """It answers, says what it computes with, can be copied, saved and loaded again."""
    qa = QuestionAnswerer.from_pretrained(tiny, precision="int8")
    assert all(isinstance(layer, QuantizedLayer) for layer in qa.model.bert.layers)
    assert qa.computes_with == "cpu, int8, sdpa attention"
    assert not any(weight.requires_grad for weight in qa.model.parameters())
    answer = qa(*PAIR)
    for copied in (copy.deepcopy(qa), pickle.loads(pickle.dumps(qa))):
        assert copied(*PAIR) == answer
    qa.save_pretrained(tmp_path / "saved")
    for source in (tiny, tmp_path / "saved"):
        assert QuestionAnswerer.from_pretrained(source, precision="int8")(*PAIR) == answer
    exact = QuestionAnswerer.from_pretrained(tiny, precision="fp32")(*PAIR)
    assert answer != exact and answer.start_logit == pytest.approx(exact.start_logit, abs=0.5)


def test_other_weights_are_computed_with_once_they_are_loaded():
    first, second = (BertForQuestionAnswering(CONFIG).eval() for _ in range(2))
    quantize(first)
    first.load_state_dict(second.state_dict())
    quantize(second)
    with torch.inference_mode():
        a, b = (model(torch.arange(9)[None]).start_logits for model in (first, second))
    assert torch.equal(a, b)


def test_the_ranges_of_the_bundled_model_are_used_until_its_weights_change():
    """Other weights have other ranges, so then each token gets its own scale."""
    qa = QuestionAnswerer.from_pretrained(precision="int8")
    copied = copy.deepcopy(qa)
    for reader in (qa, copied, pickle.loads(pickle.dumps(qa))):
        assert all(isinstance(layer.merge, FixedLinear) for layer in reader.model.bert.layers)
    answer = qa(*PAIR)
    assert copied(*PAIR) == answer
    weights = {name: 2 * tensor for name, tensor in copied.model.state_dict().items()}
    copied.model.load_state_dict(weights)
    copied(*PAIR)
    assert all(isinstance(layer.merge, QuantizedLinear) for layer in copied.model.bert.layers)
    assert qa(*PAIR) == answer


def test_ranges_are_stored_and_read(tiny, tmp_path):
    """Each map of each layer has a limit and its widest channels."""
    plain = BertForQuestionAnswering.from_pretrained(tiny)
    ranges = ranges_for(plain, torch.randint(5, 100, (3, 20)))
    QuestionAnswerer.from_pretrained(tiny, precision="fp32").save_pretrained(tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    config = json.loads(path.read_text("utf-8"))

    def answer(stored):
        path.write_text(json.dumps(config | {"minibert": {"ranges": stored}}), "utf-8")
        return QuestionAnswerer.from_pretrained(tmp_path / "copy", precision="int8")(*PAIR)

    written = ranges_to_json(ranges)
    by_token = QuestionAnswerer.from_pretrained(tiny, precision="int8")(*PAIR)
    assert answer(written) != by_token
    assert answer(written).start_logit == pytest.approx(by_token.start_logit, abs=0.5)
    assert stored_ranges(json.loads(path.read_text("utf-8"))) == ranges
    zero = [{name: [0.0] for name in written[0]}] * len(written)
    for bad in ([], written[1:], {}, [{}] * 9, zero):
        with pytest.raises(PretrainedError, match=r"copy: .*ranges"):
            answer(bad)


def test_an_answer_in_integers_is_explained():
    """The gradients come from the float32 weights, which the model still has."""
    qa = QuestionAnswerer.from_pretrained(precision="int8")
    explanation = qa.explain(*PAIR, top_k=3)
    assert [(a.answer, a.score) for a in explanation.answers] == [
        (a.answer, pytest.approx(a.score, abs=1e-6)) for a in qa(*PAIR, top_k=3)
    ]
    assert explanation.attribution.gradients.gap < 0.01


def test_a_model_loaded_in_int8_stays_in_int8(tiny):
    qa = QuestionAnswerer.from_pretrained(tiny, precision="int8")
    assert qa.precision == QuestionAnswerer(qa.model, qa.tokenizer).precision == "int8"


def test_it_is_no_candidate_if_it_costs_too_much(monkeypatch):
    assert "int8" in probe.candidates() and "int8" not in probe.candidates(training=True)
    monkeypatch.setattr(probe, "COST", dict.fromkeys(probe.COST, 0.2))
    assert "int8" not in probe.candidates()


def test_where_there_is_no_reading_in_integers(tiny, monkeypatch):
    plain = QuestionAnswerer.from_pretrained(tiny, precision="fp32")
    with pytest.raises(InputError, match="only from_pretrained can load such a model"):
        QuestionAnswerer(plain.model, plain.tokenizer, precision="int8")
    with pytest.raises(InputError, match="it cannot be trained"):
        minibert.TrainingConfig("x", "y", "z", precision="int8")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    with pytest.raises(InputError, match="x86 CPU with AVX2"):
        QuestionAnswerer.from_pretrained(tiny, precision="int8")
    with pytest.raises(InputError, match="x86 CPU with AVX2"):
        choose_precision("int8", torch.device("meta"))
