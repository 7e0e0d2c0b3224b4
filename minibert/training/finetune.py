"""Fine-tuning: examples -> labelled windows -> the loop -> a trained folder.

BERT (arXiv:1810.04805v2) appendix A.2, which A.3 keeps for fine-tuning: Adam, weight decay, warm-up
and linear decay of the learning rate, dropout 0.1.
"""

import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batches import Batch, collate, length_batches, split_batch
from ..data.examples import Example, load_squad
from ..data.metric import squad_metrics
from ..data.negatives import make_negatives
from ..errors import DataError, InputError, NonFiniteError, summary
from ..fast.dropout import Dropout
from ..fast.processor import (
    Precision,
    choose_device,
    device_errors,
    device_name,
)
from ..features import Feature, prepare_features, prepare_train_features
from ..identity import examples_digest, features_digest, tensors_digest
from ..qa import BertForQuestionAnswering, soft_span_loss, span_loss
from ..reader import QuestionAnswerer
from ..scoring.evaluation import warn_of_long_answers
from ..settings import AnswerSettings
from ..tokenization import Tokenizer
from .config import TrainingConfig, resolved
from .optimizer import make_optimizer, schedule
from .parallel import SINGLE_PROCESS, ProcessGroup, process_group
from .run import Run, require_folder

# oneDNN keeps kernels for each shape it has met: with lengths in steps of 8 they stay few
PAD_MULTIPLE = 8


class StepResult(NamedTuple):
    loss: float  # mean over the batch, before the step
    grad_norm: float  # of all gradients together, before clipping
    finite: bool  # loss, gradients and every logit; if not, the weights were left as they were

    def figures(self, learning_rate: float) -> dict[str, float]:
        """What the log says of a step."""
        return {"loss": self.loss, "grad_norm": self.grad_norm, "learning_rate": learning_rate}


def train_step(
    model: BertForQuestionAnswering,
    optimizer: torch.optim.Optimizer,
    windows: Sequence[Feature],
    pad_id: int,
    precision: Precision,
    config: TrainingConfig,
    group: ProcessGroup = SINGLE_PROCESS,
    teachers: Sequence[BertForQuestionAnswering] = (),
) -> StepResult:
    """One step of the optimizer on one batch, in passes of at most `max_tokens` (see `resolved`).

    Of several processes, each reads its share of `windows`; their gradients are added up once,
    after the passes. Where there are `teachers`, a window's target is that of `soft_targets`.
    """
    device = next(model.parameters()).device
    max_tokens = resolved(config, device).max_tokens
    assert max_tokens
    loss, finite = 0.0, True
    multiple = math.gcd(PAD_MULTIPLE, config.max_length)  # so that no padding goes beyond it
    for part in split_batch(group.share(windows), max_tokens, multiple):
        batch = collate(part, pad_id, multiple).to(device)
        with torch.autocast(device.type, torch.bfloat16, precision == "bf16"):
            out = model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        logits = (out.start_logits, out.end_logits)
        if teachers:
            targets = soft_targets(teachers, batch, precision)
            part_loss = soft_span_loss(*logits, *targets, batch.attention_mask)
        else:
            labels = (batch.start_positions, batch.end_positions)
            part_loss = span_loss(*logits, *labels, batch.attention_mask)
        part_loss *= len(part) / len(windows)  # the parts' gradients add up to the batch's
        part_loss.backward()  # type: ignore[no-untyped-call]
        loss += part_loss.item()
        finite = finite and bool((out.start_logits + out.end_logits).isfinite().all())
    return apply_gradients(model, optimizer, loss, finite, config.max_grad_norm, group)


@torch.no_grad()
def soft_targets(
    teachers: Sequence[BertForQuestionAnswering], batch: Batch, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Where the answers start and end, as probabilities (B, T) each: half label, half teachers.

    The teachers' half is the softmax of the mean of their logits: distillation (arXiv:1503.02531)
    at temperature 1, as from a model's equals in arXiv:1805.04770. A window without its answer
    keeps its label, [CLS], alone: teachers that have only been asked what has an answer look for
    one there too.
    """
    device_type = batch.input_ids.device.type
    with torch.autocast(device_type, torch.bfloat16, precision == "bf16"):
        outs = [teacher(*batch[:3], output_hidden_states=False) for teacher in teachers]
    padding = batch.attention_mask == 0
    heard = (batch.start_positions > 0).float().unsqueeze(1) / 2  # (B, 1): 1/2 or 0

    def one_side(logits: list[Tensor], positions: Tensor) -> Tensor:
        mean = torch.stack(logits).float().mean(0).masked_fill(padding, float("-inf"))  # (B, T)
        label = F.one_hot(positions, mean.shape[1])
        return (1 - heard) * label + heard * mean.softmax(1)

    return (
        one_side([out.start_logits for out in outs], batch.start_positions),
        one_side([out.end_logits for out in outs], batch.end_positions),
    )


def apply_gradients(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: float,
    finite: bool,
    max_grad_norm: float,
    group: ProcessGroup,
) -> StepResult:
    """Clip what all processes' backward passes have left, and step where all numbers are finite.

    `loss` is this process's share of the batch's, `finite` whether its logits were.
    """
    group.add_gradients(model)
    losses, all_finite = zip(*group.gather((loss, finite)), strict=True)
    loss, finite = sum(losses), all(all_finite)
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm).item()
    finite = finite and math.isfinite(loss) and math.isfinite(norm)
    if finite:
        optimizer.step()
    optimizer.zero_grad()
    return StepResult(loss, norm, finite)


def train(
    config: TrainingConfig, resume: bool = False, allow_other_machine: bool = False
) -> dict[str, float | int]:
    """Fine-tune and save, as `config` says; the metrics of the last epoch (empty without dev data).

    The output folder then holds the model and tokenizer in Hugging Face's format, `metrics.jsonl`
    (one line per step and one per evaluation), `run.json` (the settings, what they were applied to
    and where) and the last checkpoints. With `resume` the run in that folder goes on from its last
    whole checkpoint and ends with the weights, bit for bit, that it would have had without a stop:
    on a CPU, the same machine, as many threads, the same torch. Elsewhere it goes on only with
    `allow_other_machine`, and warns. Under `torchrun` all its processes train the one model
    together. Seeds torch's global generator.

    Raises a `MinibertError` for what cannot be read, for a folder that holds something else, when
    data or settings are not those of the run to resume, for a device that runs out of memory, and
    when a number is not finite; `Interrupted`, with the state saved, after Ctrl-C or SIGTERM.
    """
    device = choose_device(config.device)
    with process_group(device) as group, device_errors(device):
        try:
            return _train(config, resume, allow_other_machine, device, group)
        except OSError as error:  # a disk that has filled up on the way
            raise InputError(f"{config.output_dir}: {error}") from error


def _train(
    config: TrainingConfig,
    resume: bool,
    allow_other_machine: bool,
    device: torch.device,
    group: ProcessGroup,
) -> dict[str, float | int]:
    folder = Path(config.output_dir)
    require_folder(folder, resume)
    config = resolved(config, device)
    assert config.attention
    torch.manual_seed(config.seed)
    model = BertForQuestionAnswering.from_pretrained(
        config.init, config.attention, new_head=True, revision=config.revision
    )
    model.to(device)
    if config.dropout is not None:
        set_dropout(model, config.dropout)
    tokenizer = Tokenizer.from_pretrained(config.init, config.revision)
    qa = QuestionAnswerer(  # before the data are read: it checks what model and settings can do
        model, tokenizer, config.max_length, config.doc_stride, precision=config.precision
    )
    teachers = load_teachers(config, tokenizer, device)
    data = load_data(config, tokenizer)
    dev_windows = count_windows(group.share(data.dev_examples), qa)
    if group.rank == 0:
        warn_of_long_answers(data.dev_examples, tokenizer, config.max_answer_len)
    optimizer = make_optimizer(model, config, device)
    steps_per_epoch = math.ceil(len(data.features) / config.batch_size)
    total_steps = max(1, round(config.epochs * steps_per_epoch))
    warmup_steps = round(config.warmup_ratio * total_steps)
    identity = identity_of(config, model, data.features, data.dev_examples, group, teachers)
    if group.rank > 0:  # the same new head everywhere, but each process its own dropout
        torch.manual_seed(config.seed + group.rank)
    run = Run(folder, identity, model, optimizer, group, config.keep_checkpoints)
    if resume:
        run.restore(allow_other_machine)

    with run.open(config.progress):
        run.announce(
            f"{qa.computes_with}, {torch.get_num_threads()} threads, processes: {group.size}; "
            f"{len(data.features):,} windows, {total_steps:,} steps"
        )
        run.report_skipped(data.skipped)
        for epoch in range(run.epochs_done + 1, math.ceil(total_steps / steps_per_epoch) + 1):
            first_step = (epoch - 1) * steps_per_epoch
            batches = length_batches(data.features, config.batch_size, config.seed + epoch)
            batches = batches[run.step - first_step : total_steps - first_step]  # those to do
            run.start_phase(f"epoch {epoch} training", sum(map(len, batches)))
            model.train()
            for indices in batches:
                windows = [data.features[k] for k in indices]
                rate = config.learning_rate * schedule(run.step, warmup_steps, total_steps)
                for param_group in optimizer.param_groups:
                    param_group["lr"] = rate
                result = train_step(
                    model,
                    optimizer,
                    windows,
                    tokenizer.pad_id,
                    config.precision,
                    config,
                    group,
                    teachers,
                )
                if not result.finite:
                    raise non_finite(run, result, windows)
                run.log_step(epoch, len(windows), result.figures(rate))
                run.save_if_due(config.checkpoint_every)
            run.save()  # where there is a model, there is a checkpoint
            if group.rank == 0:
                qa.save_pretrained(folder)
            if data.dev_examples:
                run.start_phase(f"epoch {epoch} evaluation", dev_windows)
                run.log_evaluation(epoch, evaluate_epoch(qa, data.dev_examples, run, config))
            run.epochs_done = epoch
            run.save()
    return run.metrics


def load_teachers(
    config: TrainingConfig, tokenizer: Tokenizer, device: torch.device
) -> list[BertForQuestionAnswering]:
    """The models to learn from; raises `InputError` for one that reads other tokens."""
    assert config.attention
    teachers = []
    for source in config.teachers:
        if Tokenizer.from_pretrained(source).backend.to_str() != tokenizer.backend.to_str():
            raise InputError(f"{source}: a teacher must have the tokenizer of {config.init}")
        teacher = BertForQuestionAnswering.from_pretrained(source, config.attention)
        teachers.append(teacher.to(device))
    return teachers


class TrainingData(NamedTuple):
    features: list[Feature]  # labelled windows
    dev_examples: list[Example]  # none: no evaluation
    skipped: list[DataError]  # what is wrong with the questions that were left out


def load_data(config: TrainingConfig, tokenizer: Tokenizer) -> TrainingData:
    """Read, sample and label the training data, and read the dev data, as `config` says."""
    skipped: list[DataError] = []
    collected = skipped if config.skip_invalid else None  # None: the first wrong question raises
    every = examples = load_squad(config.train_file, "train", collected)
    if config.max_train_examples is not None and config.max_train_examples < len(examples):
        examples = random.Random(config.seed).sample(examples, config.max_train_examples)
    if config.negatives:
        made = make_negatives(examples, config.negatives, config.seed, every)
        examples = [*examples, *chain(*made.values())]
    features = prepare_train_features(
        examples, tokenizer, config.max_length, config.doc_stride, collected
    )
    dev_examples, misplaced = [], list[DataError]()
    if config.dev_file:
        dev_examples = load_squad(config.dev_file, "validation", misplaced=misplaced)
    if misplaced:
        warnings.warn(f"answers are scored by their text: {summary(misplaced)}", stacklevel=2)
    return TrainingData(features, dev_examples, skipped)


def count_windows(examples: Sequence[Example], qa: QuestionAnswerer) -> int:
    """How many windows these questions have; one that is too long for a window raises here."""
    return len(prepare_features(examples, qa.tokenizer, **asdict(qa.window_settings)))


def identity_of(
    config: TrainingConfig,
    model: nn.Module,
    features: Sequence[Feature],
    dev_examples: Sequence[Example],
    group: ProcessGroup,
    teachers: Sequence[nn.Module] = (),
) -> dict[str, Any]:
    """All that the weights depend on; what a path stands for by a fingerprint of what is there."""
    device = next(model.parameters()).device
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device_name(device)}"
    return {
        **asdict(config),
        "processes": group.size,
        "init_weights": tensors_digest(model.state_dict())[:16],
        # None where there are none, as in runs from before there could be
        "teacher_weights": [tensors_digest(t.state_dict())[:16] for t in teachers] or None,
        "train_data": features_digest(features)[:16],
        "dev_data": examples_digest(dev_examples)[:16],
        "machine": sorted(set(group.gather(machine))),
    }


def set_dropout(model: BertForQuestionAnswering, p: float) -> None:
    """Train with this rate everywhere, and say so in the configuration that is saved."""
    config = replace(model.config, hidden_dropout_prob=p, attention_probs_dropout_prob=p)
    model.config = model.bert.config = config
    for module in model.modules():
        if isinstance(module, Dropout):
            module.p = p


def evaluate_epoch(
    qa: QuestionAnswerer, examples: Sequence[Example], run: Run, config: TrainingConfig
) -> dict[str, float | int]:
    """The metric of the best answers; every process answers its share of the questions."""

    def on_batch(windows: int) -> None:
        run.advance(windows)
        run.raise_if_stopped()

    share = run.group.share(examples)
    settings = AnswerSettings(1, config.max_answer_len)
    n_best = qa.answer_examples(share, settings, on_batch)
    answers = zip(share, n_best, strict=True)
    shares = run.group.gather({example.id: best[0].answer for example, best in answers})
    predictions = {key: text for part in shares for key, text in part.items()}
    return squad_metrics(predictions, examples)


def non_finite(run: Run, result: StepResult, windows: Sequence[Feature]) -> NonFiniteError:
    return NonFiniteError(
        f"step {run.step + 1}: not a finite number: loss {result.loss}, gradient norm "
        f"{result.grad_norm}, or a logit; last good checkpoint: "
        f"{run.last_checkpoint or 'none yet'}; examples: "
        f"{', '.join(window.example_id for window in windows)}"
    )
