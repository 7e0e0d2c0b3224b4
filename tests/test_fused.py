"""The fused kernels against the plain layers whose place they take."""

import copy

import pytest
import torch
from torch import nn

from minibert import BertConfig, BertForQuestionAnswering, QuestionAnswerer
from minibert.fast.linear import FusedLinear, fuse, supported

pytestmark = pytest.mark.skipif(
    not supported(), reason="no fused kernels for bfloat16 in this torch, or on this CPU"
)

CONFIG = BertConfig(
    vocab_size=100, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=256, max_position_embeddings=64, initializer_range=0.2,
)  # fmt: skip


@torch.inference_mode()
def test_a_fused_map_is_the_plain_one_and_its_gelu_the_erf_form():
    """In float32, where they differ by no more than the order of a sum; tanh would by 5e-4."""
    linear, x = nn.Linear(64, 256), 4 * torch.randn(7, 9, 64)
    plain = linear(x)
    torch.testing.assert_close(FusedLinear(linear)(x), plain, rtol=1e-5, atol=1e-5)
    fused = FusedLinear(linear, "gelu")(x)
    torch.testing.assert_close(fused, nn.functional.gelu(plain), rtol=1e-5, atol=1e-5)
    assert (fused - nn.functional.gelu(plain, approximate="tanh")).abs().max() > 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_fused_model_is_as_near_float32_as_the_plain_one(attention):
    """It rounds to bfloat16 less often, never more; a fifth is left to chance."""
    torch.manual_seed(0)
    model = BertForQuestionAnswering(CONFIG, attention).eval()
    ids = torch.randint(0, 100, (8, 50))
    mask = torch.arange(50) < torch.randint(20, 51, (8, 1))
    exact = model(ids, mask.long()).start_logits[mask]
    plain = model.to(torch.bfloat16)
    fused = copy.deepcopy(plain)
    fuse(fused)
    errors = [(m(ids, mask.long()).start_logits[mask] - exact).norm() for m in (plain, fused)]
    assert 0 < errors[1] < 1.2 * errors[0]


def test_a_fused_model_keeps_its_weights_and_cannot_be_trained(tmp_path):
    model = BertForQuestionAnswering(CONFIG).to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fuse(model)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[n], before[n]) for n in before)
    logits = model(torch.zeros(1, 4, dtype=torch.int64)).start_logits
    with pytest.raises(RuntimeError, match="does not require grad"):
        logits.sum().backward()
    model.save_pretrained(tmp_path)
    again = BertForQuestionAnswering.from_pretrained(tmp_path)
    assert torch.equal(again.bert.layers[2].feed_forward.expand.weight.bfloat16(),
                       before["bert.layers.2.feed_forward.expand.weight"])  # fmt: skip


def test_the_reader_fuses_in_bfloat16_alone(tiny):
    for precision, fused in (("bf16", True), ("fp32", False)):
        qa = QuestionAnswerer.from_pretrained(tiny, precision=precision)
        assert any(isinstance(m, FusedLinear) for m in qa.model.modules()) == fused
