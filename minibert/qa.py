"""The span head: hidden states -> start and end logits -> loss. BERT (arXiv:1810.04805v2) 4.2."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import pretrained
from .config import Attention, BertConfig
from .errors import PretrainedError
from .model import Bert, Encoded


@dataclass(frozen=True)
class QuestionAnsweringOutput(Encoded):
    """The encoder's states, and the two logits of every token: each (B, T), never masked."""

    start_logits: Tensor
    end_logits: Tensor


class SpanHead(nn.Module):
    """Two vectors find an answer: a token's start logit is S . T_i, its end logit E . T_i.

    The paper has no biases; HF's layer has one scalar each, kept here so that raw logits agree.
    A scalar added to every token's logit cancels in the softmax.
    """

    def __init__(self, hidden_size: int, std: float) -> None:
        super().__init__()
        self.S = nn.Parameter(nn.init.normal_(torch.empty(hidden_size), std=std))
        self.E = nn.Parameter(nn.init.normal_(torch.empty(hidden_size), std=std))
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        # at least float32: in bfloat16 many logits would be equal
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            # one product with both vectors stacked: bit for bit what HF's (2, H) layer computes
            vectors = torch.stack((self.S, self.E)).to(dtype)  # (2, H)
            logits = F.linear(hidden.to(dtype), vectors, self.bias.to(dtype))  # (B, T, 2)
        start_logits, end_logits = logits.unbind(-1)  # two of (B, T)
        return start_logits, end_logits


class BertForQuestionAnswering(nn.Module):
    """The encoder with a span head on its last layer."""

    def __init__(self, config: BertConfig, attention: Attention = "eager") -> None:
        super().__init__()
        self.config = config
        self.bert = Bert(config, attention)
        self.head = SpanHead(config.hidden_size, config.initializer_range)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        attention: Attention = "eager",
        new_head: bool = False,
        revision: str | None = None,
    ) -> "BertForQuestionAnswering":
        """The model of a folder or hub id (at that branch, tag or commit); eval mode, float32.

        `new_head=True` makes S and E anew (drawn from torch's global generator) when the checkpoint
        has none, as fine-tuning begins. Without it such a checkpoint raises `PretrainedError`: an
        untrained head gives random answers. So does any other weight that is missing, unexpected
        or of another shape.
        """
        model, expected = pretrained.empty_model(cls, source, attention, revision)
        may_lack = "head." if new_head else None
        tensors, report = pretrained.load_tensors(
            source, expected, model.config.model_type, may_lack, revision=revision
        )
        if report.missing:
            config = model.config
            made = SpanHead(config.hidden_size, config.initializer_range).state_dict()
            if len(report.missing) < len(made):  # half a trained head is a broken checkpoint
                raise PretrainedError(f"{source}: these weights lack {', '.join(report.missing)}")
            tensors |= {f"head.{name}": tensor for name, tensor in made.items()}
        model.load_state_dict(tensors, assign=True)
        return model.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a folder that this class and `transformers.AutoModelForQuestionAnswering` load.

        Weights stored as `torch.float16` take half the room, and are read as float32 again.
        """
        config = self.config.to_dict()
        tensors = {name: t.detach().to("cpu", dtype) for name, t in self.state_dict().items()}
        pretrained.save_folder(folder, config, tensors)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = True,
    ) -> QuestionAnsweringOutput:
        """(B, T) token ids -> (B, T) start and end logits. Arguments and errors: `Bert.forward`."""
        encoded = self.bert(
            input_ids, attention_mask, token_type_ids, output_attentions, output_hidden_states
        )
        start_logits, end_logits = self.head(encoded.hidden_states[-1])
        return QuestionAnsweringOutput(
            encoded.hidden_states, encoded.attentions, start_logits, end_logits
        )


def span_loss(
    start_logits: Tensor,
    end_logits: Tensor,
    start_positions: Tensor,
    end_positions: Tensor,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Mean of the negative log-likelihoods of the true start and the true end: a scalar, float32.

    Logits are (B, T), positions (B,). The paper sums the two terms; HF and Google's code average
    them, and so does this. A position past the window takes no part, as in HF. A negative one, as
    an unlabelled window has, doesn't either; HF takes it for 0, the [CLS]. A batch with no position
    inside has loss 0; HF's is NaN. With an `attention_mask` (B, T) the softmax runs over the tokens
    alone, so that padding takes no probability (and a label on padding has infinite loss). Without
    one, and but for these cases, the value equals HF's.
    """

    def one_side(logits: Tensor, positions: Tensor) -> Tensor:
        logits = logits.float()  # (B, T)
        inside = (positions >= 0) & (positions < logits.shape[1])  # (B,)
        labels = positions.where(inside, 0)
        if attention_mask is not None:
            logits = logits.masked_fill(attention_mask == 0, float("-inf"))
        losses = F.cross_entropy(logits, labels, reduction="none")  # (B,)
        return losses.where(inside, 0).sum() / inside.sum().clamp(min=1)

    return (one_side(start_logits, start_positions) + one_side(end_logits, end_positions)) / 2


def soft_span_loss(
    start_logits: Tensor,
    end_logits: Tensor,
    start_targets: Tensor,
    end_targets: Tensor,
    attention_mask: Tensor,
) -> Tensor:
    """`span_loss` where start and end are known as probabilities over the tokens: all are (B, T).

    The cross-entropy, averaged over windows and both sides: a scalar, float32. With all of the
    probability on one token it is `span_loss`.
    """
    padding = attention_mask == 0

    def one_side(logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.float().masked_fill(padding, float("-inf"))
        log_probabilities = F.log_softmax(logits, dim=1).masked_fill(padding, 0)
        return -(targets * log_probabilities).sum(1).mean()

    return (one_side(start_logits, start_targets) + one_side(end_logits, end_targets)) / 2
