"""The weights in 8-bit integers: a model -> a safetensors file of half the size of float16.

`minibert/web/pretrained.js` reads this file. It is for a page that holds the model itself. The page
computes in float32, so only the storing is 8-bit: `fast/quantized.py` also computes in integers.
"""

import safetensors.torch
import torch
from torch import Tensor

from ..pretrained import their_tensors
from ..qa import BertForQuestionAnswering

LARGEST = 127  # -128 is not used, so the scale is the same for both signs


def eight_bit(weight: Tensor, largest: int = LARGEST) -> tuple[Tensor, Tensor]:
    """A matrix (N, K) -> int8 (N, K), and one float32 scale (N,) for each row.

    A row times its scale differs from the original row by at most half a scale. No integer is
    larger than `largest`.

    >>> eight_bit(torch.tensor([[0.5, -1.27], [0.0, 0.0]]))
    (tensor([[  50, -127],
            [   0,    0]], dtype=torch.int8), tensor([0.0100, 0.0000]))
    """
    scale = weight.abs().amax(1) / largest  # (N,)
    rows = weight / scale.where(scale > 0, 1)[:, None]
    return rows.round().to(torch.int8), scale


def eight_bit_file(model: BertForQuestionAnswering) -> bytes:
    """The bytes of a `model.safetensors` under Hugging Face's names.

    Each matrix of the encoder is an int8 tensor with a second tensor, `NAME.scale`. The vectors of
    the encoder and the span head stay float32, because they have few numbers.
    """
    tensors = {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
    stored: dict[str, Tensor] = {}
    for name, tensor in their_tensors(model.config.model_type, tensors).items():
        if tensor.ndim == 2 and not name.startswith("qa_outputs."):
            stored[name], stored[f"{name}.scale"] = eight_bit(tensor)
        else:
            stored[name] = tensor
    return safetensors.torch.save(stored, metadata={"format": "pt"})
