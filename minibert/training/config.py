"""`TrainingConfig`: every setting that a training run depends on, declared and checked once."""

import math
from dataclasses import dataclass, replace

import torch

from ..config import Attention, BertConfig
from ..errors import InputError
from ..fast.probe import fastest_precision
from ..fast.processor import Precision, choose_precision
from ..pretrained import read_config
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

    Each text is the help of the field's option. Raises `InputError` for a value out of range.

    >>> import minibert
    >>> minibert.TrainingConfig("bert-base-uncased", "own.json", "runs/own", epochs=0)
    Traceback (most recent call last):
    minibert.errors.InputError: epochs=0: expected more than 0
    """

    init: str = setting(..., "Folder or hub id of the model to start from.")
    train_file: str = setting(..., "Training data: a file, a folder of files, or a hub id.")
    output_dir: str = setting(..., "Folder for the model, its log and its checkpoints.")
    revision: str | None = setting(
        None, "Branch, tag or commit of the model's hub id; by default the newest."
    )
    dev_file: str | None = setting(
        None, "Data to score the model on after each epoch; by default none."
    )
    max_answer_len: int = setting(30, "Longest answer in this scoring, in tokens.")
    epochs: float = setting(
        3.0, "How many times to read the data. 1.5 ends in the middle of the second time."
    )
    batch_size: int = setting(16, "Windows in one training step, over all processes.")
    max_tokens: int | None = setting(
        None,
        "Most tokens in memory at a time, with padding. A larger batch is read in parts, "
        "whose gradients are added; by default 6,144 on a CPU, 16,384 on a GPU.",
    )
    # The paper searched 5e-5, 3e-5 and 2e-5 (appendix A.3).
    learning_rate: float = setting(2e-5, "Size of the changes in one step, at its highest.")
    warmup_ratio: float = setting(
        0.0, "Share of the steps (0 to 1) in which the learning rate rises from 0."
    )
    dropout: float | None = setting(
        None, "Share of numbers that are left out at random; by default the model's own."
    )
    weight_decay: float = setting(
        0.01, "How strongly weights are pulled towards 0. Biases and LayerNorms are not."
    )
    max_grad_norm: float = setting(
        1.0, "Largest norm of the gradients; larger ones are scaled down to it."
    )
    max_length: int = setting(384, "Tokens (words and parts of words) that a window has.")
    doc_stride: int | None = setting(128, "Tokens that two neighbouring windows share.")
    max_train_examples: int | None = setting(
        None, "Train on a random sample of this many questions; by default all questions."
    )
    negatives: float = setting(
        0.0, "Share of the questions (0 to 1) to ask again, about a text without the answer."
    )
    misleading: float = setting(
        0.0, "Share of these negatives (0 to 1) that change the question instead of the text."
    )
    teachers: tuple[str, ...] = setting(
        (), "Folder or hub id of a model to learn from, in addition to the data."
    )
    skip_invalid: bool = setting(
        False, "Leave out questions with errors, and list them in skipped.txt."
    )
    attention: Attention | None = setting(
        None, "How attention is computed: eager or sdpa; by default the faster one."
    )
    # "bf16" and "fp16" are autocast: the weights stay float32.
    precision: Precision = setting(
        "auto",
        "Numbers to compute with: fp32, bf16, fp16 (only on a GPU), or auto, which is the fastest "
        "of them.",
    )
    device: str = setting(
        "auto",
        "Where to compute: cpu, cuda, cuda:1, mps, ..., or auto, which is a GPU if there is one.",
    )
    seed: int = setting(42, "Random seed: the same seed gives the same model.")
    checkpoint_every: int = setting(500, "Steps from one checkpoint to the next.")
    keep_checkpoints: int = setting(2, "How many checkpoints to keep.")
    progress: bool = setting(True, "Show a progress bar.")

    def __post_init__(self) -> None:
        def require(good: bool, name: str, expected: str) -> None:
            if not good:
                raise InputError(f"{name}={getattr(self, name)!r}: expected {expected}")

        counts = ("batch_size", "max_tokens", "max_answer_len", "max_train_examples")
        for name in (*counts, "checkpoint_every", "keep_checkpoints"):
            count = getattr(self, name)
            require(count is None or count >= 1, name, "1 or more")
        for name in ("epochs", "learning_rate", "max_grad_norm"):
            require(0 < getattr(self, name) < math.inf, name, "more than 0")
        require(0 <= self.weight_decay < math.inf, "weight_decay", "0 or more")
        require(0 <= self.warmup_ratio <= 1, "warmup_ratio", "0 to 1")
        require(0 <= self.negatives <= 1, "negatives", "a share of the questions, 0 to 1")
        require(0 <= self.misleading <= 1, "misleading", "a share of the negatives, 0 to 1")
        require(self.dropout is None or 0 <= self.dropout < 1, "dropout", "from 0 to below 1")
        # a loop over a string would give single letters
        require(not isinstance(self.teachers, str), "teachers", "a tuple of strings")
        # These two raise for a wrong value. The device is chosen later.
        WindowSettings(self.max_length, self.doc_stride)
        choose_precision(self.precision, None, float_weights=True)

    @property
    def window_settings(self) -> WindowSettings:
        """How contexts are cut into windows."""
        return WindowSettings(self.max_length, self.doc_stride)


def resolved(
    config: TrainingConfig, device: torch.device, shapes: BertConfig | None = None
) -> TrainingConfig:
    """The same settings, with a value for each setting that depends on the device.

    `shapes` is the configuration of the model. If it is None and the precision has to be measured,
    the configuration of `config.init` is read.
    """
    on_cpu = device.type == "cpu"
    precision = choose_precision(config.precision, device, float_weights=True)
    if precision == "auto":
        if shapes is None:
            shapes = BertConfig.from_dict(read_config(config.init, config.revision))
        precision = fastest_precision(shapes, training=True)
    return replace(
        config,
        device=device.type,
        precision=precision,
        attention=config.attention or ("eager" if on_cpu else "sdpa"),
        max_tokens=config.max_tokens or (CPU_TOKENS if on_cpu else GPU_TOKENS),
    )
