"""The encoder: token ids -> hidden states. BERT (arXiv:1810.04805v2) section 3 and appendix A.2.
Its layers come from "Attention Is All You Need" (arXiv:1706.03762v7) section 3.

Shapes, here and everywhere:
    B batch   T tokens   H hidden_size   N heads   D = H // N   L layers   W windows
    I intermediate_size
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import pretrained
from .config import Attention, BertConfig
from .errors import InputError
from .fast.dropout import Dropout
from .hub import pinned


class Embeddings(nn.Module):
    """Word + position + segment, then LayerNorm. BERT section 3, "Input/Output Representations".

    DistilBERT has no segments. RoBERTa's first position is not 0, and padding has no position of
    its own. ELECTRA's vectors can be narrower than H; then `project` widens them.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width, segments = config.embedding_size or config.hidden_size, config.type_vocab_size
        self.first_position = config.first_position
        self.pad_id = config.pad_token_id if config.family.positions_after_padding else None
        self.word = nn.Embedding(config.vocab_size, width)
        self.position = nn.Embedding(config.max_position_embeddings, width)
        self.token_type = nn.Embedding(segments, width) if segments else None
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        narrow = width != config.hidden_size
        self.project = nn.Linear(width, config.hidden_size) if narrow else None

    def parts(
        self, input_ids: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The vectors of pieces (B, T, width), segments (None without segments) and positions.

        Positions are (T, width), or (B, T, width) where padding is not counted.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)  # (T,)
        if self.pad_id is not None:  # only tokens count, so padding may come first
            positions = ((input_ids != self.pad_id).cumsum(1) - 1).clamp(min=0)  # (B, T)
        segment = None if self.token_type is None else self.token_type(token_type_ids)
        word: Tensor = self.word(input_ids)
        position: Tensor = self.position(positions + self.first_position)
        return word, segment, position

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        x, segment, position = self.parts(input_ids, token_type_ids)  # (B, T) -> (B, T, width)
        # added in the same order as in transformers, because float addition is not associative
        if segment is not None:
            x = x + segment
        x = x + position  # (B, T, width) + ([B,] T, width)
        normed: Tensor = self.dropout(self.norm(x))
        return self.project(normed) if self.project else normed  # (B, T, H)


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(D)) V, in N heads. "Attention Is All You Need", section 3.2."""

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
        mixed, probabilities = self.mix(q, k, v, mask)
        return self.output(mixed), probabilities

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Average the values, weighted by how well each key matches the query.

        q, k and v are (B, N, T, D), `mask` is (B, 1, 1, T) or None. Returns (B, T, H) and, with
        "eager", the weights (B, N, T, T).
        """
        probabilities = None
        if self.attention == "sdpa":
            p = self.dropout.p if self.training else 0.0
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        else:
            # The scores are by far the largest tensors, so they are changed in place. Autocast is
            # off, because it makes softmax return float32. (Inside, softmax always uses float32.)
            with torch.autocast(q.device.type, enabled=False):
                scores = (q @ k.transpose(2, 3)).mul_(self.head_size**-0.5)  # (B, N, T, T)
                if mask is not None:  # (B, 1, 1, T), the same for every head and every query
                    scores.add_(mask.to(scores.dtype))
                probabilities = self.dropout(scores.softmax(dim=-1))
                mixed = probabilities @ v  # (B, N, T, T) @ (B, N, T, D) -> (B, N, T, D)
        return mixed.transpose(1, 2).flatten(2), probabilities  # (B, N, T, D) -> (B, T, H)


class FeedForward(nn.Module):
    """A linear map, a GELU and a linear map, for each token. "Attention Is All You Need", 3.3."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.hidden_size, config.intermediate_size)
        self.contract = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        # F.gelu uses erf, as in pretraining; the tanh formula would give errors of about 1e-3
        x = F.gelu(self.expand(x))  # (B, T, H) -> (B, T, I)
        contracted: Tensor = self.contract(x)  # (B, T, I) -> (B, T, H)
        return contracted


class EncoderLayer(nn.Module):
    """Attention, then feed-forward. Each is added to its input, then normalised: post-LayerNorm."""

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


@dataclass(frozen=True)
class Encoded:
    """The results of the encoder. The modules do not store them."""

    # L + 1 tensors (B, T, H): the embeddings, then each layer; or the last layer only
    hidden_states: tuple[Tensor, ...]
    # On request, L tensors (B, N, T, T). Each row sums to 1, except after dropout in training.
    attentions: tuple[Tensor, ...] | None


class Bert(nn.Module):
    """Embeddings and L layers. There is no pooler (it reads only [CLS]): spans need every token.

    >>> import minibert, torch
    >>> config = minibert.BertConfig(
    ...     hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    ... )
    >>> encoded = minibert.Bert(config)(torch.tensor([[101, 7592, 102]]))
    >>> len(encoded.hidden_states), tuple(encoded.hidden_states[-1].shape)  # L + 1, (B, T, H)
    (3, (1, 3, 32))
    """

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
        """The initial weights, as in BERT: from N(0, initializer_range^2). Biases are 0."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, attention: Attention = "eager", revision: str | None = None
    ) -> "Bert":
        """The encoder of a folder or hub id (`revision`: its branch, tag or commit), in eval mode
        and float32. If it has a span head, the head is not loaded. Raises `PretrainedError` when a
        weight is missing, unexpected, or has another shape.
        """
        revision = pinned(source, revision)
        model, shapes = pretrained.empty_model(cls, source, attention, revision)
        expected = {f"bert.{name}": shape for name, shape in shapes.items()}
        tensors, _ = pretrained.load_tensors(
            source, expected, model.config.model_type, may_hold="qa_outputs.", revision=revision
        )
        tensors = {name.removeprefix("bert."): t for name, t in tensors.items()}
        model.load_state_dict(tensors, assign=True)
        return model.eval()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = True,
    ) -> Encoded:
        """Token ids (B, T) -> the hidden states of every layer, L + 1 tensors (B, T, H).

        `attention_mask` (B, T) is 1 for tokens and 0 for padding; None means no padding.
        `token_type_ids` (B, T) is 0 for the question and 1 for the context; None means all 0.
        `output_hidden_states=False` returns only the last layer; all layers take twice the memory.
        Raises `InputError` for more tokens than the model has positions, and for
        `output_attentions` with "sdpa", which never stores the probabilities.
        """
        if output_attentions and self.attention == "sdpa":
            raise InputError("attention='sdpa' does not compute the probabilities: use 'eager'")
        if input_ids.shape[1] > self.config.max_length:
            room = self.config.max_length
            raise InputError(f"{input_ids.shape[1]} tokens, but this model has {room} positions")
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        x = self.embeddings(input_ids, token_type_ids)  # (B, T) -> (B, T, H)
        mask = None
        if attention_mask is not None:
            # The mask is added to the scores: 0 at tokens. At padding it is the lowest finite
            # number, whose exponential is exactly 0. (-inf would give NaN if a whole row is
            # padding.) It is bfloat16's, because in bfloat16 float32's would become -inf. In
            # float16, whose numbers are smaller, it is float16's.
            lowest = max(torch.finfo(kind).min for kind in (torch.bfloat16, x.dtype))
            mask = torch.zeros(attention_mask.shape, dtype=x.dtype, device=x.device)
            mask = mask.masked_fill(attention_mask == 0, lowest)[:, None, None, :]  # (B, 1, 1, T)

        hidden_states = [x]
        attentions = []
        for layer in self.layers:
            x, probabilities = layer(x, mask)  # (B, T, H) -> (B, T, H)
            if not output_hidden_states:
                hidden_states.clear()
            hidden_states.append(x)
            if output_attentions:
                attentions.append(probabilities)
        return Encoded(tuple(hidden_states), tuple(attentions) if output_attentions else None)
