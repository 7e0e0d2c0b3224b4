"""The whole arrow: question and context in, `Answer` out.

text -> windows -> encoder -> S and E -> spans -> the context's own characters. BERT
(arXiv:1810.04805v2) section 4.2.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import torch

from .errors import InputError, PretrainedError
from .features import Feature, collate, length_batches, prepare_features
from .model import Attention
from .qa import BertForQuestionAnswering
from .spans import WindowLogits, best_spans
from .squad import Example
from .tokenization import Tokenizer

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A span of the context: `context[start:end] == answer`, always."""

    answer: str
    score: float  # probability among all legal spans of all windows, 0 to 1
    start: int  # code points
    end: int  # code points, exclusive
    start_logit: float  # S . T_i of the span's first token, in the window that speaks for it
    end_logit: float  # E . T_j of its last token


def choose_device(name: str) -> torch.device:
    """A device by name; "auto" is the GPU where there is one. Raises `InputError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"device={name!r} cannot be used: {reason}") from error


def choose_precision(name: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """A precision by name; "auto" is bfloat16 where the processor computes in it, else float32.

    Where it does not, bfloat16 is emulated, and slower than float32. Raises `InputError`.
    """
    if name == "fp32" or name == "bf16":
        return name
    if name != "auto":
        raise InputError(f"precision={name!r}: expected 'auto', 'fp32' or 'bf16'")
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # the oldest torch that this package asks for cannot tell
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return "fp32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"


class QuestionAnswerer:
    """A model, its tokenizer, and how long contexts are cut."""

    def __init__(
        self,
        model: BertForQuestionAnswering,
        tokenizer: Tokenizer,
        max_length: int | None = None,
        doc_stride: int | None = None,
        batch_size: int = 32,
        precision: Precision = "fp32",
    ) -> None:
        """`max_length` (None: 384, or the model's positions where it has fewer) and `doc_stride`
        are those of `prepare_features`; `precision` "bf16" runs the encoder under autocast.

        Raises `InputError` for a setting out of range, `PretrainedError` when the model cannot
        read what the tokenizer writes.
        """
        config = model.config
        if max_length is None:
            max_length = min(384, config.max_position_embeddings)
        if max_length > config.max_position_embeddings:
            raise InputError(
                f"max_length={max_length}, but this model has "
                f"{config.max_position_embeddings} positions"
            )
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: expected 1 or more")
        choose_precision(precision, torch.device("cpu"))  # is it a name of one?
        if tokenizer.vocab_size > config.vocab_size:
            raise PretrainedError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, but the model has embeddings "
                f"for {config.vocab_size}"
            )
        if config.type_vocab_size < 2:
            raise PretrainedError("type_vocab_size=1: question and context need a segment each")
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.doc_stride = doc_stride
        self.batch_size = batch_size
        self.precision = precision

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        attention: Attention = "sdpa",
        device: str = "cpu",
        max_length: int | None = None,
        doc_stride: int | None = None,
        precision: Precision = "fp32",
    ) -> "QuestionAnswerer":
        """From a folder or hub id that holds a trained span head. Raises `PretrainedError`."""
        chosen = choose_device(device)
        model = BertForQuestionAnswering.from_pretrained(source, attention).to(chosen)
        tokenizer = Tokenizer.from_pretrained(source)
        return cls(model, tokenizer, max_length, doc_stride, precision=precision)

    @overload
    def __call__(
        self, question: str, context: str, top_k: Literal[1] = 1, max_answer_len: int = 30
    ) -> Answer: ...

    @overload
    def __call__(
        self, question: str, context: str, top_k: int, max_answer_len: int = 30
    ) -> Answer | list[Answer]: ...

    def __call__(
        self, question: str, context: str, top_k: int = 1, max_answer_len: int = 30
    ) -> Answer | list[Answer]:
        """The best answer, or for `top_k` > 1 a list: the k best, or all when there are fewer.

        `max_answer_len` counts tokens. Raises `InputError` for a question or a context without
        words, and for a question too long for a window.
        """
        for name, text in (("question", question), ("context", context)):
            if not isinstance(text, str):
                raise InputError(f"the {name} is a {type(text).__name__}; expected a string")
        if top_k < 1:
            raise InputError(f"top_k={top_k}: expected 1 or more")
        answers = next(self.n_best([Example("", question, context)], top_k, max_answer_len))
        return answers if top_k > 1 else answers[0]

    def n_best(
        self,
        examples: Sequence[Example],
        n_best: int = 20,
        max_answer_len: int = 30,
        on_batch: Callable[[int], None] = lambda windows: None,
    ) -> Iterator[list[Answer]]:
        """For each example, in order, its `n_best` answers, best first.

        `on_batch` is told how many windows have just been read. Raises as `__call__` does.
        """
        features = prepare_features(examples, self.tokenizer, self.max_length, self.doc_stride)
        logits = self.logits(features, on_batch)
        k = 0
        for example in examples:
            windows: list[WindowLogits] = []
            while k < len(features) and (not windows or features[k].window_index):
                windows.append(logits[k])
                k += 1
            spans = best_spans(windows, n_best, max_answer_len)
            offsets = features[k - 1].context.offsets
            answers = []
            for span in spans:
                start, end = int(offsets[span.token_start, 0]), int(offsets[span.token_end, 1])
                text = example.context[start:end]
                answers.append(
                    Answer(text, span.score, start, end, span.start_logit, span.end_logit)
                )
            yield answers

    @torch.inference_mode()
    def logits(
        self, features: Sequence[Feature], on_batch: Callable[[int], None] = lambda windows: None
    ) -> list[WindowLogits]:
        """The logits of each window's context, in the order of the windows; float32."""
        self.model.eval()  # between epochs it comes from training
        device = next(self.model.parameters()).device
        mixed = choose_precision(self.precision, device) == "bf16"
        found: dict[int, WindowLogits] = {}
        for indices in length_batches(features, self.batch_size):
            chosen = [features[k] for k in indices]
            batch = collate(chosen, self.tokenizer.pad_id).to(device)
            with torch.autocast(device.type, torch.bfloat16, mixed):
                out = self.model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
            start = out.start_logits.float().cpu().numpy()  # (B, T)
            end = out.end_logits.float().cpu().numpy()
            for row, (k, feature) in enumerate(zip(indices, chosen, strict=True)):
                context = feature.context_slice
                found[k] = WindowLogits(feature.token_start, start[row, context], end[row, context])
            on_batch(len(indices))
        return [found[k] for k in range(len(features))]
