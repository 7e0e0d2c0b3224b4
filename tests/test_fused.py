"""The fused layers compared with the plain layers that they replace."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from minibert import BertConfig, BertForQuestionAnswering, InputError, QuestionAnswerer
from minibert.fast.linear import FusedLayer, PackedLinear, fuse, supported
from minibert.fast.quantized import quantize
from minibert.fast.unpadded import UnpaddedBert

pytestmark = pytest.mark.skipif(
    not supported(torch.float32), reason="this torch has no fused kernels here"
)
PRECISIONS = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(
            not supported(torch.bfloat16), reason="no fused kernels for bfloat16 on this CPU"
        ),
    ),
]

CONFIG = BertConfig(
    vocab_size=100, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=256, max_position_embeddings=64, initializer_range=0.2,
)  # fmt: skip


@torch.inference_mode()
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_a_packed_map_is_the_plain_one(capability, monkeypatch):
    """In float32 only the order of a sum differs; the tanh form of GELU would differ by 5e-4. Both
    ways are tested on every processor: GELU inside the product's kernel, and after it."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    maps, x = [nn.Linear(64, 256), nn.Linear(64, 96)], 4 * torch.randn(7, 9, 64)
    plain = torch.cat([one(x) for one in maps], dim=-1)
    other, packed = torch.randn_like(plain), PackedLinear(*maps)
    torch.testing.assert_close(packed(x), plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed.plus(x, other), other + plain, rtol=1e-5, atol=1e-5)
    fused = packed(x, "gelu")
    torch.testing.assert_close(fused, nn.functional.gelu(plain), rtol=1e-5, atol=1e-5)
    assert (fused - nn.functional.gelu(plain, approximate="tanh")).abs().max() > 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_fused_model_is_as_exact_as_the_plain_one(attention, dtype):
    """Compared with float64, over ten models. In bfloat16 the fused model rounds less often. In
    float32 it only sums in another order, and a fifth of the error is allowed for this."""
    errors = torch.zeros(2)
    for seed in range(10):
        torch.manual_seed(seed)
        plain = BertForQuestionAnswering(CONFIG, attention).eval().to(dtype)
        ids = torch.randint(0, 100, (8, 50))
        mask = (torch.arange(50) < torch.randint(20, 51, (8, 1))).long()
        exact = copy.deepcopy(plain).double()(ids, mask).start_logits
        fused = copy.deepcopy(plain)
        fuse(fused)
        for k, model in enumerate((plain, fused)):
            out = model(ids, mask, output_attentions=attention == "eager")
            errors[k] += (out.start_logits - exact)[mask == 1].norm()
            for weights in out.attentions or ():
                assert (weights.float().sum(-1) - 1).abs().max() < (
                    1e-5 if dtype == torch.float32 else 0.01
                )
    assert 0 < errors[1] < (1.2 if dtype == torch.float32 else 1) * errors[0]


@torch.inference_mode()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_windows_without_their_padding_are_read_as_with_it(attention):
    """Windows of any length, also of length 0. States of padding are 0. In float32 only the order
    of a sum differs. With "sdpa", windows of one length that follow each other have their attention
    together."""
    torch.manual_seed(0)
    plain = BertForQuestionAnswering(CONFIG, attention).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    assert isinstance(fused.bert, UnpaddedBert)
    layer, read, attended = fused.bert.layers[0], [], []
    layer.read_unpadded = lambda x, lengths: (
        read.append((len(x), lengths)) or FusedLayer.read_unpadded(layer, x, lengths)
    )
    layer.mix = lambda x: attended.append(tuple(x.shape[:2])) or FusedLayer.mix(layer, x)
    ids = torch.randint(0, 100, (7, 50))
    lengths = torch.tensor([50, 1, 0, 17, 17, 49, 2])
    mask = (torch.arange(50) < lengths[:, None]).long()
    for segments in (None, torch.randint(0, 2, (7, 50))):
        for states in (True, False):
            a, b = (
                model(ids, mask, segments, output_hidden_states=states) for model in (plain, fused)
            )
            assert len(b.hidden_states) == len(a.hidden_states)
            for x, y in zip(a.hidden_states, b.hidden_states, strict=True):
                torch.testing.assert_close(y[mask == 1], x[mask == 1], rtol=1e-5, atol=1e-5)
            assert not b.hidden_states[-1][mask == 0].any()
    # 136 tokens, filled up to a multiple of 16
    assert read == [(144, [50, 1, 17, 17, 49, 2, 8])] * 4
    both = [(2, 17)] if attention == "sdpa" else [(1, 17)] * 2
    assert attended == [(1, 50), (1, 1), *both, (1, 49), (1, 2), (1, 8)] * 4


@torch.inference_mode()
def test_what_needs_padding_is_computed_with_it():
    """Attention probabilities. A window that is too long is still refused."""
    plain = BertForQuestionAnswering(CONFIG).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    ids, mask = torch.randint(0, 100, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    mask[1, 5:] = 0
    a, b = (model(ids, mask, output_attentions=True) for model in (plain, fused))
    torch.testing.assert_close(b.attentions[2], a.attentions[2], rtol=1e-5, atol=1e-5)
    assert fused(ids, torch.zeros_like(ids)).start_logits.isfinite().all()
    with pytest.raises(InputError, match="65 tokens, but this model has 64"):
        ids = torch.ones(1, 65, dtype=torch.int64)
        fused(ids, torch.zeros_like(ids))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_fused_model_keeps_its_weights_and_cannot_be_trained(tmp_path, dtype):
    model = BertForQuestionAnswering(CONFIG).to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fuse(model)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[n], before[n]) for n in before)
    assert not any(weight.requires_grad for weight in model.parameters())
    model.save_pretrained(tmp_path)
    again = BertForQuestionAnswering.from_pretrained(tmp_path)
    assert torch.equal(again.bert.layers[2].feed_forward.expand.weight.to(dtype),
                       before["bert.layers.2.feed_forward.expand.weight"])  # fmt: skip


@torch.inference_mode()
def test_in_training_mode_it_computes_as_the_plain_model():
    """Dropout is active, also where no gradients are recorded."""
    plain = BertForQuestionAnswering(CONFIG).train()
    fused = copy.deepcopy(plain)
    fuse(fused)
    logits = []
    for model in (plain, fused):
        torch.manual_seed(0)
        logits.append(model(torch.arange(9)[None]).start_logits)
    assert torch.equal(*logits)


def test_gradients_by_its_inputs_are_the_plain_model_s():
    model = BertForQuestionAnswering(CONFIG, "sdpa").eval()
    fused = copy.deepcopy(model)
    fuse(fused)
    slopes = []
    for one in (model, fused):
        x = torch.ones(1, 5, 64, requires_grad=True)
        one.bert.layers[0](x, None)[0].square().sum().backward()
        slopes.append(x.grad)
    assert torch.equal(*slopes) and slopes[0].abs().sum() > 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda qa: pickle.loads(pickle.dumps(qa))])
def test_a_copy_answers_alike(tiny, copied):
    """Programs that answer in several processes send such copies."""
    qa = QuestionAnswerer.from_pretrained(tiny)
    question = ("Who lit the lamp?", "At dusk the keeper, Ada, lit the lamp.")
    assert copied(qa)(*question) == qa(*question)


def change_in_place(model):
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))


def change_data(model):
    """As older code for moving averages does: torch does not count these changes."""
    for weight in model.parameters():
        weight.data.lerp_(torch.randn_like(weight), 0.1)


def change_one_row(model):
    with torch.no_grad():
        model.bert.layers[1].feed_forward.contract.weight[3] = 5


def prune_layer(model):
    prune.l1_unstructured(model.bert.layers[1].attention.query, "weight", 0.9)


def to_bfloat16(model):
    model.bfloat16()


def train_steps(model):
    model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(3):
        model(torch.arange(9)[None]).start_logits.square().sum().backward()
        optimizer.step()
    model.eval()


CHANGES = {
    "loaded": lambda model: model.load_state_dict(BertForQuestionAnswering(CONFIG).state_dict()),
    "assigned": lambda model: model.load_state_dict(
        BertForQuestionAnswering(CONFIG).state_dict(), assign=True
    ),
    "in place": change_in_place, "data": change_data, "row": change_one_row,
    "pruned": prune_layer, "trained": train_steps, "bfloat16": to_bfloat16,
    "averaged": lambda model: nn.utils.vector_to_parameters(
        0.1 * torch.randn(sum(p.numel() for p in model.parameters())), model.parameters()
    ),
}  # fmt: skip


@torch.inference_mode()
def read_both_ways(model):
    """Start logits without padding in the batch, and with it."""
    ids, mask = torch.arange(18).view(2, 9), torch.ones(2, 9, dtype=torch.int64)
    mask[1, 5:] = 0
    return torch.cat([model(ids).start_logits, model(ids, mask).start_logits])


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("faster", [fuse, quantize])
def test_weights_that_change_are_the_ones_that_are_read(change, faster):
    """The layers hold copies of the weights. After a change they must equal new copies."""
    model = BertForQuestionAnswering(CONFIG, "sdpa").eval()
    faster(model)
    before = read_both_ways(model)
    change(model)
    if change is to_bfloat16 and (faster is quantize or not supported(torch.bfloat16)):
        with pytest.raises(InputError, match=r"are now torch\.bfloat16"):
            read_both_ways(model)
        return
    after = read_both_ways(model)
    for layer in model.bert.layers:
        layer.pack()
    assert torch.equal(after, read_both_ways(model)) and not torch.equal(before, after)


@torch.inference_mode()
@pytest.mark.parametrize("faster", [fuse, quantize])
@pytest.mark.parametrize(
    "change",
    [lambda m: m.half(), lambda m: m.double(), lambda m: m.to("meta")],
    ids=["half", "double", "device"],
)
def test_weights_that_the_kernels_cannot_read_are_one_line(change, faster):
    model = BertForQuestionAnswering(CONFIG, "sdpa").eval()
    faster(model)
    change(model)
    ids = torch.arange(9)[None].to(model.head.S.device)
    with pytest.raises(InputError, match=r"the weights are now torch\..*from_pretrained") as caught:
        model(ids)
    assert "\n" not in str(caught.value)


def test_the_reader_fuses(tiny):
    for precision in ("bf16", "fp32"):
        qa = QuestionAnswerer.from_pretrained(tiny, precision=precision)
        wanted = supported(next(qa.model.parameters()).dtype)
        assert all(isinstance(layer, FusedLayer) == wanted for layer in qa.model.bert.layers)


@pytest.mark.skipif(not supported(torch.bfloat16), reason="no fused kernels for bfloat16 here")
@torch.inference_mode()
def test_attention_without_the_largest_score(monkeypatch):
    """It computes what `mix` does. `mix` helps out where a sum of exponentials is no float."""
    torch.manual_seed(0)
    model = BertForQuestionAnswering(CONFIG, "eager").eval().bfloat16()
    fuse(model)
    [layer, *_] = model.bert.layers
    projected = torch.randn(37, 3 * 64).bfloat16()
    mix, helped = FusedLayer.mix, []
    monkeypatch.setattr(FusedLayer, "mix", lambda *given: helped.append(1) or mix(*given))
    near, _ = mix(layer, projected[None])
    torch.testing.assert_close(layer.mix_without_largest(projected), near[0], rtol=0, atol=0.03)
    assert not helped
    for factor in (30, -30):  # scores of thousands, for a key that all queries like, or none does
        projected[:, :64] = 30
        projected[:, 64:128] = factor
        near, _ = mix(layer, projected[None])
        assert torch.equal(layer.mix_without_largest(projected), near[0])
    assert len(helped) == 2
