"""The whole arrow: question and context in, `Answer` out.

text -> windows -> encoder -> S and E -> spans -> the context's own characters. BERT
(arXiv:1810.04805v2) section 4.2.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import regex
import torch

from .batches import Batch, chunks, collate, token_batches
from .config import Attention, BertConfig
from .data.examples import Example
from .errors import InputError, PretrainedError
from .fast.linear import fuse
from .fast.processor import (
    Precision,
    choose_device,
    choose_precision,
    device_errors,
    processor_has,
)
from .fast.quantized import QuantizedLayer, quantize
from .fast.threads import side_by_side
from .features import Feature, example_windows
from .files import complete_files
from .pretrained import prefix_errors, read_config
from .qa import BertForQuestionAnswering
from .settings import MAX_QUESTION_LEN, UNCALIBRATED, Calibration
from .spans import WindowLogits, best_spans, least_null_logits, text_scores
from .tokenization import Pieces, Tokenizer

if TYPE_CHECKING:
    from .explain.explanation import Explanation

Chunk = list[tuple[Example, list[Feature]]]  # examples that are read at once, with their windows

# The checkpoint that comes with the package: MiniLM, fine-tuned on SQuAD v1.1.
BUNDLED = Path(__file__).parent / "checkpoints" / "minilm-squad"

# Questions and contexts of so many characters together are sorted by length and read at once: about
# 600 SQuAD questions. Twice as many would save 1 % of the padded tokens, half as many cost 2 %.
CHUNK_CHARACTERS = 2**19
# The first chunk is so small, and each next one twice as large: the first answers come soon. (A
# quarter of that, and 300 SQuAD questions have 4 % more padded tokens.)
FIRST_CHUNK_CHARACTERS = 2**17

# Runs of characters in which several may make one letter, and a letter. Each run, with an ASCII
# character on either side, begins and ends where a letter does.
NOT_ASCII = re.compile(r"[^\x00-\x7f](?:[\x00-\x7f]?[^\x00-\x7f])*")
GRAPHEME = regex.compile(r"\X")

ASCII_WORD = re.compile("[0-9A-Za-z]")  # of these every vocabulary makes a token

# Windows of full length that a pass reads: among the fastest of 2 to 12 in every precision, on two
# cores, as the C library keeps memory by default: larger blocks it takes from the kernel anew.
BATCH_SIZE = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """A span of the context: `context[start:end] == answer`, always.

    Where "no answer" may be the answer, it is one too: then `answer` is "", start = end = 0, and
    the logits are those of [CLS]. A span of a context is never empty.
    """

    answer: str
    score: float  # probability among all candidates of all windows, 0 to 1
    start: int  # code points
    end: int  # code points, exclusive
    start_logit: float  # S . T_i of its first token, in the window that shows the most around it
    end_logit: float  # E . T_j of its last token
    # Where asked for, the probability of the text, wherever it stands: see `spans.text_scores`.
    text_score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields that have a value, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class PassageAnswer(Answer):
    """An answer of `best_of`: `passages[passage][start:end] == answer`."""

    passage: int | None = None  # which one it is of, counted from 0; None for "no answer"


class Reading(NamedTuple):
    """An example that the model has read."""

    example: Example
    pieces: Pieces  # of the context
    offsets: npt.NDArray[Any]  # (T, 2): where each piece stands, widened to whole graphemes
    windows: list[WindowLogits]

    @property
    def null_logits(self) -> tuple[float, float]:
        """Of "no answer": the least sum that a window gives to it."""
        return least_null_logits(self.windows)


class QuestionAnswerer:
    """A model, its tokenizer, and how long texts are cut."""

    def __init__(
        self,
        model: BertForQuestionAnswering,
        tokenizer: Tokenizer,
        max_length: int | None = None,
        doc_stride: int | None = None,
        max_question_len: int | None = MAX_QUESTION_LEN,
        batch_size: int = BATCH_SIZE,
        precision: Precision = "fp32",
        calibration: Calibration = UNCALIBRATED,
    ) -> None:
        """`max_length` (None: 384, or less where model or tokenizer allow less), `doc_stride` and
        `max_question_len` are those of `prepare_features`. `batch_size` windows of `max_length` go
        through the model at once, and more of shorter ones. With `precision` "bf16" a model whose
        weights are float32 runs under autocast.

        Raises `InputError` for a setting out of range, `PretrainedError` when the model cannot
        read what the tokenizer writes.
        """
        config = model.config
        if max_length is None:
            max_length = min(384, config.max_length, tokenizer.max_length or 384)
        if max_length > config.max_length:
            raise InputError(
                f"max_length={max_length}, but this model has {config.max_length} positions"
            )
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: expected 1 or more")
        require_fit(config, tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.doc_stride = doc_stride
        self.max_question_len = max_question_len
        self.batch_size = batch_size
        quantized = any(isinstance(part, QuantizedLayer) for part in model.modules())
        floats = choose_precision(precision, self.device, float_weights=not quantized)
        self.precision = "int8" if quantized else floats
        self.calibration = calibration

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = BUNDLED,
        attention: Attention | None = None,
        device: str = "cpu",
        max_length: int | None = None,
        doc_stride: int | None = None,
        precision: Precision = "auto",
        revision: str | None = None,
        tokenizer: str | Path | Tokenizer | None = None,
    ) -> "QuestionAnswerer":
        """From a folder or hub id that holds a trained span head; by default the bundled one.

        `revision` is the hub id's branch, tag or commit. `tokenizer` is a `Tokenizer`, or the
        folder or hub id to load one from (its newest revision); None: the one beside the model.

        With bfloat16 the weights are converted too. On a CPU `fuse`, for "int8" `quantize`, then
        has the layers compute by faster kernels, with copies of the weights: the model can't be
        trained.
        `attention` None is the faster one: "sdpa", but for bfloat16 on a CPU without matrix
        instructions (AMX). The calibration is the one stored there, if any. Raises
        `PretrainedError`, and `InputError` for a device that cannot be used.
        """
        chosen = choose_device(device)
        computed = choose_precision(precision, chosen)
        half = computed == "bf16"
        if attention is None:
            slow = half and chosen.type == "cpu" and not processor_has("amx_bf16")
            attention = "eager" if slow else "sdpa"
        model = BertForQuestionAnswering.from_pretrained(source, attention, revision=revision)
        with device_errors(chosen):
            model.to(chosen, torch.bfloat16 if half else torch.float32)
        if computed == "int8":
            quantize(model)
        elif chosen.type == "cpu":
            fuse(model)
        if tokenizer is None:
            tokenizer = Tokenizer.from_pretrained(source, revision)
        elif not isinstance(tokenizer, Tokenizer):
            tokenizer = Tokenizer.from_pretrained(tokenizer)
        with prefix_errors(source):
            calibration = stored_calibration(read_config(source, revision))
            return cls(
                model,
                tokenizer,
                max_length,
                doc_stride,
                precision=precision,
                calibration=calibration,
            )

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def attention(self) -> Attention:
        return self.model.bert.attention

    @property
    def computes_with(self) -> str:
        """Device, precision and attention, as they were chosen."""
        return f"{self.device}, {self.precision}, {self.attention} attention"

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model and tokenizer, float32, in Hugging Face's format: all of it or nothing."""
        with complete_files(folder) as draft:
            self.model.save_pretrained(draft)
            self.tokenizer.save_pretrained(draft)
            if self.calibration != UNCALIBRATED:
                path = draft / "config.json"
                config = json.loads(path.read_text(encoding="utf-8"))
                config["minibert"] = asdict(self.calibration)  # which transformers ignores
                path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @overload
    def __call__(
        self,
        question: str,
        context: str,
        top_k: Literal[1] = 1,
        max_answer_len: int = 30,
        handle_impossible_answer: bool = False,
        text_scores: bool = False,
    ) -> Answer: ...

    @overload
    def __call__(
        self,
        question: str,
        context: str,
        top_k: int,
        max_answer_len: int = 30,
        handle_impossible_answer: bool = False,
        text_scores: bool = False,
    ) -> Answer | list[Answer]: ...

    def __call__(
        self,
        question: str,
        context: str,
        top_k: int = 1,
        max_answer_len: int = 30,
        handle_impossible_answer: bool = False,
        text_scores: bool = False,
    ) -> Answer | list[Answer]:
        """The best answer, or for `top_k` > 1 a list: the k best, or all when there are fewer.

        `max_answer_len` counts tokens. With `handle_impossible_answer`, that the context holds no
        answer is one of the answers; how likely it must be, the model's calibration says. With
        `text_scores` each has a `text_score`. Raises
        `InputError` for a question or a context without words, and for a question too long for a
        window.
        """
        example = validated_example("", question, context)
        n_best = self.n_best(
            [example], top_k, max_answer_len, handle_impossible_answer, text_scores=text_scores
        )
        answers = next(n_best)[:top_k]
        return answers if top_k > 1 else answers[0]

    def explain(
        self,
        question: str,
        context: str,
        n_best: int = 10,
        max_answer_len: int = 30,
        handle_impossible_answer: bool = False,
        attribution: bool = True,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> "Explanation":
        """Why this answer: plain data, which a notebook shows as a page. See `minibert.explain`."""
        # it stands behind the reader in the order of modules: imported when it is asked for
        from .explain.explanation import explain

        return explain(
            self,
            question,
            context,
            n_best,
            max_answer_len,
            handle_impossible_answer,
            attribution,
            on_progress,
        )

    def answer_many(
        self,
        pairs: Iterable[tuple[str, str]],
        max_answer_len: int = 30,
        handle_impossible_answer: bool = False,
        on_batch: Callable[[int], None] = lambda windows: None,
        text_scores: bool = False,
    ) -> Iterator[Answer]:
        """The best answer to each (question, context), in their order.

        A list is checked before any work starts. An iterator is read as far ahead as a bounded
        buffer goes, and its bad item raises when it is reached, after the answers to those before
        it. Errors name the item by its index; otherwise as `__call__`. `on_batch` is told how many
        windows have just been read.
        """

        def examples() -> Iterator[Example]:
            for index, pair in enumerate(pairs):
                if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
                    raise InputError(f"item {index}: expected a question and a context")
                yield validated_example(f"item {index}", *pair)

        if isinstance(pairs, Sequence):
            self.require_readable(examples())
        n_best = self.n_best(
            examples(),
            1,
            max_answer_len,
            handle_impossible_answer,
            on_batch,
            text_scores=text_scores,
        )
        return (answers[0] for answers in n_best)

    def n_best(
        self,
        examples: Iterable[Example],
        n_best: int = 20,
        max_answer_len: int = 30,
        handle_impossible_answer: bool = False,
        on_batch: Callable[[int], None] = lambda windows: None,
        align_to_words: bool = False,
        text_scores: bool = False,
    ) -> Iterator[list[Answer]]:
        """For each example, in order, its `n_best` answers, best first.

        A list is checked before any work starts, an iterator as it is read: see `answer_many`.
        With `handle_impossible_answer` the answers always hold "no answer", as one more at the end
        where it isn't among the best. With `align_to_words` they are widened to whole words after
        scoring, and of those that become equal the best stays. With `text_scores` each
        has a `text_score`, which takes a little time. `on_batch` is told how many windows have just
        been read. Raises as `__call__` does.
        """
        if n_best < 1 or max_answer_len < 1:
            raise InputError(
                f"top_k={n_best}, max_answer_len={max_answer_len}: expected 1 or more of both"
            )
        return (
            self.answers_of(
                reading,
                n_best,
                max_answer_len,
                handle_impossible_answer,
                align_to_words,
                text_scores,
            )
            for reading in self.read(examples, on_batch)
        )

    def best_of(
        self,
        question: str,
        passages: Iterable[str],
        top_k: int = 5,
        max_answer_len: int = 30,
        on_batch: Callable[[int], None] = lambda windows: None,
    ) -> list[PassageAnswer]:
        """The best answers to one question in many passages, as a search brings them: at most
        `top_k`, best first.

        Each score is a probability over the spans of all passages together and "no answer": that
        none of them holds one. Its logit is the least that a window of any passage gives to it.
        Passages may be an iterator; what is kept of each is its `top_k` answers. Raises
        `InputError` as `answer_many` does, naming the passage, and where there is none.
        """
        if isinstance(passages, str):
            raise InputError("passages is a str: expected several, as a list of strings")
        if top_k < 1 or max_answer_len < 1:
            raise InputError(
                f"top_k={top_k}, max_answer_len={max_answer_len}: expected 1 or more of both"
            )

        def examples() -> Iterator[Example]:
            for index, passage in enumerate(passages):
                yield validated_example(f"passage {index}", question, passage)

        if isinstance(passages, Sequence):
            self.require_readable(examples())
        temperature, threshold = self.calibration.temperature, self.calibration.null_threshold
        best: list[tuple[float, PassageAnswer]] = []  # each with its logit
        log_totals = []  # of each passage: the logarithm of the sum over its spans
        null_logits = (math.inf, math.inf)
        for index, reading in enumerate(self.read(examples(), on_batch)):
            answers = self.answers_of(reading, top_k, max_answer_len)
            logits = [answer.start_logit + answer.end_logit for answer in answers]
            log_totals.append(logits[0] / temperature - math.log(answers[0].score))
            best += [
                (logit, PassageAnswer(**asdict(answer), passage=index))
                for logit, answer in zip(logits, answers, strict=True)
            ]
            best = sorted(best, key=lambda item: -item[0])[:top_k]  # stable: ties stay in order
            null_logits = min(null_logits, reading.null_logits, key=sum)
        if not log_totals:
            raise InputError("no passages: expected one or more")
        null_logit = sum(null_logits) - threshold
        place = sum(logit >= null_logit for logit, _ in best)  # as in `best_spans`
        best.insert(place, (null_logit, PassageAnswer("", 0.0, 0, 0, *null_logits)))
        log_total = float(np.logaddexp.reduce([*log_totals, null_logit / temperature]))
        return [
            replace(answer, score=math.exp(logit / temperature - log_total))
            for logit, answer in best[:top_k]
        ]

    def read(
        self,
        examples: Iterable[Example],
        on_batch: Callable[[int], None] = lambda windows: None,
    ) -> "Iterator[Reading]":
        """Each example with the logits of its windows, in order: what answers are chosen from.

        A list is checked before any work starts, an iterator as it is read: see `answer_many`.
        """
        if isinstance(examples, Sequence):
            self.require_readable(examples)

        def readings() -> Iterator[Reading]:
            for chunk in self._windows(examples):
                logits = iter(self.logits([f for _, fs in chunk for f in fs], on_batch))
                for example, features in chunk:
                    pieces = features[0].context
                    offsets = whole_graphemes(example.context, pieces.offsets)
                    windows = list(islice(logits, len(features)))
                    yield Reading(example, pieces, offsets, windows)

        return readings()

    def require_readable(self, examples: Iterable[Example]) -> None:
        """Raise the `InputError` that reading these examples would raise, without reading them.

        Nothing is kept, and few contexts are tokenized: one with an ASCII letter or digit has a
        word. Questions are, so as to count their tokens.
        """
        stride = self.max_length // 2 if self.doc_stride is None else self.doc_stride
        # so long a question leaves room for [CLS], the separators, and stride + 1 tokens of context
        fits = self.max_length - (self.tokenizer.separators + 2) - (stride + 1)
        for chunk in chunks(examples, CHUNK_CHARACTERS, CHUNK_CHARACTERS):
            questions = self.tokenizer.encode_batch([example.question for example in chunk])
            doubtful = [
                example
                for example, question in zip(chunk, questions, strict=True)
                if question.blank.all()
                or len(question) > fits
                or not ASCII_WORD.search(example.context)
            ]
            for _ in self._cut(doubtful, {}):
                pass

    def _windows(self, examples: Iterable[Example]) -> Iterator[Chunk]:
        """Examples with their windows, in chunks; a bad example raises after those before it."""
        contexts: dict[str, Pieces] = {}
        for chunk in chunks(examples, CHUNK_CHARACTERS, FIRST_CHUNK_CHARACTERS):
            readable: Chunk = []
            windows = self._cut(chunk, contexts)
            try:
                for example in chunk:
                    readable.append((example, next(windows)))
            except InputError:
                yield readable
                raise
            yield readable
            contexts = {chunk[-1].context: contexts[chunk[-1].context]}  # the next may share it

    def _cut(
        self, examples: Sequence[Example], contexts: dict[str, Pieces]
    ) -> Iterator[list[Feature]]:
        return example_windows(
            examples,
            self.tokenizer,
            self.max_length,
            self.doc_stride,
            self.max_question_len,
            contexts,
        )

    def answers_of(
        self,
        reading: "Reading",
        n_best: int = 20,
        max_answer_len: int = 30,
        handle_impossible_answer: bool = False,
        align_to_words: bool = False,
        text_scored: bool = False,
    ) -> list[Answer]:
        """The answers that `n_best` gives to an example that has been read."""
        context, offsets, windows = reading.example.context, reading.offsets, reading.windows
        words = None
        if align_to_words:
            words = whole_graphemes(context, self.tokenizer.word_offsets(reading.pieces))
        places = offsets if words is None else words
        null, calibration = handle_impossible_answer, self.calibration
        spans = best_spans(windows, n_best, max_answer_len, offsets, words, null, calibration)
        answers = []
        for span in spans:
            start = end = 0
            if not span.is_null:
                start, end = int(places[span.token_start, 0]), int(places[span.token_end, 1])
            text = context[start:end]
            answers.append(Answer(text, span.score, start, end, span.start_logit, span.end_logit))
        if text_scored:
            scores = text_scores(
                windows, spans, context, offsets, max_answer_len, places, calibration
            )
            answers = [
                replace(answer, text_score=score)
                for answer, score in zip(answers, scores, strict=True)
            ]
        return answers

    def logits(
        self, features: Sequence[Feature], on_batch: Callable[[int], None] = lambda windows: None
    ) -> list[WindowLogits]:
        """The logits of each window's context, in the order of the windows; float32.

        On a CPU with several threads, several passes are read at once.
        """
        self.model.eval()  # between epochs it comes from training
        # Lengths in steps of 16: oneDNN prepares kernels for each shape. None beyond max_length.
        multiple = math.gcd(16, self.max_length)
        # One array holds the logits of all contexts, and is made before the first pass. Views of
        # each pass's own small arrays would keep those alive, scattered between the large blocks
        # that the passes free: the C library then finds no room for the next large one, and the
        # process grows to several times its size.
        bounds = np.cumsum([0, *(f.token_end - f.token_start + 1 for f in features)]).tolist()
        kept = np.empty((2, bounds[-1]), dtype=np.float32)  # start and end logits
        nulls: list[tuple[float, float]] = [(math.nan, math.nan)] * len(features)

        def read_pass(indices: list[int]) -> int:
            chosen = [features[k] for k in indices]
            logits = self._forward(collate(chosen, self.tokenizer.pad_id, multiple))  # (2, B, T)
            for row, (k, feature) in enumerate(zip(indices, chosen, strict=True)):
                kept[:, bounds[k] : bounds[k + 1]] = logits[:, row, feature.context_slice]
                nulls[k] = (float(logits[0, row, 0]), float(logits[1, row, 0]))
            return len(indices)

        passes = list(token_batches(features, self.batch_size * self.max_length, multiple))
        on_cpu = self.device.type == "cpu"
        for windows in (side_by_side if on_cpu else map)(read_pass, passes):
            on_batch(windows)
        return [
            WindowLogits(feature.token_start, kept[0, a:b], kept[1, a:b], null)
            for feature, a, b, null in zip(features, bounds, bounds[1:], nulls, strict=False)
        ]

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Start and end logits of a batch whose last window is its shortest: (2, B, T), float32."""
        ids, mask, segments = batch.to(self.device)[:3]
        full = bool(batch.attention_mask[-1].all())  # as in most of a long context
        autocast = self.precision == "bf16" and self.model.head.S.dtype == torch.float32
        with (
            device_errors(self.device),
            torch.autocast(self.device.type, torch.bfloat16, autocast),
        ):
            out = self.model(ids, None if full else mask, segments, output_hidden_states=False)
        logits: npt.NDArray[np.float32]
        logits = torch.stack((out.start_logits, out.end_logits)).float().cpu().numpy()
        return logits


def whole_graphemes(text: str, places: npt.NDArray[Any]) -> npt.NDArray[Any]:
    r"""Places in a text, (T, 2), each widened to whole graphemes: what a reader sees as one letter.

    A letter and its combining accent are one, as are an emoji and its skin tone. The rules are
    those of Unicode's Standard Annex 29 (extended grapheme clusters).

    >>> whole_graphemes("cafe\u0301!", np.array([[0, 4], [5, 6]]))
    array([[0, 5],
           [5, 6]])
    """
    if text.isascii():  # each character is one, but for CR LF, which no place divides
        return places
    begin, end = np.arange(len(text) + 1), np.arange(len(text) + 1)
    for run in NOT_ASCII.finditer(text):
        for grapheme in GRAPHEME.finditer(text, max(0, run.start() - 1), run.end() + 1):
            a, b = grapheme.span()
            if b - a > 1:
                begin[a:b], end[a + 1 : b + 1] = a, b
    starts, ends = places.T
    return np.stack((begin[starts], end[ends]), axis=1)


def require_fit(config: BertConfig, tokenizer: Tokenizer) -> None:
    """Raise `PretrainedError` when a model so made cannot read what the tokenizer writes."""
    if tokenizer.vocab_size > config.vocab_size:
        raise PretrainedError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model has embeddings "
            f"for {config.vocab_size}"
        )
    if config.first_position and tokenizer.pad_id != config.pad_token_id:  # it counts from there
        raise PretrainedError(
            f"the tokenizer's padding is token {tokenizer.pad_id} "
            f"({tokenizer.special_tokens['pad']}), the model's {config.pad_token_id}: they are "
            "not of one family"
        )
    if 0 < config.type_vocab_size <= tokenizer.context_segment:
        raise PretrainedError(
            f"type_vocab_size={config.type_vocab_size}: question and context need a segment each"
        )


def stored_calibration(config: Mapping[str, Any]) -> Calibration:
    """What a `config.json` holds under "minibert". Raises `PretrainedError` for anything else."""
    stored = config.get("minibert", {})
    if not isinstance(stored, dict):
        raise PretrainedError(f"config: minibert={stored!r}; expected an object")
    if unknown := stored.keys() - Calibration.__dataclass_fields__.keys():
        raise PretrainedError(f"config: minibert has no setting {', '.join(sorted(unknown))}")
    try:
        return Calibration(**stored)
    except InputError as error:
        raise PretrainedError(f"config: minibert: {error}") from error


def validated_example(name: str, question: object, context: object) -> Example:
    """A pair of texts as an example of that name. Raises `InputError` for what is no text."""
    named = f"{name}: " if name else ""
    for kind, text in (("question", question), ("context", context)):
        if not isinstance(text, str):
            raise InputError(f"{named}the {kind} is a {type(text).__name__}; expected a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # as JSON's "\\ud800" gives
            raise InputError(
                f"{named}the {kind} is not valid Unicode: it holds a lone surrogate"
            ) from error
    return Example(name, str(question), str(context))
