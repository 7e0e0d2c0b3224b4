"""Fine-tuning: examples -> labelled windows -> the loop -> a trained folder.

BERT (arXiv:1810.04805v2) appendix A.2, which A.3 keeps for fine-tuning: Adam, weight decay, warm-up
and linear decay of the learning rate, dropout 0.1.
"""

import hashlib
import json
import math
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from . import checkpoint
from .errors import CheckpointError, DataError, InputError, Interrupted, NonFiniteError
from .evaluate import make_folder
from .features import (
    Feature,
    collate,
    length_batches,
    prepare_features,
    prepare_train_features,
    split_batch,
)
from .model import Attention, Dropout
from .parallel import ALONE, Team, team_of
from .qa import BertForQuestionAnswering, span_loss
from .reader import Precision, QuestionAnswerer, choose_device, choose_precision
from .squad import load_squad, squad_metrics
from .tokenization import Tokenizer

# oneDNN keeps kernels for each shape it has met: with lengths in steps of 8 they stay few
PAD_MULTIPLE = 8

# what a checkpoint holds
STATE = {
    "identity", "model", "optimizer", "random", "step", "epochs_done", "log_size", "metrics",
}  # fmt: skip


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that a run depends on. The defaults are the post's (`minibert/__init__.py`)."""

    init: str  # folder or hub id of an encoder, with or without a span head
    train_file: str  # whatever `load_squad` reads: a file, a folder, a hub id
    output_dir: str  # the model of the last epoch, metrics.jsonl and the checkpoints
    dev_file: str | None = None  # evaluated after each epoch
    epochs: float = 3  # times over the data: 1.5 ends in the middle of the second
    batch_size: int = 16  # windows a step
    max_tokens: int = 6144  # padded tokens in one pass: a longer step adds up its passes' gradients
    learning_rate: float = 2e-5  # the paper's range (A.3): 5e-5, 3e-5, 2e-5
    warmup_ratio: float = 0.0  # part of all steps in which the learning rate rises from 0
    dropout: float | None = None  # everywhere in the encoder; None: what its configuration says
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_length: int = 384  # tokens a window
    doc_stride: int | None = 128  # tokens that two windows share
    max_train_examples: int | None = None  # a random sample; None: all
    skip_invalid: bool = False  # leave out wrong questions, and name them in skipped.txt
    attention: Attention = "eager"  # faster than "sdpa" in training on CPUs
    precision: Precision = "auto"  # "bf16" is autocast: the weights stay float32
    device: str = "auto"  # a GPU where there is one
    seed: int = 42
    checkpoint_every: int = 500  # steps
    keep_checkpoints: int = 2
    progress: bool = True

    def __post_init__(self) -> None:
        whole = ("batch_size", "max_tokens", "max_length")
        for name in (*whole, "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: expected 1 or more")
        if self.max_train_examples is not None and self.max_train_examples < 1:
            raise InputError(f"max_train_examples={self.max_train_examples}: expected 1 or more")
        for name in ("epochs", "learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)}: expected more than 0")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay={self.weight_decay}: expected 0 or more")
        if not 0 <= self.warmup_ratio <= 1:
            raise InputError(f"warmup_ratio={self.warmup_ratio}: expected 0 to 1")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout}: expected from 0 to below 1")
        choose_precision(self.precision, torch.device("cpu"))  # is it a name of one?


def train(config: TrainingConfig, resume: bool = False) -> dict[str, float | int]:
    """Fine-tune and save, as `config` says; the metrics of the last epoch (empty without dev data).

    The output folder then holds the model and tokenizer in Hugging Face's format, `metrics.jsonl`
    (a line a step and a line an evaluation) and the last checkpoints. With `resume` the run in that
    folder goes on from its last whole checkpoint and ends with the weights, bit for bit, that it
    would have had without a stop (on the same machine, with as many threads). Under `torchrun` all
    its processes train the one model together. Seeds torch's global generator.

    Raises a `MinibertError` for what cannot be read, when the folder holds a model already, when
    data or settings are not those of the run to resume, and when a number is not finite;
    `Interrupted`, with the state saved, after Ctrl-C or SIGTERM.
    """
    device = choose_device(config.device)
    with team_of(device) as team:
        try:
            return _train(config, resume, device, team)
        except OSError as error:  # a disk that has filled up on the way
            raise InputError(f"{config.output_dir}: {error}") from error


def _train(
    config: TrainingConfig, resume: bool, device: torch.device, team: Team
) -> dict[str, float | int]:
    output = Path(config.output_dir)
    checkpoints = any(output.glob("checkpoint-*.pt"))
    held = checkpoints or any((output / n).exists() for n in ("config.json", "metrics.jsonl"))
    if held and not resume:
        raise InputError(
            f"{output}: holds a model or a run already; choose another output folder, or resume"
        )
    torch.manual_seed(config.seed)
    precision = choose_precision(config.precision, device)

    model = BertForQuestionAnswering.from_pretrained(config.init, config.attention, new_head=True)
    model.to(device)
    if config.dropout is not None:
        for module in model.modules():
            if isinstance(module, Dropout):
                module.p = config.dropout
    tokenizer = Tokenizer.from_pretrained(config.init)
    skipped: list[DataError] | None = [] if config.skip_invalid else None
    examples = load_squad(config.train_file, "train", skipped)
    if config.max_train_examples is not None and config.max_train_examples < len(examples):
        examples = random.Random(config.seed).sample(examples, config.max_train_examples)
    features = prepare_train_features(
        examples, tokenizer, config.max_length, config.doc_stride, skipped
    )
    dev_examples = load_squad(config.dev_file, "validation") if config.dev_file else []
    qa = QuestionAnswerer(
        model, tokenizer, config.max_length, config.doc_stride, precision=precision
    )
    # counted now, so that a question too long for a window is met before training
    dev_windows = len(
        prepare_features(dev_examples, tokenizer, qa.max_length, qa.doc_stride, qa.max_question_len)
    )

    optimizer = torch.optim.AdamW(
        decay_groups(model, config.weight_decay), config.learning_rate, fused=True
    )
    steps_per_epoch = math.ceil(len(features) / config.batch_size)
    total_steps = max(1, round(config.epochs * steps_per_epoch))
    warmup_steps = round(config.warmup_ratio * total_steps)

    identity = {
        **asdict(config),
        "device": device.type,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "processes": team.size,
        "data": digest(features),
    }
    if team.rank > 0:  # the same new head everywhere, but each its own dropout
        torch.manual_seed(config.seed + team.rank)
    step, epochs_done, log_size = 0, 0, 0
    metrics: dict[str, float | int] = {}
    saved: Path | None = None  # the last checkpoint
    if resume and checkpoints:  # a run stopped before the first one begins anew
        saved, state = checkpoint.latest(output)
        if missing := STATE - state.keys():
            raise CheckpointError(f"{saved}: not a checkpoint: no {', '.join(sorted(missing))}")
        require_same_run(state["identity"], identity)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        cpu, cuda = state["random"][team.rank]
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
        step, epochs_done, log_size = state["step"], state["epochs_done"], state["log_size"]
        metrics = state["metrics"]
        del state
    # a checkpoint holds the weights and Adam's two moments; one too many is there while one is made
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    checkpoint.require_space(make_folder(output), size * (3 * config.keep_checkpoints + 4))
    team.gather(None)  # before one writes, all have looked
    if skipped and team.rank == 0:
        lines = "".join(f"{problem}\n" for problem in skipped)
        (output / "skipped.txt").write_text(lines, encoding="utf-8")

    def save() -> Path:
        cuda = torch.cuda.get_rng_state() if device.type == "cuda" else None
        random_states = team.gather((torch.get_rng_state(), cuda))
        if team.rank > 0:
            return output
        log.flush()
        os.fsync(log.fileno())  # a checkpoint counts on the lines before it
        state = {
            "identity": identity,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": random_states,
            "step": step,
            "epochs_done": epochs_done,
            "log_size": Path(log.name).stat().st_size,
            "metrics": metrics,
        }
        return checkpoint.save(output, step, state, config.keep_checkpoints)

    shown = config.progress and team.rank == 0
    log_path = output / "metrics.jsonl" if team.rank == 0 else Path(os.devnull)
    with open_log(log_path, log_size) as log, progress_bar(shown) as bar, stop_signals() as stop:
        bar.console.print(
            f"{device}, {torch.get_num_threads()} threads, {precision}, processes: {team.size}; "
            f"{len(features):,} windows, {total_steps:,} steps"
        )
        if skipped:
            bar.console.print(f"{len(skipped):,} left out: {output / 'skipped.txt'} says why")
        for epoch in range(epochs_done + 1, math.ceil(total_steps / steps_per_epoch) + 1):
            batches = length_batches(features, config.batch_size, seed=config.seed + epoch)
            past = (epoch - 1) * steps_per_epoch
            batches = batches[step - past : total_steps - past]  # those to do
            task = bar.add_task(f"epoch {epoch} training", total=sum(map(len, batches)), status="")
            model.train()
            began, seen = time.perf_counter(), 0
            for indices in batches:
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * schedule(step, warmup_steps, total_steps)
                windows = [features[k] for k in indices]
                done = train_step(
                    model, optimizer, windows, tokenizer.pad_id, precision, config, team
                )
                if not done.finite:
                    raise NonFiniteError(
                        f"step {step + 1}: not a finite number: loss {done.loss}, gradient norm "
                        f"{done.grad_norm}, or a logit; last good checkpoint: {saved}; examples: "
                        f"{', '.join(window.example_id for window in windows)}"
                    )
                step += 1
                seen += len(indices)
                speed = seen / (time.perf_counter() - began)
                line = {
                    "step": step,
                    "epoch": epoch,
                    "loss": done.loss,
                    "grad_norm": done.grad_norm,
                    "learning_rate": optimizer.param_groups[0]["lr"],
                    "windows_per_second": speed,
                }
                log.write(json.dumps(line) + "\n")
                status = f"loss {done.loss:.2f}  {speed:.1f} windows/s"
                bar.update(task, completed=seen, status=status)
                asked = next(filter(None, team.gather(stop.asked)), None)
                if asked or step % config.checkpoint_every == 0:
                    saved = save()
                if asked:
                    team.gather(None)  # until it is written
                    raise Interrupted(f"{asked.name}: stopped; {saved} resumes it", asked)

            if team.rank == 0:
                model.save_pretrained(output)
                tokenizer.save_pretrained(output)
            if dev_examples:
                saved = save()
                task = bar.add_task(f"epoch {epoch} evaluation", total=dev_windows, status="")

                def on_batch(windows: int, task: Any = task, saved: Path = saved) -> None:
                    bar.advance(task, windows)
                    if stop.asked:
                        raise Interrupted(
                            f"{stop.asked.name}: stopped; {saved} resumes it", stop.asked
                        )

                mine = team.share(dev_examples)
                found = zip(mine, qa.n_best(mine, n_best=1, on_batch=on_batch), strict=True)
                shares = team.gather({example.id: best[0].answer for example, best in found})
                predictions = {key: text for share in shares for key, text in share.items()}
                metrics = squad_metrics(predictions, dev_examples)
                log.write(json.dumps({"step": step, "epoch": epoch} | metrics) + "\n")
                status = f"EM {metrics['exact_match']:.2f}  F1 {metrics['f1']:.2f}"
                bar.update(task, status=status)
            epochs_done = epoch
            saved = save()
    return metrics


class StepResult(NamedTuple):
    loss: float  # mean over the batch, before the step
    grad_norm: float  # of all gradients together, before clipping
    finite: bool  # loss, gradients and every logit; if not, the weights were left as they were


def train_step(
    model: BertForQuestionAnswering,
    optimizer: torch.optim.Optimizer,
    windows: Sequence[Feature],
    pad_id: int,
    precision: Precision,
    config: TrainingConfig,
    team: Team = ALONE,
) -> StepResult:
    """One step of the optimizer on one batch, in passes of at most `config.max_tokens`.

    Of a team, each reads its share of `windows`; gradients are added up once, after the passes.
    """
    device = next(model.parameters()).device
    loss, finite = 0.0, True
    for part in split_batch(team.share(windows), config.max_tokens):
        batch = collate(part, pad_id, PAD_MULTIPLE).to(device)
        with torch.autocast(device.type, torch.bfloat16, precision == "bf16"):
            out = model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        part_loss = span_loss(
            out.start_logits,
            out.end_logits,
            batch.start_positions,
            batch.end_positions,
            batch.attention_mask,
        ) * (len(part) / len(windows))  # all parts' gradients add up to the batch's own
        part_loss.backward()  # type: ignore[no-untyped-call]
        loss += part_loss.item()
        finite = finite and bool((out.start_logits + out.end_logits).isfinite().all())
    team.add_gradients(model)
    losses, all_finite = zip(*team.gather((loss, finite)), strict=True)
    loss, finite = sum(losses), all(all_finite)
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm).item()
    finite = finite and math.isfinite(loss) and math.isfinite(norm)
    if finite:
        optimizer.step()
    optimizer.zero_grad()
    return StepResult(loss, norm, finite)


def digest(features: Sequence[Feature]) -> str:
    """A fingerprint of the windows and their labels, in their order."""
    found = hashlib.sha256()
    for f in features:
        place = (f.example_id, f.prefix, f.token_start, f.token_end)
        found.update(repr((*place, f.start_position, f.end_position)).encode())
        found.update(f.context.ids.tobytes())
    return found.hexdigest()


def require_same_run(was: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises `CheckpointError` for a difference that would give other weights."""
    free = ("output_dir", "progress", "checkpoint_every", "keep_checkpoints")
    differences = [
        f"{name} was {was.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(was.keys() | now.keys())
        if name not in free and was.get(name) != now.get(name)
    ]
    if differences:
        raise CheckpointError(f"not the run to resume: {'; '.join(differences)}")


def open_log(path: Path, size: int) -> TextIO:
    """A log to write on from its first `size` bytes; lines past them are cut off."""
    if path == Path(os.devnull):
        return path.open("w", encoding="utf-8")
    try:
        path.touch()
        log = path.open("r+", buffering=1, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    if path.stat().st_size < size:
        raise CheckpointError(f"{path}: shorter than when the checkpoint was written")
    log.truncate(size)
    log.seek(size)
    return log


class StopSignals:
    """Which of Ctrl-C and SIGTERM has come: training looks after each step."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.asked:  # the second time: at once
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Ctrl-C and SIGTERM wait until the state is saved. (Only a main thread can catch signals.)"""
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop.receive) for number in caught]
    try:
        yield stop
    finally:
        for number, handler in zip(caught, before, strict=True):
            signal.signal(number, handler)


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


def progress_bar(shown: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}  {task.fields[status]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, quiet=not shown)
    return Progress(*columns, console=console, disable=not shown)
