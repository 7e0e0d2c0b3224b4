"""`TrainingConfig`: every setting that a training run depends on, declared and checked once."""

import math
from dataclasses import dataclass, replace

import torch

from ..config import Attention
from ..errors import InputError
from ..fast.processor import Precision, choose_precision
from ..settings import WindowSettings, setting

# Padded tokens in one pass. On a CPU: a batch of 16 full windows. On a GPU: as many tokens as fit
# into 16 GB with BERT-large in bfloat16. For the backward pass, a layer keeps 34 bytes for each
# number of a hidden state (arXiv:2205.05198, section 4.1, without the attention scores). BERT-large
# has 24 layers with 1,024 numbers for each token.
CPU_TOKENS = 6144
GPU_TOKENS = 16384


@dataclass(frozen=True)
class TrainingConfig:
    """All settings of a run. The defaults are the blog post's (see `minibert/__init__.py`).

    The text at each field is the help of its command-line option. Raises `InputError`.
    """

    init: str = setting(..., "Folder or hub id of the encoder to start from.")
    train_file: str = setting(..., "Training data: a file, a folder of files, or a hub id.")
    output_dir: str = setting(..., "Folder for the model, its log and its checkpoints.")
    revision: str | None = setting(
        None, "Branch, tag or commit of the encoder's hub id; by default the newest."
    )
    dev_file: str | None = setting(None, "Data to evaluate on after each epoch.")
    max_answer_len: int = setting(30, "Longest answer in that evaluation, in tokens.")
    epochs: float = setting(3.0, "Passes over the data; 1.5 stops in the middle of the second.")
    batch_size: int = setting(16, "Windows in one step, over all processes.")
    max_tokens: int | None = setting(
        None,
        "Most tokens in one forward pass, with padding. A larger batch is split into several "
        "passes, and their gradients are added; by default 6,144 on a CPU and 16,384 on a GPU.",
    )
    # The paper searched 5e-5, 3e-5 and 2e-5 (appendix A.3).
    learning_rate: float = setting(2e-5, "Highest learning rate.")
    warmup_ratio: float = setting(0.0, "Share of the steps in which the learning rate rises.")
    dropout: float | None = setting(None, "Dropout rate; by default the encoder's own.")
    weight_decay: float = setting(0.01, "Weight decay, for all weights but biases and norms.")
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this norm.")
    max_length: int = setting(384, "Tokens in one window.")
    doc_stride: int | None = setting(128, "Tokens that two neighbouring windows share.")
    max_train_examples: int | None = setting(
        None, "Train on a random sample of this size; by default on all."
    )
    negatives: float = setting(
        0.0, "For this share of the questions, add one copy with a text that has no answer."
    )
    teachers: tuple[str, ...] = setting(
        (), "Folder or hub id of a model to learn from, besides the labels."
    )
    skip_invalid: bool = setting(
        False, "Leave out questions with errors, and list them in skipped.txt."
    )
    attention: Attention | None = setting(None, "eager or sdpa; by default the faster one.")
    # "bf16" is autocast: the weights stay float32.
    precision: Precision = setting("auto", "auto, fp32 or bf16.")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps, ...; auto prefers a GPU.")
    seed: int = setting(42, "Seed of all random numbers.")
    checkpoint_every: int = setting(500, "Steps from one checkpoint to the next.")
    keep_checkpoints: int = setting(2, "How many checkpoints to keep.")
    progress: bool = setting(True, "Show a progress bar.")

    def __post_init__(self) -> None:
        counts = ("batch_size", "max_tokens", "max_answer_len", "max_train_examples")
        for name in (*counts, "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: expected 1 or more")
        for name in ("epochs", "learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)}: expected more than 0")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay={self.weight_decay}: expected 0 or more")
        if not 0 <= self.warmup_ratio <= 1:
            raise InputError(f"warmup_ratio={self.warmup_ratio}: expected 0 to 1")
        if not 0 <= self.negatives <= 1:
            raise InputError(
                f"negatives={self.negatives}: expected a share of the questions, 0 to 1"
            )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout}: expected from 0 to below 1")
        if isinstance(self.teachers, str):  # a loop over it would give single letters
            raise InputError(f"teachers={self.teachers!r}: expected a tuple of strings")
        # These two raise for a wrong value. The device is chosen later.
        WindowSettings(self.max_length, self.doc_stride)
        choose_precision(self.precision, torch.device("cpu"), float_weights=True)

    @property
    def window_settings(self) -> WindowSettings:
        """How contexts are cut into windows."""
        return WindowSettings(self.max_length, self.doc_stride)


def resolved(config: TrainingConfig, device: torch.device) -> TrainingConfig:
    """The same settings, with a value for each setting that depends on the device."""
    on_cpu = device.type == "cpu"
    return replace(
        config,
        device=device.type,
        precision=choose_precision(config.precision, device, float_weights=True),
        attention=config.attention or ("eager" if on_cpu else "sdpa"),
        max_tokens=config.max_tokens or (CPU_TOKENS if on_cpu else GPU_TOKENS),
    )
