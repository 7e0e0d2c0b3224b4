"""Training: one loop for fine-tuning and masked language modelling."""

from .config import TrainingConfig
from .finetune import train
from .masked_lm import adapt

__all__ = ["TrainingConfig", "adapt", "train"]
