"""Fine-tuning: examples -> labelled windows -> the loop -> a trained folder.

BERT (arXiv:1810.04805v2) appendix A.2, which A.3 keeps for fine-tuning: Adam, weight decay, warm-up
and linear decay of the learning rate, dropout 0.1.
"""

import json
import math
import random
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from .errors import InputError, MinibertError
from .evaluate import evaluate, make_folder
from .features import (
    collate,
    length_batches,
    prepare_features,
    prepare_train_features,
    split_batch,
)
from .model import Attention
from .qa import BertForQuestionAnswering, span_loss
from .reader import Precision, QuestionAnswerer, choose_device
from .squad import load_squad
from .tokenization import Tokenizer

# oneDNN keeps kernels for each shape it has met: with lengths in steps of 16 they stay few
PAD_MULTIPLE = 16


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that a run depends on. The defaults are the post's (`minibert/__init__.py`)."""

    init: str  # folder or hub id of an encoder, with or without a span head
    train_file: str  # whatever `load_squad` reads: a file, a folder, a hub id
    output_dir: str  # the model of the last epoch, and metrics.jsonl
    dev_file: str | None = None  # evaluated after each epoch
    epochs: int = 3
    batch_size: int = 16  # windows a step
    max_tokens: int = 4096  # padded tokens in one pass through the model: bounds the memory
    learning_rate: float = 2e-5  # the paper's range (A.3): 5e-5, 3e-5, 2e-5
    warmup_ratio: float = 0.0  # part of all steps in which the learning rate rises from 0
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_length: int = 384  # tokens a window
    doc_stride: int | None = 128  # tokens that two windows share
    max_train_examples: int | None = None  # a random sample; None: all
    attention: Attention = "eager"  # faster than "sdpa" in training on CPUs
    precision: Precision = "fp32"  # "bf16": autocast; the weights stay float32
    device: str = "auto"  # a GPU where there is one
    seed: int = 42
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_tokens", "max_length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: expected 1 or more")
        if self.max_train_examples is not None and self.max_train_examples < 1:
            raise InputError(f"max_train_examples={self.max_train_examples}: expected 1 or more")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)}: expected more than 0")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay={self.weight_decay}: expected 0 or more")
        if not 0 <= self.warmup_ratio <= 1:
            raise InputError(f"warmup_ratio={self.warmup_ratio}: expected 0 to 1")
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"precision={self.precision!r}: expected 'fp32' or 'bf16'")


def train(config: TrainingConfig) -> dict[str, float | int]:
    """Fine-tune and save, as `config` says; the metrics of the last epoch (empty without dev data).

    The output folder then holds the model and tokenizer in Hugging Face's format, and
    `metrics.jsonl`: a line a step and a line an evaluation. Seeds torch's global generator. Raises
    a `MinibertError` for what cannot be read, and when the folder holds a model already.
    """
    output = Path(config.output_dir)
    if (output / "config.json").exists() or (output / "metrics.jsonl").exists():
        raise InputError(f"{output}: holds a model or a run already; choose another output folder")
    torch.manual_seed(config.seed)
    device = choose_device(config.device)

    model = BertForQuestionAnswering.from_pretrained(config.init, config.attention, new_head=True)
    model.to(device)
    tokenizer = Tokenizer.from_pretrained(config.init)
    examples = load_squad(config.train_file, "train")
    if config.max_train_examples is not None and config.max_train_examples < len(examples):
        examples = random.Random(config.seed).sample(examples, config.max_train_examples)
    features = prepare_train_features(examples, tokenizer, config.max_length, config.doc_stride)
    dev_examples = load_squad(config.dev_file, "validation") if config.dev_file else []
    qa = QuestionAnswerer(
        model, tokenizer, config.max_length, config.doc_stride, precision=config.precision
    )
    # counted now, so that a question too long for a window is met before training
    dev_windows = len(
        prepare_features(dev_examples, tokenizer, config.max_length, config.doc_stride)
    )

    optimizer = torch.optim.AdamW(decay_groups(model, config.weight_decay), config.learning_rate)
    total_steps = config.epochs * math.ceil(len(features) / config.batch_size)
    warmup_steps = round(config.warmup_ratio * total_steps)
    metrics: dict[str, float | int] = {}
    step = 0
    log_path = make_folder(output) / "metrics.jsonl"
    with log_path.open("w", buffering=1, encoding="utf-8") as log, progress_bar(config) as bar:
        for epoch in range(1, config.epochs + 1):
            batches = length_batches(features, config.batch_size, seed=config.seed + epoch)
            task = bar.add_task(f"epoch {epoch} training", total=len(features), status="")
            model.train()
            began, seen = time.perf_counter(), 0
            for indices in batches:
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * schedule(step, warmup_steps, total_steps)
                loss = 0.0  # of the whole batch: the parts' gradients add up to its own
                for part in split_batch(features, indices, config.max_tokens):
                    batch = collate([features[k] for k in part], tokenizer.pad_id, PAD_MULTIPLE)
                    batch = batch.to(device)
                    with torch.autocast(device.type, torch.bfloat16, config.precision == "bf16"):
                        out = model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
                    part_loss = span_loss(
                        out.start_logits,
                        out.end_logits,
                        batch.start_positions,
                        batch.end_positions,
                        batch.attention_mask,
                    ) * (len(part) / len(indices))
                    part_loss.backward()  # type: ignore[no-untyped-call]
                    loss += part_loss.item()
                if not math.isfinite(loss):
                    raise MinibertError(
                        f"step {step + 1}: the loss is {loss}; a lower learning_rate than "
                        f"{config.learning_rate} may help"
                    )
                norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()

                step += 1
                seen += len(indices)
                speed = seen / (time.perf_counter() - began)
                line = {
                    "step": step,
                    "epoch": epoch,
                    "loss": loss,
                    "grad_norm": norm.item(),
                    "learning_rate": optimizer.param_groups[0]["lr"],
                    "examples_per_second": speed,  # an example here is a window
                }
                log.write(json.dumps(line) + "\n")
                status = f"loss {loss:.2f}  {speed:.1f} examples/s"
                bar.update(task, completed=seen, status=status)

            model.save_pretrained(output)
            tokenizer.save_pretrained(output)
            if dev_examples:
                task = bar.add_task(f"epoch {epoch} evaluation", total=dev_windows, status="")
                metrics = evaluate(qa, dev_examples, on_batch=partial(bar.advance, task))
                log.write(json.dumps({"step": step, "epoch": epoch} | metrics) + "\n")
                status = f"EM {metrics['exact_match']:.2f}  F1 {metrics['f1']:.2f}"
                bar.update(task, status=status)
    return metrics


def schedule(step: int, warmup_steps: int, total_steps: int) -> float:
    """The factor on the learning rate: up from 0 in a line, then down to 0 in a line.

    >>> [schedule(step, 2, 6) for step in range(6)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup_steps:
        return step / warmup_steps
    return (total_steps - step) / max(total_steps - warmup_steps, 1)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for the optimizer: weights decay; biases and LayerNorms don't.

    As in google-research/bert. By name, not by number of dimensions: S and E are vectors, yet
    they are weights.
    """
    kept: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain = name.endswith(".bias") or "norm." in name
        (kept if plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def progress_bar(config: TrainingConfig) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}  {task.fields[status]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not config.progress)
