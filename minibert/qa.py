"""The span head: hidden states -> start and end logits -> loss. BERT (arXiv:1810.04805v2) 4.2."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import pretrained
from .config import Attention, BertConfig
from .errors import PretrainedError
from .hub import pinned
from .model import Bert, Encoded


@dataclass(frozen=True)
class QuestionAnsweringOutput(Encoded):
    """The encoder's states, and two logits for every token: also for padding and the question."""

    start_logits: Tensor  # (B, T)
    end_logits: Tensor  # (B, T)


class SpanHead(nn.Module):
    """Two vectors mark an answer: the start logit of token i is S . T_i, its end logit is E . T_i.

    The paper has no biases. Hugging Face's (HF) layer has one for the start and one for the end. We
    keep them, so that our raw logits equal HF's. They cancel in the softmax over the tokens.
    """

    def __init__(self, hidden_size: int, std: float) -> None:
        super().__init__()
        self.S = nn.Parameter(nn.init.normal_(torch.empty(hidden_size), std=std))
        self.E = nn.Parameter(nn.init.normal_(torch.empty(hidden_size), std=std))
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        # at least float32, because in bfloat16 many logits would be equal
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            # One product with both vectors is bit-identical to HF's (2, H) layer.
            vectors = torch.stack((self.S, self.E)).to(dtype)  # (2, H)
            logits = F.linear(hidden.to(dtype), vectors, self.bias.to(dtype))  # (B, T, 2)
        start_logits, end_logits = logits.unbind(-1)  # (B, T, 2) -> two (B, T)
        return start_logits, end_logits


class BertForQuestionAnswering(nn.Module):
    """The encoder with a span head on its last layer.

    >>> import minibert, torch
    >>> model = minibert.QuestionAnswerer.from_pretrained(precision="fp32").model
    >>> logits = model(torch.tensor([[101, 7592, 102]]))
    >>> tuple(logits.start_logits.shape), tuple(logits.end_logits.shape)  # (B, T)
    ((1, 3), (1, 3))
    """

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
        """The model of a folder or hub id, in eval mode and float32.

        `revision` is the hub id's branch, tag or commit. `new_head=True` is for fine-tuning: if the
        checkpoint has no head, a new one is drawn from torch's global generator. Otherwise such a
        checkpoint raises `PretrainedError`, because an untrained head gives random answers. Any
        other weight that is missing, unexpected, or of another shape raises `PretrainedError` too.
        """
        revision = pinned(source, revision)
        model, expected = pretrained.empty_model(cls, source, attention, revision)
        may_lack = "head." if new_head else ()
        tensors, report = pretrained.load_tensors(
            source, expected, model.config.model_type, may_lack, revision=revision
        )
        if report.missing:
            config = model.config
            head = SpanHead(config.hidden_size, config.initializer_range).state_dict()
            if len(report.missing) < len(head):  # half a trained head is a broken checkpoint
                raise PretrainedError(f"{source}: these weights lack {', '.join(report.missing)}")
            tensors |= {f"head.{name}": tensor for name, tensor in head.items()}
        model.load_state_dict(tensors, assign=True)
        return model.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a folder that this class and `transformers.AutoModelForQuestionAnswering` can load.

        `dtype=torch.float16` halves the size; loading converts the weights to float32. Raises
        `InputError` when the folder cannot be written.
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
        """Token ids (B, T) -> start and end logits (B, T), with the arguments of `Bert.forward`."""
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
    """The mean negative log-likelihood of the true starts and the true ends: a float32 scalar.

    Logits are (B, T), positions (B,). The paper adds the losses of start and end. HF and Google's
    code average them, and so do we. Positions after the end of the window are ignored, as in HF.
    The value equals HF's, except in three cases. (1) With an `attention_mask` (B, T), the softmax
    leaves out padding, and a label on padding has an infinite loss. (2) A negative position, as in
    an unlabelled window, is ignored; HF treats it as 0, the [CLS]. (3) A batch without any position
    inside its windows has loss 0; HF's is NaN.

    >>> import minibert, torch
    >>> logits, sure = torch.zeros(1, 4), torch.tensor([[9.0, 0.0, 0.0, 0.0]])
    >>> first = torch.tensor([0])
    >>> round(float(minibert.span_loss(logits, logits, first, first)), 3)  # log 4
    1.386
    >>> round(float(minibert.span_loss(sure, sure, first, first)), 3)
    0.0
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
    """`span_loss` for targets that are probabilities over the tokens. All arguments are (B, T).

    Returns the cross-entropy, averaged over windows and over start and end: a float32 scalar. It
    equals `span_loss` when one token has all the probability.
    """
    padding = attention_mask == 0

    def one_side(logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.float().masked_fill(padding, float("-inf"))
        log_probabilities = F.log_softmax(logits, dim=1).masked_fill(padding, 0)
        return -(targets * log_probabilities).sum(1).mean()

    return (one_side(start_logits, start_targets) + one_side(end_logits, end_targets)) / 2
