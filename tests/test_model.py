"""The encoder compared with transformers: live and bit for bit, and with its stored outputs.

Tolerances: live, in float32 with eager attention, none, because the operations and their order are
the same. 1e-5 where the order of a sum may differ: for the stored outputs, because of another
processor, and for "sdpa". For "sdpa" it is relative to 1 or to the number itself, whichever is
larger (states reach 10, and both paths are 6e-6 from float64).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import minibert
from minibert.batches import collate
from minibert.config import BertConfig
from minibert.fast import dropout
from minibert.fast.dropout import Dropout
from minibert.model import Bert, EncoderLayer

HERE = Path(__file__).parent
PAIRS = [
    ("Where did the keeper sleep?", "The keeper slept in the room below the lamp."),
    ("How tall was the tower?", "It was 57 metres tall, built of granite. " * 9),
    ("Why?", "Tides."),
]


def batch(
    tokenizer: minibert.Tokenizer, length: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and segments of real text in both segments, with padding."""
    examples = [minibert.Example("", question, context) for question, context in PAIRS]
    features = minibert.prepare_features(examples, tokenizer, max_length=length or 128)
    ids, mask, segments, _, _ = collate(features, tokenizer.pad_id)
    return ids, mask, segments


def random_batch(config: BertConfig, rows: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(config.vocab_size, (rows, length))
    lengths = torch.randint(1, length + 1, (rows, 1))
    lengths[0] = length
    mask = (torch.arange(length) < lengths).long()
    segments = (torch.arange(length) >= lengths // 3).long()
    return ids * mask, mask, segments


def reference_output(model: nn.Module, ids: Tensor, mask: Tensor, segments: Tensor) -> Any:
    with torch.no_grad():
        return model(
            input_ids=ids,
            attention_mask=mask,
            token_type_ids=segments,
            output_hidden_states=True,
            output_attentions=True,
        )


def worst(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def reference(transformers, minilm):
    return transformers.BertModel.from_pretrained(minilm, attn_implementation="eager").eval()


def test_real_weights_bit_for_bit(reference, minilm):
    ours = Bert.from_pretrained(minilm)
    tokenizer = minibert.Tokenizer.from_pretrained(minilm)
    inputs = [batch(tokenizer)]
    inputs += [
        random_batch(ours.config, rows, n) for rows, n in [(1, 1), (2, 7), (3, 384), (1, 512)]
    ]
    for ids, mask, segments in inputs:
        wanted = reference_output(reference, ids, mask, segments)
        with torch.no_grad():
            out = ours(ids, mask, segments, output_attentions=True)
        assert len(out.hidden_states) == ours.config.num_hidden_layers + 1
        for a, b in zip(out.hidden_states, wanted.hidden_states, strict=True):
            assert torch.equal(a, b)
        for a, b in zip(out.attentions, wanted.attentions, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("layers", "width", "heads", "inner", "rows", "length"),
    [
        (1, 8, 1, 16, 3, 5),
        (4, 24, 2, 96, 2, 1),
        (2, 48, 3, 64, 1, 512),
        (3, 96, 12, 100, 4, 33),
        (5, 60, 5, 240, 2, 128),
        (12, 32, 2, 128, 2, 17),
        (12, 768, 12, 3072, 2, 40),  # BERT-base
    ],
)
def test_random_configurations_bit_for_bit(
    transformers, tmp_path, layers, width, heads, inner, rows, length
):
    config = transformers.BertConfig(
        vocab_size=211,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        initializer_range=0.1,
    )
    config._attn_implementation = "eager"
    theirs = transformers.BertForQuestionAnswering(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = minibert.BertForQuestionAnswering.from_pretrained(tmp_path)
    ids, mask, segments = random_batch(ours.config, rows, length)
    with torch.no_grad():
        out = ours(ids, mask, segments, output_attentions=True)
    wanted = reference_output(theirs, ids, mask, segments)
    assert len(out.hidden_states) == layers + 1 == len(wanted.hidden_states)
    assert all(map(torch.equal, out.hidden_states, wanted.hidden_states))
    assert all(map(torch.equal, out.attentions, wanted.attentions))
    assert torch.equal(out.start_logits, wanted.start_logits)
    assert torch.equal(out.end_logits, wanted.end_logits)


def test_without_mask_and_segments(reference, minilm):
    """The defaults: no padding, and only the first segment. As in the reference."""
    ours = Bert.from_pretrained(minilm)
    ids = torch.randint(1000, 2000, (2, 19))
    with torch.no_grad():
        assert torch.equal(ours(ids).hidden_states[-1], reference(ids).last_hidden_state)


@pytest.mark.parametrize("stored", ["tiny", "minilm"])
def test_stored_outputs(request, stored):
    """The reference's numbers, for where it is not installed."""
    source = request.getfixturevalue(stored)
    expected = load_file(HERE / "reference" / f"{stored}.safetensors")
    ids, mask = expected["input_ids"], expected["attention_mask"]
    with torch.no_grad():
        states = Bert.from_pretrained(source)(ids, mask, expected["token_type_ids"]).hidden_states
    for k, state in enumerate(states):
        wanted = expected[f"hidden_states.{k}"]
        if stored == "minilm":  # `summary` in make.py: a slice, and the sum of 38,000 numbers
            total, wanted = wanted[:, -1], wanted[:, :-1]
            torch.testing.assert_close(state.sum((1, 2)), total, rtol=1e-4, atol=1e-3)
            state = state[:, :8, :8].flatten(1)
        torch.testing.assert_close(state, wanted, rtol=0, atol=1e-5)


def test_sdpa_is_the_same_attention(minilm, field_notes):
    """At tokens, for short pairs and for full windows of 384. (At padding, which nothing reads, the
    sums are ill-conditioned: there "eager" itself is 6e-5 from float64.)"""
    eager, sdpa = (Bert.from_pretrained(minilm, attention=a) for a in ("eager", "sdpa"))
    tokenizer = minibert.Tokenizer.from_pretrained(minilm)
    features = minibert.prepare_features(field_notes, tokenizer)
    longest = sorted(features, key=len)[-3:]
    assert len(longest[-1]) == 384
    for ids, mask, segments in (batch(tokenizer), collate(longest, tokenizer.pad_id)[:3]):
        with torch.no_grad():
            states = [model(ids, mask, segments).hidden_states for model in (eager, sdpa)]
        for a, b in zip(*states, strict=True):
            torch.testing.assert_close(a[mask.bool()], b[mask.bool()], rtol=1e-5, atol=1e-5)
    with pytest.raises(minibert.InputError, match="sdpa"):
        sdpa(ids, mask, segments, output_attentions=True)


def pre_norm(self: EncoderLayer, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    attended, probabilities = self.attention(self.attention_norm(x), mask)
    x = x + attended
    return x + self.feed_forward(self.feed_forward_norm(x)), probabilities


def set_eps(model: Bert) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5


def tanh_gelu(patch: pytest.MonkeyPatch) -> None:
    erf = nn.functional.gelu
    patch.setattr("minibert.model.F.gelu", lambda x: erf(x, approximate="tanh"))


@pytest.mark.parametrize(
    "sabotage",
    [
        lambda model, patch: set_eps(model),
        lambda model, patch: tanh_gelu(patch),
        lambda model, patch: patch.setattr(EncoderLayer, "forward", pre_norm),
        lambda model, patch: nn.init.zeros_(model.embeddings.token_type.weight),
    ],
    ids=["eps 1e-5", "tanh GELU", "pre-LayerNorm", "no segments"],
)
def test_sabotage_breaks_the_parity(
    reference, minilm, monkeypatch, sabotage: Callable[[Bert, pytest.MonkeyPatch], None]
):
    """The tests above can fail: each of these mistakes changes more than their 1e-5."""
    ours = Bert.from_pretrained(minilm)
    ids, mask, segments = batch(minibert.Tokenizer.from_pretrained(minilm))
    states = reference_output(reference, ids, mask, segments).hidden_states
    with torch.no_grad():
        assert worst(ours(ids, mask, segments).hidden_states, states) == 0.0
        sabotage(ours, monkeypatch)
        assert worst(ours(ids, mask, segments).hidden_states, states) > 5e-5


def test_padding_takes_no_attention(minilm):
    """Other ids under the mask change nothing, and get no attention."""
    model = Bert.from_pretrained(minilm)
    ids, mask, segments = batch(minibert.Tokenizer.from_pretrained(minilm))
    other = torch.where(mask == 0, 1999, ids)
    with torch.no_grad():
        out = model(ids, mask, segments, output_attentions=True)
        changed = model(other, mask, segments)
    real = mask.bool()
    assert torch.equal(out.hidden_states[-1][real], changed.hidden_states[-1][real])
    for attention in out.attentions:
        assert (attention * (mask == 0)[:, None, None, :]).abs().max() == 0.0


def test_dropout_is_on_only_in_training(tiny):
    model = Bert.from_pretrained(tiny)
    ids = torch.randint(100, (2, 9))
    with torch.no_grad():
        assert torch.equal(model(ids).hidden_states[-1], model(ids).hidden_states[-1])
        model.train()
        assert not torch.equal(model(ids).hidden_states[-1], model(ids).hidden_states[-1])


def test_a_new_model_begins_as_bert_does():
    model = Bert(BertConfig(vocab_size=500, num_hidden_layers=1, initializer_range=0.02))
    weight = model.layers[0].feed_forward.expand.weight
    assert abs(weight.std().item() - 0.02) < 5e-4 and abs(weight.mean().item()) < 1e-4
    assert model.layers[0].attention.query.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "albert"}, "albert"),
        ({"hidden_act": "gelu_new"}, "gelu_new"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 5}, "num_attention_heads=5"),
        ({"hidden_size": "big"}, "hidden_size='big'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps=nan"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob=1.0"),
        ({"vocab_size": True}, "vocab_size=True"),
    ],
)
def test_another_architecture_is_refused_by_name(change, named):
    with pytest.raises(minibert.PretrainedError, match=named):
        BertConfig.from_dict({"model_type": "bert", "hidden_act": "gelu"} | change)


def test_bad_arguments(tiny):
    model = Bert.from_pretrained(tiny)
    with pytest.raises(minibert.InputError, match="385 tokens"):
        model(torch.zeros(1, 385, dtype=torch.long))
    with pytest.raises(minibert.InputError, match="flash"):
        Bert.from_pretrained(tiny, attention="flash")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_has_its_rate_and_keeps_the_mean(p, dtype):
    """A million numbers. The dropped share is within 5 standard deviations of p (0.0015 at p =
    0.1). The other numbers are scaled by 1 / (1 - p), up to one step of the dtype, and on average
    exactly (within 5 standard errors of the rounding). The gradient is scaled in the same way."""
    layer = Dropout(p)
    x = torch.ones(1000, 1001, dtype=dtype, requires_grad=True)
    y = layer(x)
    dropped = y == 0
    n = y.numel()
    assert abs(dropped.double().mean().item() - p) < 5 * (p * (1 - p) / n) ** 0.5
    kept, step = y[~dropped].double(), torch.finfo(dtype).eps * 2
    assert (kept - 1 / (1 - p)).abs().max() <= step
    assert abs(kept.mean().item() - 1 / (1 - p)) < 5 * step / len(kept) ** 0.5
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    # neighbours must not depend on each other
    both = (dropped.flatten()[:-1] & dropped.flatten()[1:]).double().mean().item()
    assert abs(both - p * p) < 5 * (p * p * (1 - p * p) / n) ** 0.5


def test_dropout_follows_torch_s_generator():
    layer, x = Dropout(0.1), torch.ones(7, 13)
    torch.manual_seed(5)
    first, second = layer(x), layer(x)
    torch.manual_seed(5)
    assert torch.equal(first, layer(x)) and not torch.equal(first, second)
    assert layer.eval()(x) is x and Dropout(0.0)(x) is x


def test_factors_drawn_in_inference_mode_work_in_training():
    """Inference mode marks the tensors that it makes, and autograd refuses to keep a marked one."""
    layer, x = Dropout(0.25), torch.ones(7, 13)
    with torch.inference_mode():
        layer(x)
    layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None


def test_the_factors_of_dropout_need_bounded_memory():
    """One row per rate and dtype, as long as the longest request; and only a few rows in total."""
    dropout.ROWS.clear()
    for p in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        for size in (2**10, 2**12, 2**11):
            dropout.dropout_factors(p, torch.float32, size)
            dropout.dropout_factors(p, torch.bfloat16, size)
    assert len(dropout.ROWS) <= dropout.MAX_ROWS
    assert {len(row) for row in dropout.ROWS.values()} == {2**12}
    dropout.ROWS.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_s_factor_does_not_depend_on_earlier_requests(dtype):
    """So a resumed run gets the same factors as an uninterrupted one."""
    dropout.ROWS.clear()
    short = dropout.dropout_factors(0.1, dtype, 2**10).clone()
    assert len(dropout.dropout_factors(0.1, dtype, 2**18)) == 2**18
    assert torch.equal(dropout.dropout_factors(0.1, dtype, 2**10), short)
    dropout.ROWS.clear()
