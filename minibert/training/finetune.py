"""Fine-tuning: examples -> labelled windows -> the training loop -> a folder with a trained model.

Adam, weight decay, warm-up and linear decay of the learning rate, and dropout 0.1 come from
BERT's pretraining (arXiv:1810.04805v2, appendix A.2). Appendix A.3 keeps them for fine-tuning.
"""

import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from typing import NamedTuple

from ..answers import answers_of, null_odds
from ..batches import collate, length_batches, split_batch
from ..data.examples import Example, load_squad
from ..data.negatives import kinds_with, make_negatives
from ..errors import DataError, summary
from ..fast.processor import autocast
from ..features import Feature, prepare_features, prepare_train_features
from ..hub import pinned
from ..qa import BertForQuestionAnswering, soft_span_loss, span_loss
from ..reader import QuestionAnswerer
from ..scoring.evaluation import metrics_of, warn_of_long_answers, warn_of_unanswerable
from ..settings import AnswerSettings
from ..tokenization import Tokenizer
from .config import TrainingConfig
from .distillation import load_teachers, soft_targets
from .job import Job, StepResult
from .loop import Batches, train_epochs
from .optimizer import make_optimizer
from .run import Run, started


def train_step(job: Job, windows: Sequence[Feature]) -> StepResult:
    """Take one optimizer step on a batch, in passes of at most `max_tokens` padded tokens.

    Each process reads its share of the windows. With teachers, the targets come from
    `soft_targets`.
    """
    model, config = job.model, job.config
    assert config.max_tokens
    loss, finite = 0.0, True
    for part in split_batch(job.group.share(windows), config.max_tokens, job.pad_multiple):
        batch = collate(part, job.tokenizer.pad_id, job.pad_multiple).to(job.device)
        with autocast(job.device, config.precision):
            out = model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        logits = (out.start_logits, out.end_logits)  # two of (B, T)
        if job.teachers:
            targets = soft_targets(job.teachers, batch, config.precision)
            part_loss = soft_span_loss(*logits, *targets, batch.attention_mask)
        else:
            labels = (batch.start_positions, batch.end_positions)
            part_loss = span_loss(*logits, *labels, batch.attention_mask)
        part_loss *= len(part) / len(windows)  # the gradients then add up to the whole batch's
        job.scaler.scale(part_loss).backward()  # type: ignore[no-untyped-call]
        loss += part_loss.item()
        finite = finite and bool((out.start_logits + out.end_logits).isfinite().all())
    return job.take_step(loss, finite)


def train(
    config: TrainingConfig, resume: bool = False, allow_other_machine: bool = False
) -> dict[str, float | int]:
    """Fine-tune and save a model; returns the metrics of the last epoch (empty without dev data).

    The output folder then holds the model and the tokenizer in Hugging Face's format,
    `metrics.jsonl` (one line for each step and each evaluation), `run.json` (the settings, digests
    of model and data, and the machine) and the last checkpoints.

    With `resume`, the run in that folder continues from its last complete checkpoint. On a CPU it
    ends with the same weights, bit for bit, as a run without a stop. This needs the same machine,
    the same number of threads and the same version of torch. On another machine it continues only
    with `allow_other_machine`, and warns.

    Under `torchrun`, all processes train one model together. Sets torch's global random seed.

    Raises a `MinibertError`: for an unreadable file, for a folder that holds something else, for
    data or settings that differ from the run to resume, for a device without enough memory, and for
    a number that is not finite. Raises `Interrupted` after Ctrl-C or SIGTERM, with the state saved.

    >>> import json, minibert, pathlib, tempfile
    >>> from minibert.reader import BUNDLED
    >>> scratch = tempfile.TemporaryDirectory()
    >>> folder = pathlib.Path(scratch.name)
    >>> answers = {"text": ["Ada"], "answer_start": [0]}
    >>> row = {"id": "1", "question": "Who lit it?", "context": "Ada lit it.", "answers": answers}
    >>> _ = (folder / "own.json").write_text(json.dumps([row]))
    >>> config = minibert.TrainingConfig(
    ...     str(BUNDLED), str(folder / "own.json"), str(folder / "run"), epochs=1, progress=False
    ... )
    >>> minibert.train(config)  # without dev data, there are no metrics
    {}
    >>> qa = minibert.QuestionAnswerer.from_pretrained(folder / "run")
    >>> qa("Who lit it?", "Bo lit it.").answer
    'Bo'
    >>> scratch.cleanup()
    """
    with started(config, resume) as (config, device, group):
        assert config.attention
        revision = pinned(config.init, config.revision)
        model = BertForQuestionAnswering.from_pretrained(
            config.init, config.attention, new_head=True, revision=revision
        )
        model.to(device)
        if (p := config.dropout) is not None:  # `Job` sets the rate, config.json records it
            model.config = model.bert.config = replace(
                model.config, hidden_dropout_prob=p, attention_probs_dropout_prob=p
            )
        tokenizer = Tokenizer.from_pretrained(config.init, revision)
        windows = asdict(config.window_settings)
        # made before the data are read, because the constructor checks these settings
        qa = QuestionAnswerer(model, tokenizer, **windows, precision=config.precision)
        teachers = load_teachers(config, tokenizer, device)
        data = load_data(config, tokenizer)
        dev_share = group.share(data.dev_examples)
        dev_windows = len(prepare_features(dev_share, tokenizer, **windows))
        if group.rank == 0:
            warn_of_long_answers(data.dev_examples, tokenizer, config.max_answer_len)
            warn_of_unanswerable(data.dev_examples)
        optimizer = make_optimizer(model, config, device)
        job = Job(model, optimizer, tokenizer, config, group, teachers)
        run = Run(job, data.features, data.dev_examples)

        def end_of_epoch(epoch: int) -> None:
            if group.rank == 0:
                qa.save_pretrained(run.folder)
            if data.dev_examples:
                run.start_phase(f"epoch {epoch} evaluation", dev_windows)
                run.log_evaluation(epoch, evaluate_epoch(run, qa, data.dev_examples))

        with run.open(resume, allow_other_machine):
            run.report_skipped(data.skipped)
            epochs = batches_of(data.features, config)
            train_epochs(run, epochs, partial(train_step, job), end_of_epoch)
        return run.metrics


class TrainingData(NamedTuple):
    features: list[Feature]  # labelled windows
    dev_examples: list[Example]  # empty: no evaluation
    skipped: list[DataError]  # the errors of the questions that were left out


def load_data(config: TrainingConfig, tokenizer: Tokenizer) -> TrainingData:
    """Read, sample and label the training data, and read the dev data."""
    skipped: list[DataError] = []
    collected = skipped if config.skip_invalid else None  # None: an error ends the run
    every = examples = load_squad(config.train_file, "train", collected)
    if config.max_train_examples is not None and config.max_train_examples < len(examples):
        examples = random.Random(config.seed).sample(examples, config.max_train_examples)
    if config.negatives:
        kinds = kinds_with(config.misleading)
        made = make_negatives(examples, config.negatives, config.seed, every, kinds)
        examples = [*examples, *chain(*made.values())]
    windows = asdict(config.window_settings)
    features = prepare_train_features(examples, tokenizer, skipped=collected, **windows)
    dev_examples, misplaced = [], list[DataError]()
    if config.dev_file:
        dev_examples = load_squad(config.dev_file, "validation", misplaced=misplaced)
    if misplaced:
        warnings.warn(f"answers are scored by their text: {summary(misplaced)}", stacklevel=2)
    return TrainingData(features, dev_examples, skipped)


def batches_of(features: Sequence[Feature], config: TrainingConfig) -> list[Batches]:
    """The batches of each epoch, in the order of the steps. The last epoch may be cut short."""
    steps_per_epoch = math.ceil(len(features) / config.batch_size)
    total_steps = max(1, round(config.epochs * steps_per_epoch))
    epochs: list[Batches] = []
    for start in range(0, total_steps, steps_per_epoch):
        seed = config.seed + len(epochs) + 1
        batches = length_batches(features, config.batch_size, seed)[: total_steps - start]
        epochs.append([[features[k] for k in batch] for batch in batches])
    return epochs


def evaluate_epoch(
    run: Run, qa: QuestionAnswerer, examples: Sequence[Example]
) -> dict[str, float | int]:
    """The metrics of the predictions, as `evaluate` gives them.

    If some questions have no answer, "" may be predicted. Each process answers its share of the
    questions.
    """

    def on_batch(windows: int) -> None:
        run.advance(windows)
        run.raise_if_stopped()

    group = run.job.group
    settings = AnswerSettings(1, run.job.config.max_answer_len)
    no_answer = any(example.is_impossible for example in examples)
    texts: dict[str, str] = {}
    odds: dict[str, float] = {}
    for reading in qa.read(group.share(examples), on_batch):
        [best] = answers_of(reading, settings)
        texts[reading.example.id] = best.answer
        if no_answer:
            odds[reading.example.id] = null_odds(reading, best)
    for other_texts, other_odds in group.gather((texts, odds)):
        texts |= other_texts
        odds |= other_odds
    return metrics_of(texts, odds, examples, qa.calibration.null_threshold)
