"""The encoder: token ids -> hidden states. BERT (arXiv:1810.04805v2) section 3 and appendix A.2;
its layers are those of "Attention Is All You Need" (arXiv:1706.03762v7) section 3.

Shapes, here and everywhere:
    B batch   T tokens   H hidden_size   N heads   D = H // N   L layers   W windows
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import pretrained
from .errors import InputError, PretrainedError

Attention = Literal["eager", "sdpa"]
Model = TypeVar("Model", bound=nn.Module)


# BERT-large has 24 layers and a third of a billion parameters
MAX_LAYERS = 256
MAX_PARAMETERS = 10**10


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT; names and defaults (BERT-base, uncased) as in its `config.json`."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12  # not torch's 1e-5: the pretrained weights expect it
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
                good, wanted = _is_real(value) and 0 <= value < 1, "from 0 to below 1"
            elif name in ("layer_norm_eps", "initializer_range"):
                good, wanted = _is_real(value) and 0 < value < 1, "between 0 and 1"
            else:
                good, wanted = type(value) is int and value >= 1, "a whole number from 1"
            if not good:
                raise PretrainedError(f"config: {name}={value!r}; expected {wanted}")
        if self.hidden_size % self.num_attention_heads:
            raise PretrainedError(
                f"config: hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        # a stranger's file must not make us build without end
        if self.num_hidden_layers > MAX_LAYERS:
            raise PretrainedError(
                f"config: num_hidden_layers={self.num_hidden_layers}; expected up to {MAX_LAYERS}"
            )
        tables = self.vocab_size + self.max_position_embeddings + self.type_vocab_size
        layers = self.num_hidden_layers * (4 * self.hidden_size + 2 * self.intermediate_size)
        parameters = self.hidden_size * (tables + layers)  # but for biases and LayerNorms
        if parameters > MAX_PARAMETERS:
            raise PretrainedError(
                f"config: asks for more than {MAX_PARAMETERS:.0e} parameters: no BERT has so many"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "BertConfig":
        """From a parsed `config.json`. Raises `PretrainedError` for what is not this BERT."""
        for name, ours in {
            "model_type": ("bert",),
            "hidden_act": ("gelu", "gelu_python"),  # both the erf form; "gelu_new" is not
            "position_embedding_type": ("absolute",),
            "is_decoder": (False,),
            "add_cross_attention": (False,),
        }.items():
            if config.get(name, ours[0]) not in ours:
                raise PretrainedError(
                    f"config: {name}={config[name]!r}; minibert is the BERT with {name}={ours[0]!r}"
                )
        return cls(**{k: v for k, v in config.items() if k in cls.__dataclass_fields__})

    def to_dict(self, architecture: str) -> dict[str, Any]:
        """The `config.json` that `transformers` reads, for one of its classes by name."""
        return {
            **asdict(self),
            "model_type": "bert",
            "hidden_act": "gelu",
            "architectures": [architecture],
            "dtype": "float32",  # to compute in, whatever the weights are stored in
        }


@dataclass(frozen=True)
class Encoded:
    """What the encoder computed: nothing is kept on the modules."""

    hidden_states: tuple[Tensor, ...]  # L + 1 of (B, T, H): the embeddings, then each layer
    attentions: tuple[Tensor, ...] | None  # L of (B, N, T, T), when asked for


def blank(
    kind: Callable[[BertConfig, Attention], Model], source: str | Path, attention: Attention
) -> tuple[Model, dict[str, torch.Size]]:
    """A model as the configuration of a folder or hub id has it, and the shapes of its weights.

    It takes no memory: the weights are yet to come. Raises `PretrainedError`.
    """
    with pretrained.naming(source):
        config = BertConfig.from_dict(pretrained.read_config(source))
    with torch.device("meta"), Undrawn():
        model = kind(config, attention)
    return model, {name: tensor.shape for name, tensor in model.state_dict().items()}


class Undrawn(TorchFunctionMode):
    """Draws no random numbers. On "meta" there are none to draw, yet for each call there torch
    imports its compiler, which takes as long as importing all the rest of it.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


class Dropout(nn.Module):
    """Zeroes each number with probability p while training, and scales the others by 1 / (1 - p).

    `nn.Dropout`, but for where the random numbers come from on a CPU. There torch draws one after
    another, a quarter of a training step; here the factors stand ready in a long row, which is
    entered at a place drawn from torch's generator.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        row = dropout_factors(self.p, x.dtype, (max(2 * x.numel(), 2**25) - 1).bit_length())
        place = int(torch.randint(len(row) - x.numel(), ()))
        return x * row[place : place + x.numel()].view(x.shape)


@cache
def dropout_factors(p: float, dtype: torch.dtype, bits: int) -> Tensor:
    """2 ** bits random factors, 0 with probability p and otherwise 1 / (1 - p): fixed ones.

    A dtype that has no such number gets both its neighbours, as often as keeps the mean at 1.
    """
    generator = torch.Generator().manual_seed(bits)
    exact = torch.tensor(1 / (1 - p), dtype=torch.float64)
    near = exact.to(dtype)
    beyond = near.nextafter(torch.full_like(near, torch.inf if exact > near else 0.0))
    share = (exact - near) / (beyond.double() - near)  # of those that get the farther neighbour
    size = 2**bits
    factors = torch.where(torch.rand(size, generator=generator) < share, beyond, near)
    return factors.masked_fill_(torch.rand(size, generator=generator) < p, 0.0)


class Embeddings(nn.Module):
    """Word + position + segment, then LayerNorm. BERT section 3, "Input/Output Representations"."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)  # (T,)
        # in the reference's order, since float addition is not associative
        x = self.word(input_ids) + self.token_type(token_type_ids)  # (B, T) -> (B, T, H)
        x = x + self.position(positions)  # (B, T, H) + (T, H)
        embedded: Tensor = self.dropout(self.norm(x))
        return embedded


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(D)) V in N heads at once. Attention Is All You Need, section 3.2."""

    def __init__(self, config: BertConfig, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.heads = config.num_attention_heads
        self.head_size = config.hidden_size // config.num_attention_heads
        self.dropout = Dropout(config.attention_probs_dropout_prob)
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def split_heads(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        return x.view(B, T, self.heads, self.head_size).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        q = self.split_heads(self.query(x))  # (B, T, H) -> (B, N, T, D)
        k = self.split_heads(self.key(x))
        v = self.split_heads(self.value(x))
        probabilities = None
        if self.attention == "sdpa":
            p = self.dropout.p if self.training else 0.0
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        else:
            # The largest tensors by far: written in place, and not in float32 where autocast
            # would (softmax computes in float32 either way).
            with torch.autocast(x.device.type, enabled=False):
                scores = (q @ k.transpose(2, 3)).mul_(self.head_size**-0.5)  # (B, N, T, T)
                if mask is not None:  # (B, 1, 1, T): the same for every head and every query
                    scores.add_(mask.to(scores.dtype))
                probabilities = self.dropout(scores.softmax(dim=-1))
                mixed = probabilities @ v  # (B, N, T, T) @ (B, N, T, D) -> (B, N, T, D)
        merged = mixed.transpose(1, 2).flatten(2)  # (B, N, T, D) -> (B, T, H)
        return self.output(merged), probabilities


class FeedForward(nn.Module):
    """Two linear maps with a GELU between, at each token alone. Section 3.3 there."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.hidden_size, config.intermediate_size)
        self.contract = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        # F.gelu is the erf form, as pretrained; tanh would be 1e-3 off
        x = F.gelu(self.expand(x))  # (B, T, H) -> (B, T, 4H)
        contracted: Tensor = self.contract(x)  # (B, T, 4H) -> (B, T, H)
        return contracted


class EncoderLayer(nn.Module):
    """Attention, then feed-forward; each added to its input, *then* normalised (post-LayerNorm)."""

    def __init__(self, config: BertConfig, attention: Attention) -> None:
        super().__init__()
        self.attention = SelfAttention(config, attention)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        attended, probabilities = self.attention(x, mask)
        x = self.attention_norm(self.dropout(attended) + x)
        x = self.feed_forward_norm(self.dropout(self.feed_forward(x)) + x)
        return x, probabilities


class Bert(nn.Module):
    """The encoder: embeddings and L layers. No pooler: span answers read every token."""

    def __init__(self, config: BertConfig, attention: Attention = "eager") -> None:
        super().__init__()
        if attention not in ("eager", "sdpa"):
            raise InputError(f"attention={attention!r}: expected 'eager' or 'sdpa'")
        self.config = config
        self.attention = attention
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(
            EncoderLayer(config, attention) for _ in range(config.num_hidden_layers)
        )
        self.apply(self.initialize)

    def initialize(self, module: nn.Module) -> None:
        """How BERT's weights begin: N(0, initializer_range^2), biases 0."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, source: str | Path, attention: Attention = "eager") -> "Bert":
        """The encoder of a folder or hub id, with or without a head there; eval mode, float32.

        Raises `PretrainedError` when a weight is missing, unexpected or of another shape.
        """
        model, shapes = blank(cls, source, attention)
        expected = {f"bert.{name}": shape for name, shape in shapes.items()}
        tensors, _ = pretrained.load_tensors(source, expected, may_hold="qa_outputs.")
        tensors = {name.removeprefix("bert."): t for name, t in tensors.items()}
        model.load_state_dict(tensors, assign=True)
        return model.eval()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_attentions: bool = False,
    ) -> Encoded:
        """(B, T) token ids -> hidden states of every layer.

        `attention_mask` is (B, T), 1 for tokens and 0 for padding (default: no padding);
        `token_type_ids` is (B, T), 0 for the question and 1 for the context (default: all 0).
        Raises `InputError` for more tokens than the model has positions, and for
        `output_attentions` with "sdpa", which never holds the probabilities.
        """
        if output_attentions and self.attention == "sdpa":
            raise InputError("attention='sdpa' does not compute the probabilities: use 'eager'")
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise InputError(
                f"{input_ids.shape[1]} tokens, but this model has "
                f"{self.config.max_position_embeddings} positions"
            )
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        x = self.embeddings(input_ids, token_type_ids)  # (B, T) -> (B, T, H)
        mask = None
        if attention_mask is not None:
            # Added to the scores: 0 keeps a key, the lowest finite number removes it (its
            # exponential is exactly 0; -inf would give NaN where a whole row is padding).
            # bfloat16's, which is finite in float32 too.
            lowest = torch.finfo(torch.bfloat16).min
            mask = torch.zeros(attention_mask.shape, dtype=x.dtype, device=x.device)
            mask = mask.masked_fill(attention_mask == 0, lowest)[:, None, None, :]  # (B, 1, 1, T)

        hidden_states = [x]
        attentions = []
        for layer in self.layers:
            x, probabilities = layer(x, mask)
            hidden_states.append(x)
            if output_attentions:
                attentions.append(probabilities)
        return Encoded(tuple(hidden_states), tuple(attentions) if output_attentions else None)
