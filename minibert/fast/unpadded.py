"""An encoder that reads windows of different lengths without their padding, on a CPU."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import Bert, Encoded, EncoderLayer
from ..qa import BertForQuestionAnswering

# The tokens of a batch are filled up to a multiple of this number. oneDNN makes and keeps kernels
# for each number of rows, so the memory would grow with the variety of lengths.
ROWS = 16


class UnpaddedBert(Bert):
    """A `Bert` that reads without padding. Its layers must have a method `read_unpadded`.

    It takes over the parts of `bert`. It computes as `bert` does if there is no mask, if attention
    probabilities are requested, in training mode, and when gradients are recorded. Otherwise the
    states of padding are 0 after every layer.
    """

    def __init__(self, bert: Bert) -> None:
        nn.Module.__init__(self)
        self.config, self.attention, self.training = bert.config, bert.attention, bert.training
        for name, part in bert.named_children():
            self.add_module(name, part)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = True,
    ) -> Encoded:
        plain = output_attentions or self.training or torch.is_grad_enabled()
        too_long = input_ids.shape[1] > self.config.max_length
        if plain or too_long or attention_mask is None or not attention_mask.any():
            others = attention_mask, token_type_ids, output_attentions, output_hidden_states
            return super().forward(input_ids, *others)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        embedded = self.embeddings(input_ids, token_type_ids)  # (B, T, H)
        inside = attention_mask != 0
        lengths = [length for length in inside.sum(1).tolist() if length]
        x = embedded[inside]  # (n, H): the tokens of all windows
        if extra := -len(x) % ROWS:  # one more window, which ends after the last layer
            x = F.pad(x, (0, 0, 0, extra))
            lengths.append(extra)
        hidden_states = [embedded]
        layers: Any = self.layers
        for k, layer in enumerate(layers):
            x = layer.read_unpadded(x, lengths)
            if output_hidden_states or k == len(layers) - 1:
                states = torch.zeros_like(embedded)
                states[inside] = x[: len(x) - extra]
                hidden_states.append(states)
        return Encoded(tuple(hidden_states if output_hidden_states else hidden_states[-1:]), None)


def replace_layers(
    model: BertForQuestionAnswering, layers: Sequence[EncoderLayer], unpadded: bool
) -> None:
    """Give a model other layers to read with; with `unpadded` it reads without padding too.

    The weights are frozen, because the new layers compute with copies of the weights.
    """
    model.requires_grad_(False)
    model.bert.layers = nn.ModuleList(layers)
    if unpadded:
        model.bert = UnpaddedBert(model.bert)
