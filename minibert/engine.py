"""The engine: examples -> windows -> the model -> the logits of every window.

Outside of training, this is the only place where windows go through the model.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .batches import Batch, chunks, collate, token_batches
from .config import Attention, BertConfig
from .data.examples import Example
from .errors import InputError, PretrainedError
from .fast.processor import HALF, Precision, autocast, choose_precision, device_errors
from .fast.quantized import QuantizedLayer
from .fast.threads import side_by_side
from .fast.unpadded import UnpaddedBert
from .features import Feature, example_windows
from .graphemes import whole_graphemes
from .qa import BertForQuestionAnswering, QuestionAnsweringOutput
from .settings import UNCALIBRATED, Calibration, WindowSettings
from .spans import WindowLogits, least_null_logits
from .tokenization import Pieces, Tokenizer

OnBatch = Callable[[int], None]  # called with the number of windows that have just been read
OnProgress = Callable[[int, int], None]  # called with the number of windows read, and the total
Chunk = list[tuple[Example, list[Feature]]]  # examples with their windows


def ignore(*numbers: int) -> None:
    """The default `OnBatch` and `OnProgress`."""


# Questions and contexts with this many characters together are sorted by length and read as one
# chunk: about 600 SQuAD questions. A chunk of twice the size would save 1 % of the padded tokens,
# one of half the size costs 2 %.
CHUNK_CHARACTERS = 2**19
# The first chunk is this small, and each next one is twice as large: the first answers come soon.
# (With a quarter of this, 300 SQuAD questions have 4 % more padded tokens.)
FIRST_CHUNK_CHARACTERS = 2**17

ASCII_WORD = re.compile(
    "[0-9A-Za-z]"
)  # with every vocabulary, a word with such a character has a token

# Windows of full length in one pass. On two cores, 4 is among the fastest of 2 to 12 in every
# precision, with the C library's default settings. (With them, the library requests each larger
# block of memory from the kernel.)
BATCH_SIZE = 4
# The same on a GPU, by reading, not measured. A GPU computes a product in tiles of 128 x 128
# numbers, and each of its processors (108 on an A100, 132 on an H100) has one tile at a time
# (NVIDIA's "Matrix Multiplication Background User's Guide"). 32 windows are 12,288 tokens. So the
# smallest product of the bundled model, with 384 columns, has 288 tiles: each processor has work.
GPU_BATCH_SIZE = 32


PRECISION_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


@dataclass(frozen=True, slots=True)
class Reading:
    """An example that the model has read: its windows and their logits.

    The offsets of the context's pieces are widened to whole graphemes.
    """

    example: Example
    features: Sequence[Feature]
    windows: Sequence[WindowLogits]
    calibration: Calibration

    @property
    def pieces(self) -> Pieces:
        """The pieces of the context."""
        return self.features[0].context

    @property
    def null_logits(self) -> tuple[float, float]:
        """The start and end logit of "no answer"."""
        return least_null_logits(self.windows)


class Engine:
    """A model and its tokenizer, with the settings for reading."""

    def __init__(
        self,
        model: BertForQuestionAnswering,
        tokenizer: Tokenizer,
        window_settings: WindowSettings,
        batch_size: int | None = None,
        precision: Precision = "fp32",
        calibration: Calibration = UNCALIBRATED,
        reason: str = "",
        source: tuple[str | Path, str | None] | None = None,
    ) -> None:
        """In one pass, `batch_size` windows of full length go through the model, or more windows
        if they are shorter; None means 4 on a CPU and 32 on a GPU. With `precision` "bf16" or
        "fp16", a model with float32 weights runs under autocast. `reason` says why this precision
        was chosen, if the user did not choose it.

        Raises `InputError` for a setting out of range, and `PretrainedError` when the model cannot
        read the tokenizer's tokens.
        """
        require_fit(model.config, tokenizer, window_settings.max_length)
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size={batch_size}: expected 1 or more")
        self.model = model
        self.tokenizer = tokenizer
        self.window_settings = window_settings
        on_cpu = self.device.type == "cpu"
        self.batch_size = batch_size or (BATCH_SIZE if on_cpu else GPU_BATCH_SIZE)
        self.quantized = any(isinstance(part, QuantizedLayer) for part in model.modules())
        chosen = choose_precision(precision, self.device, float_weights=not self.quantized)
        # in which precision float32 weights compute
        self.autocast: Precision = chosen if chosen in HALF else "fp32"
        self.calibration = calibration
        self.reason = reason
        self.source = source  # folder or hub id, revision

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def precision(self) -> str:
        """The precision of the large matrix products: of the integers, autocast or the weights."""
        if self.quantized:
            return "int8"
        dtype = self.model.head.S.dtype
        return self.autocast if dtype == torch.float32 else PRECISION_NAMES.get(dtype, str(dtype))

    @property
    def attention(self) -> Attention:
        return self.model.bert.attention

    @property
    def name(self) -> str:
        """The name of the model's folder, or its hub id and revision."""
        if self.source is None:
            return "a model in memory"
        source, revision = self.source
        if Path(source).is_dir():  # the rest of the path says where, not which
            return Path(source).resolve().name
        return f"{source}@{revision}" if revision else str(source)

    @property
    def computes_with(self) -> str:
        """The chosen device, precision and attention."""
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.device}, {self.precision}{reason}, {self.attention} attention"

    def read(self, examples: Iterable[Example], on_batch: OnBatch = ignore) -> Iterator[Reading]:
        """Yield each example with the logits of its windows, in order.

        Raises `InputError` for a bad example. A list is checked before any work starts. An iterator
        is checked while it is read: the error comes after the readings of the examples before it.
        """
        if isinstance(examples, Sequence):
            self.require_readable(examples)

        def readings() -> Iterator[Reading]:
            for chunk in self._chunks(examples):
                logits = iter(self.logits([f for _, fs in chunk for f in fs], on_batch))
                for example, features in chunk:
                    windows = list(islice(logits, len(features)))
                    yield Reading(example, features, windows, self.calibration)

        return readings()

    def require_readable(self, examples: Iterable[Example]) -> None:
        """Raise the `InputError` that reading these examples would raise, without reading them.

        Only a few texts are tokenized: a text with an ASCII letter or digit certainly has a word,
        and a short ASCII question certainly leaves room for the context. Nothing is stored.
        """
        settings = self.window_settings
        # a question of up to this length leaves room for [CLS], separators and stride + 1 tokens
        fits = settings.max_length - (self.tokenizer.separators + 2) - (settings.stride() + 1)

        def surely_readable(question: str, context: str) -> bool:
            # an ASCII character has at most two tokens: itself, and one for the space before it
            short = question.isascii() and 2 * len(question) <= fits
            return short and all(map(ASCII_WORD.search, (question, context)))

        for chunk in chunks(examples, CHUNK_CHARACTERS, CHUNK_CHARACTERS):
            rest = [e for e in chunk if not surely_readable(e.question, e.context)]
            questions = self.tokenizer.encode_batch([example.question for example in rest])
            doubtful = [
                example
                for example, question in zip(rest, questions, strict=True)
                if question.blank.all()
                or len(question) > fits
                or not ASCII_WORD.search(example.context)
            ]
            for _ in self.windows_of(doubtful, {}):
                pass

    def _chunks(self, examples: Iterable[Example]) -> Iterator[Chunk]:
        """Examples with their windows, in chunks. An error comes after the examples before it."""
        contexts: dict[str, Pieces] = {}
        for chunk in chunks(examples, CHUNK_CHARACTERS, FIRST_CHUNK_CHARACTERS):
            readable: Chunk = []
            windows = self.windows_of(chunk, contexts)
            try:
                for example in chunk:
                    readable.append((example, next(windows)))
            except InputError:
                yield readable
                raise
            yield readable
            contexts = {
                chunk[-1].context: contexts[chunk[-1].context]
            }  # the next chunk may begin with it

    def windows_of(
        self, examples: Sequence[Example], contexts: dict[str, Pieces]
    ) -> Iterator[list[Feature]]:
        """`example_windows`, with the offsets of all pieces widened to whole graphemes."""
        new = list(dict.fromkeys(e.context for e in examples if e.context not in contexts))
        for text, pieces in zip(new, self.tokenizer.encode_batch(new), strict=True):
            contexts[text] = replace(pieces, offsets=whole_graphemes(text, pieces.offsets))
        return example_windows(examples, self.tokenizer, self.window_settings, contexts)

    def logits(self, features: Sequence[Feature], on_batch: OnBatch = ignore) -> list[WindowLogits]:
        """The logits of each window's context, in the order of the windows; float32."""
        # One array holds the logits of all contexts, and is made before the first pass. If each
        # pass kept a small array of its own, these would stay in memory between the large blocks
        # that the passes free. The C library could then not reuse the large blocks, and the
        # process would grow to several times its size.
        bounds = np.cumsum([0, *(f.token_end - f.token_start + 1 for f in features)]).tolist()
        kept = np.empty((2, bounds[-1]), dtype=np.float32)  # start and end logits
        nulls: list[tuple[float, float]] = [(math.nan, math.nan)] * len(features)

        def keep(indices: list[int], out: QuestionAnsweringOutput) -> None:
            logits = as_array(out.start_logits, out.end_logits)  # (2, B, T)
            for row, k in enumerate(indices):
                kept[:, bounds[k] : bounds[k + 1]] = logits[:, row, features[k].context_slice]
                nulls[k] = (float(logits[0, row, 0]), float(logits[1, row, 0]))

        self.forward(features, keep, on_batch)
        return [
            WindowLogits(feature.token_start, kept[0, a:b], kept[1, a:b], null)
            for feature, a, b, null in zip(features, bounds, bounds[1:], nulls, strict=False)
        ]

    def forward(
        self,
        features: Sequence[Feature],
        keep: Callable[[list[int], QuestionAnsweringOutput], None],
        on_batch: OnBatch = ignore,
        every_layer: bool = False,
        attentions: bool = False,
    ) -> None:
        """Send windows through the model, in batches of similar length.

        `keep` gets each batch's output, with the indices of its windows. With `every_layer` the
        output has the hidden states of all layers. With `attentions` it has the attention weights;
        this needs a model with "eager" attention. On a CPU with several threads, several passes run
        at the same time, and `keep` is called in each pass's thread.
        """
        # Lengths are multiples of 16, because oneDNN builds kernels for each shape. They never
        # exceed max_length.
        max_length = self.window_settings.max_length
        multiple = math.gcd(16, max_length)

        def read_pass(indices: list[int]) -> int:
            batch = collate([features[k] for k in indices], self.tokenizer.pad_id, multiple)
            with torch.inference_mode():
                keep(indices, self._forward(batch, every_layer, attentions))
            return len(indices)

        padded = not isinstance(self.model.bert, UnpaddedBert)
        passes = token_batches(features, self.batch_size * max_length, multiple, padded)
        on_cpu = self.device.type == "cpu"
        with eval_mode(self.model):
            for windows in (side_by_side if on_cpu else map)(read_pass, passes):
                on_batch(windows)

    def _forward(
        self, batch: Batch, every_layer: bool, attentions: bool
    ) -> QuestionAnsweringOutput:
        """The model's output for a batch whose last window is its shortest."""
        ids, mask, segments = batch.to(self.device)[:3]
        full = bool(batch.attention_mask[-1].all())  # true for most windows of a long context
        as_stored = self.model.head.S.dtype != torch.float32
        precision = "fp32" if as_stored else self.autocast
        with device_errors(self.device), autocast(self.device, precision):
            out: QuestionAnsweringOutput = self.model(
                ids,
                None if full else mask,
                segments,
                output_attentions=attentions,
                output_hidden_states=every_layer,
            )
        return out


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off. Afterwards each part is in the mode that it was in before."""
    parts = [part for part in model.modules() if part.training]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True


def as_array(*tensors: torch.Tensor) -> npt.NDArray[Any]:
    """Tensors of one shape, stacked: (len(tensors), ...), float32."""
    array: npt.NDArray[Any] = torch.stack(tensors).float().cpu().numpy()
    return array


def require_fit(config: BertConfig, tokenizer: Tokenizer, max_length: int) -> None:
    """Raise an error when a model of this configuration cannot read the tokenizer's windows.

    `InputError`: the windows have more tokens (`max_length`) than the model has positions.
    `PretrainedError`: the model cannot read the tokens.
    """
    if max_length > config.max_length:
        raise InputError(
            f"max_length={max_length}, but this model has {config.max_length} positions"
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise PretrainedError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model has embeddings "
            f"for {config.vocab_size}"
        )
    if (
        config.first_position and tokenizer.pad_id != config.pad_token_id
    ):  # positions start after it
        raise PretrainedError(
            f"the tokenizer's padding is token {tokenizer.pad_id} "
            f"({tokenizer.special_tokens['pad']}), the model's is {config.pad_token_id}: they are "
            "not from one family"
        )
    if 0 < config.type_vocab_size <= tokenizer.context_segment:
        raise PretrainedError(
            f"type_vocab_size={config.type_vocab_size}: question and context need one segment each"
        )
