"""minibert beside others, by turns on the same questions: text in, text out.

Every engine has the same weights, and reads windows of the same size; the figures of the metric
stand beside the speeds, so that none is bought with wrong answers. How it is measured: `turns.py`.
"""

import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ..config import BertConfig
from ..errors import InputError
from ..fast.memory import keep_freed_memory
from ..fast.processor import Precision, choose_precision
from ..features import prepare_features
from ..metric import squad_metrics
from ..pretrained import read_config
from ..reader import QuestionAnswerer
from ..spans import WindowLogits, best_spans
from ..squad import Example, load_squad
from . import engines as other_engines
from .turns import CPU, by_turns, forward_flops, in_fresh_process, peak_memory_mb, times_as_fast

QUESTIONS = 300  # every turn has the same
MAX_ANSWER_LEN = 30


@dataclass
class Engine:
    """Something that answers, and how long it has spent in the forward pass."""

    answer: Callable[[Sequence[Example]], dict[str, str]]  # -> {id: text}
    forward_seconds: list[float] = field(default_factory=list)


def watch(model: nn.Module, seconds: list[float]) -> None:
    """Note how long each forward pass takes."""
    model.register_forward_pre_hook(lambda *_: seconds.append(-time.perf_counter()))
    model.register_forward_hook(lambda *_: seconds.append(time.perf_counter() + seconds.pop()))


def loaded(source: str, precision: Precision) -> QuestionAnswerer:
    return QuestionAnswerer.from_pretrained(source, precision=precision)


def ours(qa: QuestionAnswerer) -> Engine:
    def answer(examples: Sequence[Example]) -> dict[str, str]:
        answers = qa.answer_many([(e.question, e.context) for e in examples], MAX_ANSWER_LEN)
        return {example.id: a.answer for example, a in zip(examples, answers, strict=True)}

    engine = Engine(answer)
    watch(qa.model, engine.forward_seconds)
    return engine


def reference(source: str, dtype: torch.dtype, attention: str) -> tuple[Any, Any]:
    """`transformers`' model and its fast tokenizer."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(
        source, attn_implementation=attention, dtype=dtype
    )
    model.eval()
    return model, transformers.AutoTokenizer.from_pretrained(source)


def reference_run_well(source: str, dtype: torch.dtype, batch_size: int = 16) -> Engine:
    """Windows sorted by length and padded to their batch's longest; minibert's search in each.

    In batches of 16: on two cores those of 24 and 32 were no faster.
    """
    model, tokenizer = reference(source, dtype, "sdpa")

    @torch.inference_mode()
    def answer(examples: Sequence[Example]) -> dict[str, str]:
        encoded = tokenizer(
            [example.question for example in examples],
            [example.context for example in examples],
            truncation="only_second",
            max_length=384,
            stride=128,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        windows = encoded["input_ids"]
        order = sorted(range(len(windows)), key=lambda k: -len(windows[k]))
        best: dict[str, tuple[float, str]] = {}
        for i in range(0, len(order), batch_size):
            chosen = order[i : i + batch_size]
            rows = {n: [encoded[n][k] for k in chosen] for n in tokenizer.model_input_names}
            out = model(**tokenizer.pad(rows, return_tensors="pt"))
            starts, ends = (t.float().numpy() for t in (out.start_logits, out.end_logits))
            for row, k in enumerate(chosen):
                context = [t for t, text in enumerate(encoded.sequence_ids(k)) if text == 1]
                inside = slice(context[0], context[-1] + 1)
                logits = WindowLogits(0, starts[row, inside], ends[row, inside])
                span = best_spans([logits], 1, MAX_ANSWER_LEN)[0]
                example = examples[encoded["overflow_to_sample_mapping"][k]]
                places = encoded["offset_mapping"][k][inside]
                text = example.context[places[span.token_start][0] : places[span.token_end][1]]
                scored = (span.start_logit + span.end_logit, text)
                best[example.id] = max(best.get(example.id, scored), scored)
        return {key: text for key, (_, text) in best.items()}

    engine = Engine(answer)
    watch(model, engine.forward_seconds)
    return engine


def reference_as_blog_post(source: str) -> Engine:
    """One question at a time, in float32; the best start and the best end, each on its own.

    The blog post reads what fits the model, and glues its pieces to a text.
    """
    model, tokenizer = reference(source, torch.float32, "eager")
    room = BertConfig.from_dict(read_config(source)).max_length

    @torch.inference_mode()
    def answer(examples: Sequence[Example]) -> dict[str, str]:
        texts = {}
        for example in examples:
            inputs = tokenizer(
                example.question,
                example.context,
                truncation="only_second",
                max_length=room,
                return_tensors="pt",
            )
            out = model(**inputs)
            start, end = int(out.start_logits.argmax()), int(out.end_logits.argmax())
            pieces = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0, start : end + 1])
            texts[example.id] = tokenizer.convert_tokens_to_string(pieces)
        return texts

    engine = Engine(answer)
    watch(model, engine.forward_seconds)
    return engine


ENGINES: dict[str, tuple[torch.dtype, Callable[[str], Engine]]] = {
    "minibert, float32": (torch.float32, lambda s: ours(loaded(s, "fp32"))),
    "minibert, bfloat16": (torch.bfloat16, lambda s: ours(loaded(s, "bf16"))),
    "transformers, float32": (torch.float32, lambda s: reference_run_well(s, torch.float32)),
    "transformers, bfloat16": (torch.bfloat16, lambda s: reference_run_well(s, torch.bfloat16)),
    "transformers, the blog post's way": (torch.float32, reference_as_blog_post),
    "openvino, bfloat16": (torch.bfloat16, lambda s: ours(other_engines.openvino(s))),
    "onnxruntime, int8": (torch.float32, lambda s: ours(other_engines.onnxruntime(s))),
}
# the first word of a name -> what must be installed
NEEDS = {
    "minibert": (),
    "transformers": ("transformers",),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime", "onnx"),
}


def bench_answer(source: str, data: str, turns: int = 5, seed: int = 0) -> dict[str, Any]:
    """Answers to a sample of a SQuAD set, engine by engine, in `turns` turns.

    Returns the processor's and the engines' figures, for each way of keeping memory; `ratio` is the
    speed, end to end, of minibert in its best precision over the engine's. Engines in bfloat16 are
    measured where the processor computes in it, other libraries where they are installed.
    """
    best = f"minibert, {'bfloat16' if choose_precision('auto', CPU) == 'bf16' else 'float32'}"
    names = [
        name
        for name, (dtype, _) in ENGINES.items()
        if (dtype == torch.float32 or "bfloat16" in best)
        and all(map(importlib.util.find_spec, NEEDS[name.partition(",")[0]]))
    ]
    report: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    report |= {"turns": turns, "seed": seed, "questions": QUESTIONS, "best": best}
    for tuned in (True, False):
        measured = in_fresh_process(time_answers, names, best, source, data, turns, seed, tuned)
        for name, figures in measured["engines"].items():
            figures["peak_memory_mb"] = in_fresh_process(
                memory_of_answers, name, source, data, seed, tuned
            )
        report["tuned" if tuned else "untuned"] = measured
    return report


def sample(data: str, seed: int) -> list[Example]:
    examples = load_squad(data, "validation")
    if len(examples) < QUESTIONS:
        raise InputError(f"{data}: fewer than {QUESTIONS} questions")
    return random.Random(seed).sample(examples, QUESTIONS)


def time_answers(
    names: Sequence[str], best: str, source: str, data: str, turns: int, seed: int, tuned: bool
) -> dict[str, Any]:
    if tuned:
        keep_freed_memory()
    asked = sample(data, seed)
    engines = {name: ENGINES[name][1](source) for name in names}
    predictions: dict[str, dict[str, str]] = {}
    forward: dict[str, list[float]] = {name: [] for name in names}

    def ask(name: str) -> None:
        engines[name].forward_seconds.clear()
        predictions[name] = engines[name].answer(asked)
        forward[name].append(sum(engines[name].forward_seconds))

    dtypes = {ENGINES[name][0] for name in names}
    seconds, peak = by_turns({name: partial(ask, name) for name in names}, dtypes, turns)
    qa = QuestionAnswerer.from_pretrained(source)
    windows = prepare_features(asked, qa.tokenizer)
    flops = sum(forward_flops(qa.model.config, len(window)) for window in windows)
    report: dict[str, Any] = {
        "peak_gflops": {str(dtype): rate / 1e9 for dtype, rate in peak.items()},
        "engines": {},
    }
    for name in names:
        inside = statistics.median(forward[name][1:])  # the first warms up
        metrics = squad_metrics(predictions[name], asked)
        ours_alike = seconds.get(f"minibert, {name.partition(', ')[2]}")  # in the same precision
        report["engines"][name] = {
            "questions_per_second": QUESTIONS / statistics.median(seconds[name]),
            "forward_questions_per_second": QUESTIONS / inside,
            "gflops": flops / inside / 1e9,
            "share_of_peak": flops / inside / peak[ENGINES[name][0]],
            "exact_match": metrics["exact_match"],
            "f1": metrics["f1"],
            "ratio": times_as_fast(seconds[name], seconds[best]),
            "ratio_same_precision": ours_alike and times_as_fast(seconds[name], ours_alike),
        }
    return report


def memory_of_answers(name: str, source: str, data: str, seed: int, tuned: bool) -> float | None:
    """Peak memory of a fresh process that answers with one engine, in MB."""
    if tuned:
        keep_freed_memory()
    asked = sample(data, seed)
    ENGINES[name][1](source).answer(asked)
    return peak_memory_mb()
