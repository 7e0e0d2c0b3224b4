"""Reading windows of different lengths on a CPU without their padding."""

from typing import Any

import torch
from torch import Tensor, nn

from ..model import Bert, Encoded
from ..qa import BertForQuestionAnswering
from .linear import FusedLayer, supported
from .processor import processor_has


class UnpaddedBert(Bert):
    """An encoder of `FusedLayer`s that reads windows of different lengths without their padding.

    It takes over the parts of `bert`. Without a mask, where attention's weights are asked for, and
    where it does not only read, it computes as `bert` does. After a layer the states of padding are
    0.
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
            asked = attention_mask, token_type_ids, output_attentions, output_hidden_states
            return super().forward(input_ids, *asked)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        embedded = self.embeddings(input_ids, token_type_ids)  # (B, T, H)
        inside = attention_mask != 0
        lengths = [length for length in inside.sum(1).tolist() if length]
        x = embedded[inside]  # (n, H)
        hidden_states = [embedded]
        layers: Any = self.layers
        for k, layer in enumerate(layers):
            x = layer.read_unpadded(x, lengths)
            if output_hidden_states or k == len(layers) - 1:
                states = torch.zeros_like(embedded)
                states[inside] = x
                hidden_states.append(states)
        return Encoded(tuple(hidden_states if output_hidden_states else hidden_states[-1:]), None)


def fuse(model: BertForQuestionAnswering) -> None:
    """Have the layers of a model compute by these kernels, where they are `supported`.

    Its weights are frozen: the kernels compute with copies of them.
    """
    dtype = model.head.S.dtype
    if not supported(dtype):
        return
    model.requires_grad_(False)
    layers: Any = model.bert.layers
    for k, layer in enumerate(layers):
        layers[k] = FusedLayer(layer)
    # AMX multiplies whole tiles: there attention to lengths of all kinds takes longer than padding
    if dtype == torch.float32 or not processor_has("amx_bf16"):
        model.bert = UnpaddedBert(model.bert)
