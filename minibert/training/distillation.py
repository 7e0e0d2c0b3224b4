"""Distillation: labels and the logits of trained models -> soft targets.

arXiv:1503.02531 at temperature 1. The teachers have the student's own size, as in arXiv:1805.04770.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batches import Batch
from ..engine import require_fit
from ..errors import InputError, PretrainedError
from ..fast.processor import Precision, autocast
from ..hub import pinned
from ..qa import BertForQuestionAnswering
from ..tokenization import Tokenizer
from .config import TrainingConfig


def load_teachers(
    config: TrainingConfig, tokenizer: Tokenizer, device: torch.device
) -> list[BertForQuestionAnswering]:
    """The models to learn from.

    Raises `InputError` for a model with another tokenizer, and the errors of `require_fit` for a
    model that cannot read the student's windows.
    """
    assert config.attention
    teachers = []
    for source in config.teachers:
        revision = pinned(source)
        own = Tokenizer.from_pretrained(source, revision)
        if own.backend.to_str() != tokenizer.backend.to_str():
            raise InputError(f"{source}: a teacher must have the tokenizer of {config.init}")
        load = BertForQuestionAnswering.from_pretrained
        teacher = load(source, config.attention, revision=revision)
        try:
            require_fit(teacher.config, tokenizer, config.max_length)
        except (InputError, PretrainedError) as error:
            raise type(error)(f"{source}: {error}") from error
        teachers.append(teacher.to(device))
    return teachers


@torch.no_grad()
def soft_targets(
    teachers: Sequence[nn.Module], batch: Batch, precision: Precision
) -> tuple[Tensor, Tensor]:
    """The target probabilities that the answer starts and ends at each token: two tensors (B, T).

    One half comes from the label. The other half comes from the teachers: the softmax of the mean
    of their logits. If a window lacks the answer, the target is only the label, [CLS], because
    teachers that were trained only on answerable questions would point to some answer there.
    """
    with autocast(batch.input_ids.device, precision):
        outs = [teacher(*batch[:3], output_hidden_states=False) for teacher in teachers]
    padding = batch.attention_mask == 0
    weight = (batch.start_positions > 0).float().unsqueeze(1) / 2  # (B, 1): 1/2, or 0 at [CLS]

    def one_side(logits: list[Tensor], positions: Tensor) -> Tensor:
        mean = torch.stack(logits).float().mean(0).masked_fill(padding, float("-inf"))  # (B, T)
        label = F.one_hot(positions, mean.shape[1])
        return (1 - weight) * label + weight * mean.softmax(1)

    return (
        one_side([out.start_logits for out in outs], batch.start_positions),
        one_side([out.end_logits for out in outs], batch.end_positions),
    )
