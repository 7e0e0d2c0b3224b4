"""Masked language modelling: BERT's pretraining, gone on with on the text of a task.

BERT (arXiv:1810.04805v2) section 3.1, "Task #1: Masked LM", and appendix A.1. An encoder that has
read the task's passages so before it is fine-tuned may learn the task better (arXiv:2004.10964v3,
section 4); what it brought here: `checkpoints/README.md`.
"""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import pretrained
from ..batches import collate, length_batches
from ..data.examples import Example, load_squad
from ..engine import require_fit
from ..errors import DataError, InputError
from ..families import FAMILIES
from ..fast.dropout import Dropout
from ..fast.processor import choose_device, device_errors
from ..features import Feature, prepare_train_features
from ..files import complete_files
from ..model import Bert
from ..tokenization import Tokenizer
from .config import TrainingConfig, resolved
from .finetune import PAD_MULTIPLE, StepResult, apply_gradients, identity_of, non_finite
from .optimizer import make_optimizer, schedule
from .parallel import SINGLE_PROCESS, ProcessGroup, process_group
from .run import Run, require_folder

CHOSEN = 0.15  # of the tokens are to be guessed (section 3.1); of these
HIDDEN = 0.8  # become [MASK],
REPLACED = 0.1  # become a random token, and the others stay as they are


class MaskedTokens(NamedTuple):
    """What the model is shown, and what it must guess."""

    input_ids: Tensor  # (B, T)
    chosen: Tensor  # (B, T), bool


def mask_tokens(
    input_ids: Tensor, special_ids: Sequence[int], mask_id: int, vocab_size: int, seed: int
) -> MaskedTokens:
    """Choose 15 % of the tokens, and hide most of them: the same ones for the same `seed`.

    Special tokens, padding among them, are never chosen. A chosen token becomes [MASK] in 80 % of
    all cases and any token of the vocabulary in 10 %, since fine-tuning shows no [MASK].
    """
    generator = torch.Generator().manual_seed(seed)
    chosen, how = torch.rand((2, *input_ids.shape), generator=generator)  # two of (B, T)
    words = torch.randint(vocab_size, input_ids.shape, generator=generator)
    is_chosen = (chosen < CHOSEN) & ~torch.isin(input_ids, torch.tensor(special_ids))
    shown = input_ids.masked_fill(is_chosen & (how < HIDDEN), mask_id)
    replaced = is_chosen & (how >= HIDDEN) & (how < HIDDEN + REPLACED)
    return MaskedTokens(torch.where(replaced, words, shown), is_chosen)


class MaskedLMHead(nn.Module):
    """Hidden states -> a logit for each token of the vocabulary, by the word embeddings.

    As in google-research/bert: a linear map, GELU and LayerNorm, then the product with the
    embeddings and a bias for each token.
    """

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        vocab_size, width = bert.embeddings.word.weight.shape
        self.dense = nn.Linear(bert.config.hidden_size, width)
        bert.initialize(self.dense)
        self.norm = nn.LayerNorm(width, eps=bert.config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """(K, H) hidden states and (V, H) embeddings -> (K, V) logits."""
        hidden = self.norm(F.gelu(self.dense(hidden)))
        return F.linear(hidden, words, self.bias)


class MaskedLM(nn.Module):
    """An encoder and such a head; a new one, since checkpoints are saved without."""

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        self.config = bert.config
        self.bert = bert
        self.head = MaskedLMHead(bert)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, chosen: Tensor
    ) -> Tensor:
        """The logits at the K chosen places, row after row: (K, V)."""
        hidden = self.bert(input_ids, attention_mask, token_type_ids).hidden_states[-1]
        logits: Tensor = self.head(hidden[chosen], self.bert.embeddings.word.weight)
        return logits


def masked_lm_step(
    model: MaskedLM,
    optimizer: torch.optim.Optimizer,
    windows: Sequence[Feature],
    tokenizer: Tokenizer,
    config: TrainingConfig,
    seed: int,
    group: ProcessGroup = SINGLE_PROCESS,
) -> StepResult:
    """One step of the optimizer on one batch, in passes of at most `config.max_tokens`.

    The loss is the mean over all chosen tokens of the batch. Of several processes, each reads its
    share of the windows, but all choose tokens alike.
    """
    device = next(model.parameters()).device
    config = resolved(config, device)
    assert config.max_tokens
    batch = collate(windows, tokenizer.pad_id, math.gcd(PAD_MULTIPLE, config.max_length))
    names = tokenizer.special_tokens
    special = [tokenizer.backend.token_to_id(names[kind]) for kind in ("cls", "sep", "pad")]
    mask_id = tokenizer.backend.token_to_id(names["mask"])
    ids, chosen = mask_tokens(batch.input_ids, special, mask_id, tokenizer.vocab_size, seed)
    count = max(1, int(chosen.sum()))
    loss, finite = 0.0, True
    share = torch.tensor(group.share(range(len(windows))), dtype=torch.long)
    passes = torch.split(share, max(1, config.max_tokens // ids.shape[1]))
    for rows in passes if len(share) else ():  # fewer windows than processes: none for this one
        shown = (ids[rows], batch.attention_mask[rows], batch.token_type_ids[rows], chosen[rows])
        targets = batch.input_ids[rows][chosen[rows]].to(device)
        with torch.autocast(device.type, torch.bfloat16, config.precision == "bf16"):
            logits = model(*(tensor.to(device) for tensor in shown))
        part_loss = F.cross_entropy(logits.float(), targets, reduction="sum") / count
        part_loss.backward()  # type: ignore[no-untyped-call]
        loss += part_loss.item()
        finite = finite and bool(logits.isfinite().all())
    return apply_gradients(model, optimizer, loss, finite, config.max_grad_norm, group)


def adapt(config: TrainingConfig, resume: bool = False, allow_other_machine: bool = False) -> None:
    """Go on with an encoder's pretraining on the passages of a data set, each with one of its
    questions.

    An epoch is once over the passages, and each has another question in each. `config` is that of
    `train`, whose settings hold here, but that there are no dev data, negatives or teachers
    (`InputError` for any). The output folder then holds an encoder without a head, which `train`
    begins with, beside the run's files. Raises, stops and resumes as `train` does.
    """
    for name in ("dev_file", "negatives", "teachers"):
        if getattr(config, name):
            raise InputError(f"{name}={getattr(config, name)}: for training, not for this")
    device = choose_device(config.device)
    with process_group(device) as group, device_errors(device):
        try:
            _adapt(resolved(config, device), resume, allow_other_machine, device, group)
        except OSError as error:  # a disk that has filled up on the way
            raise InputError(f"{config.output_dir}: {error}") from error


def _adapt(
    config: TrainingConfig,
    resume: bool,
    allow_other_machine: bool,
    device: torch.device,
    group: ProcessGroup,
) -> None:
    folder = Path(config.output_dir)
    require_folder(folder, resume)
    assert config.attention
    torch.manual_seed(config.seed)
    model = MaskedLM(Bert.from_pretrained(config.init, config.attention, config.revision))
    model.to(device)
    for module in model.modules():
        if isinstance(module, Dropout) and config.dropout is not None:
            module.p = config.dropout  # here alone: fine-tuning has the encoder's own again
    tokenizer = Tokenizer.from_pretrained(config.init, config.revision)
    require_fit(model.config, tokenizer)
    epochs, skipped = load_passages(config, tokenizer)
    optimizer = make_optimizer(model, config, device)
    every_window = [window for batches in epochs for batch in batches for window in batch]
    identity = identity_of(config, model, every_window, [], group)
    if group.rank > 0:
        torch.manual_seed(config.seed + group.rank)
    run = Run(folder, identity, model, optimizer, group, config.keep_checkpoints)
    if resume:
        run.restore(allow_other_machine)

    total_steps = sum(map(len, epochs))
    warmup_steps = round(config.warmup_ratio * total_steps)
    with run.open(config.progress):
        run.announce(f"{len(every_window):,} windows, {total_steps:,} steps")
        run.report_skipped(skipped)
        first_step = 0
        for epoch, batches in enumerate(epochs, start=1):
            to_do = batches[max(0, run.step - first_step) :]
            first_step += len(batches)
            if not to_do:
                continue
            run.start_phase(f"epoch {epoch}", sum(map(len, to_do)))
            model.train()
            for windows in to_do:
                rate = config.learning_rate * schedule(run.step, warmup_steps, total_steps)
                for param_group in optimizer.param_groups:
                    param_group["lr"] = rate
                seed = random.Random(f"{config.seed}, step {run.step}").getrandbits(63)
                result = masked_lm_step(model, optimizer, windows, tokenizer, config, seed, group)
                if not result.finite:
                    raise non_finite(run, result, windows)
                run.log_step(epoch, len(windows), result.figures(rate))
                run.save_if_due(config.checkpoint_every)
            if group.rank == 0:
                save_encoder(model.bert, tokenizer, folder)
            run.epochs_done = epoch
            run.save()


def load_passages(
    config: TrainingConfig, tokenizer: Tokenizer
) -> tuple[list[list[list[Feature]]], list[DataError]]:
    """The batches of each epoch, and what is wrong with the questions that were left out."""
    skipped: list[DataError] = []
    collected = skipped if config.skip_invalid else None
    examples = load_squad(config.train_file, "train", collected)
    epochs = []
    for epoch in range(1, math.ceil(config.epochs) + 1):
        asked = one_question_each(examples, config.seed + epoch)[: config.max_train_examples]
        features = prepare_train_features(
            asked, tokenizer, config.max_length, config.doc_stride, collected
        )
        batches = length_batches(features, config.batch_size, config.seed + epoch)
        part = min(1.0, config.epochs - epoch + 1)  # of the last epoch
        epochs.append(
            [[features[k] for k in batch] for batch in batches[: math.ceil(part * len(batches))]]
        )
    return epochs, skipped


def one_question_each(examples: Sequence[Example], seed: int) -> list[Example]:
    """The passages in a random order, each with one of its questions."""
    by_context: dict[str, list[Example]] = {}
    for example in examples:
        by_context.setdefault(example.context, []).append(example)
    generator = random.Random(seed)
    chosen = [generator.choice(group) for group in by_context.values()]
    generator.shuffle(chosen)
    return chosen


def save_encoder(bert: Bert, tokenizer: Tokenizer, folder: Path) -> None:
    """Write an encoder without a head, in Hugging Face's format: all of it or nothing."""
    family = FAMILIES[bert.config.model_type]
    architecture = family.architecture.replace("ForQuestionAnswering", "Model")
    config = bert.config.to_dict() | {"architectures": [architecture]}
    tensors = {f"bert.{name}": t.detach().cpu() for name, t in bert.state_dict().items()}
    with complete_files(folder) as draft:
        pretrained.save_folder(draft, config, tensors)
        tokenizer.save_pretrained(draft)
