"""Masked language modelling: continued pretraining on the task's text.

BERT (arXiv:1810.04805v2) section 3.1, "Task #1: Masked LM", and appendix A.1. Before fine-tuning,
this may help an encoder to learn the task (arXiv:2004.10964v3, section 4). `checkpoints/README.md`
has our own results.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import pretrained
from ..batches import collate, length_batches
from ..data.examples import Example, load_squad
from ..engine import require_fit
from ..errors import DataError, InputError, PretrainedError
from ..families import FAMILIES
from ..fast.processor import autocast
from ..features import Feature, prepare_train_features
from ..files import complete_files
from ..hub import pinned
from ..model import Bert
from ..tokenization import Tokenizer
from ..tokenizer_files import TOKENIZER_FILES
from .config import TrainingConfig
from .job import Job, StepResult
from .loop import Batches, train_epochs
from .optimizer import make_optimizer
from .run import Run, started

# The shares of section 3.1.
CHOSEN = 0.15  # the share of all tokens that the model must guess
HIDDEN = 0.8  # the share of the chosen tokens that become [MASK]
REPLACED = 0.1  # the share that become a random token; the others do not change


def mask_tokens(
    input_ids: Tensor, special_ids: Sequence[int], mask_id: int, vocab_size: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Choose 15 % of the tokens; most become [MASK]. The same `seed` gives the same result.

    Returns the model's input, (B, T), and which tokens it must guess: bool, (B, T).
    Special tokens, including padding, are never chosen. Of the chosen tokens, 80 % become [MASK],
    10 % become a random token, and 10 % do not change. Not all become [MASK], because fine-tuning
    shows no [MASK].
    """
    generator = torch.Generator().manual_seed(seed)
    chosen, how = torch.rand((2, *input_ids.shape), generator=generator)  # two of (B, T)
    words = torch.randint(vocab_size, input_ids.shape, generator=generator)
    is_chosen = (chosen < CHOSEN) & ~torch.isin(input_ids, torch.tensor(special_ids))
    shown = input_ids.masked_fill(is_chosen & (how < HIDDEN), mask_id)
    replaced = is_chosen & (how >= HIDDEN) & (how < HIDDEN + REPLACED)
    return torch.where(replaced, words, shown), is_chosen


class MaskedLMHead(nn.Module):
    """Hidden states and word embeddings -> a logit for each token of the vocabulary.

    As in google-research/bert: a linear layer, GELU and LayerNorm, then the product with the word
    embeddings, plus a bias for each token.
    """

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        vocab_size, width = bert.embeddings.word.weight.shape
        self.dense = nn.Linear(bert.config.hidden_size, width)
        bert.initialize(self.dense)
        self.norm = nn.LayerNorm(width, eps=bert.config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """States (K, H) of K tokens, and word embeddings (V, width) -> logits (K, V)."""
        hidden = self.norm(F.gelu(self.dense(hidden)))
        return F.linear(hidden, words, self.bias)


class MaskedLM(nn.Module):
    """An encoder and a new head, because saved encoders have no head."""

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        self.config = bert.config
        self.bert = bert
        self.head = MaskedLMHead(bert)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, chosen: Tensor
    ) -> Tensor:
        """(B, T) token ids -> (K, V) logits at the K chosen places, row after row."""
        hidden = self.bert(input_ids, attention_mask, token_type_ids).hidden_states[-1]
        logits: Tensor = self.head(hidden[chosen], self.bert.embeddings.word.weight)
        return logits


def masked_lm_step(job: Job, windows: Sequence[Feature], seed: int) -> StepResult:
    """Take one optimizer step on a batch, in passes of at most `max_tokens` padded tokens.

    The loss is the mean over all chosen tokens of the batch. Every process draws the masks of the
    whole batch with the same `seed`, and reads its share of the windows.
    """
    model, config, tokenizer = job.model, job.config, job.tokenizer
    assert config.max_tokens
    batch = collate(windows, tokenizer.pad_id, job.pad_multiple)
    names = tokenizer.special_tokens
    special = [tokenizer.backend.token_to_id(names[kind]) for kind in ("cls", "sep", "pad")]
    mask_id = tokenizer.backend.token_to_id(names["mask"])
    ids, chosen = mask_tokens(batch.input_ids, special, mask_id, tokenizer.vocab_size, seed)
    count = max(1, int(chosen.sum()))
    loss, finite = 0.0, True
    share = torch.tensor(job.group.share(range(len(windows))), dtype=torch.long)
    passes = torch.split(share, max(1, config.max_tokens // ids.shape[1]))
    for rows in passes if len(share) else ():  # a process may have no share of a small batch
        shown = (ids[rows], batch.attention_mask[rows], batch.token_type_ids[rows], chosen[rows])
        targets = batch.input_ids[rows][chosen[rows]].to(job.device)
        with autocast(job.device, config.precision):
            logits = model(*(tensor.to(job.device) for tensor in shown))  # (K, V)
        part_loss = F.cross_entropy(logits.float(), targets, reduction="sum") / count
        job.scaler.scale(part_loss).backward()  # type: ignore[no-untyped-call]
        loss += part_loss.item()
        finite = finite and bool(logits.isfinite().all())
    return job.take_step(loss, finite)


def adapt(config: TrainingConfig, resume: bool = False, allow_other_machine: bool = False) -> None:
    """Continue an encoder's pretraining on the passages of a data set.

    One epoch reads each passage once, together with one of its questions. Each epoch draws the
    questions anew. `config` has the same settings as for `train`, but dev data, negatives and
    teachers raise `InputError`, because masked language modelling has no use for them.

    The output folder then holds an encoder without a head, and the run's files. `train` can start
    from this encoder. Errors, stopping and resuming work as in `train`.

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
    >>> minibert.adapt(config)
    >>> (folder / "run" / "model.safetensors").exists()
    True
    >>> scratch.cleanup()
    """
    for name in ("dev_file", "negatives", "misleading", "teachers"):
        if value := getattr(config, name):
            raise InputError(f"{name}={value}: this setting is for train, not for adapt")
    with started(config, resume) as (config, device, group):
        assert config.attention
        revision = pinned(config.init, config.revision)
        model = MaskedLM(Bert.from_pretrained(config.init, config.attention, revision))
        model.to(device)
        tokenizer = Tokenizer.from_pretrained(config.init, revision)
        require_fit(model.config, tokenizer, config.max_length)
        if "mask" not in tokenizer.special_tokens:
            raise PretrainedError(
                f"{config.init}: the vocabulary has no mask token, such as [MASK]"
            )
        epochs, skipped = load_passages(config, tokenizer)
        # its dropout rate is not saved: fine-tuning uses the encoder's own rate again
        job = Job(model, make_optimizer(model, config, device), tokenizer, config, group)
        run = Run(job, [window for batches in epochs for batch in batches for window in batch])

        def step(windows: Sequence[Feature]) -> StepResult:
            seed = random.Random(f"{config.seed}, step {run.step}").getrandbits(63)
            return masked_lm_step(job, windows, seed)

        def end_of_epoch(epoch: int) -> None:
            if group.rank == 0:
                save_encoder(model.bert, tokenizer, run.folder)

        with run.open(resume, allow_other_machine):
            run.report_skipped(skipped)
            train_epochs(run, epochs, step, end_of_epoch)


def load_passages(
    config: TrainingConfig, tokenizer: Tokenizer
) -> tuple[list[Batches], list[DataError]]:
    """The batches of each epoch, and one error for each question that was left out."""
    skipped: list[DataError] = []
    collected = skipped if config.skip_invalid else None
    examples = load_squad(config.train_file, "train", collected)
    epochs, windows = [], asdict(config.window_settings)
    for epoch in range(1, math.ceil(config.epochs) + 1):
        seed = config.seed + epoch
        asked = one_question_each(examples, seed)[: config.max_train_examples]
        features = prepare_train_features(asked, tokenizer, skipped=collected, **windows)
        batches = length_batches(features, config.batch_size, seed)
        part = min(1.0, config.epochs - epoch + 1)  # the last epoch may be cut short
        batches = batches[: math.ceil(part * len(batches))]
        epochs.append([[features[k] for k in batch] for batch in batches])
    # several epochs may ask the same question
    return epochs, list({str(problem): problem for problem in skipped}.values())


def one_question_each(examples: Sequence[Example], seed: int) -> list[Example]:
    """The passages in random order. Each one comes with one of its questions."""
    by_context: dict[str, list[Example]] = {}
    for example in examples:
        by_context.setdefault(example.context, []).append(example)
    generator = random.Random(seed)
    chosen = [generator.choice(group) for group in by_context.values()]
    generator.shuffle(chosen)
    return chosen


def save_encoder(bert: Bert, tokenizer: Tokenizer, folder: Path) -> None:
    """Write an encoder without a head, in Hugging Face's format. The files appear when complete."""
    family = FAMILIES[bert.config.model_type]
    architecture = family.architecture.replace("ForQuestionAnswering", "Model")
    config = bert.config.to_dict() | {"architectures": [architecture]}
    tensors = {f"bert.{name}": t.detach().cpu() for name, t in bert.state_dict().items()}
    with complete_files(folder, TOKENIZER_FILES) as draft:
        pretrained.save_folder(draft, config, tensors)
        tokenizer.save_pretrained(draft)
