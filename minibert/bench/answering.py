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
from typing import Any, NamedTuple

import torch
from torch import nn

from ..config import BertConfig
from ..data.examples import Example, load_squad
from ..data.metric import squad_metrics
from ..errors import InputError
from ..fast.processor import Precision, choose_precision
from ..features import prepare_features
from ..pretrained import read_config
from ..reader import QuestionAnswerer
from ..settings import AnswerSettings
from ..spans import WindowLogits, best_spans
from . import engines as other_engines
from .turns import (
    CPU,
    MEMORY,
    both_ways,
    by_turns,
    forward_flops,
    in_fresh_process,
    keep_memory,
    measured_on,
    peak_memory_mb,
    times_as_fast,
)

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
    logits = qa.logits

    def timed(*given: Any) -> list[WindowLogits]:
        began = time.perf_counter()
        found = logits(*given)
        engine.forward_seconds.append(time.perf_counter() - began)
        return found

    qa.logits = timed  # type: ignore[assignment, method-assign]
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
                span = best_spans([logits], AnswerSettings(1, MAX_ANSWER_LEN))[0]
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
    "minibert, int8": (torch.float32, lambda s: ours(loaded(s, "int8"))),
    "transformers, float32": (torch.float32, lambda s: reference_run_well(s, torch.float32)),
    "transformers, bfloat16": (torch.bfloat16, lambda s: reference_run_well(s, torch.bfloat16)),
    "transformers, the blog post's way": (torch.float32, reference_as_blog_post),
    "openvino, float32": (torch.float32, lambda s: ours(other_engines.openvino(s, "f32"))),
    "openvino, bfloat16": (torch.bfloat16, lambda s: ours(other_engines.openvino(s, "bf16"))),
    "onnxruntime, float32": (torch.float32, lambda s: ours(other_engines.onnxruntime(s, False))),
    "onnxruntime, int8": (torch.float32, lambda s: ours(other_engines.onnxruntime(s, True))),
}
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
# the first word of a name -> what must be installed
NEEDS = {
    "minibert": (),
    "transformers": ("transformers",),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime", "onnx"),
}


def bench_answer(
    source: str, data: str, turns: int = 5, questions: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Answers to a sample of a SQuAD set, engine by engine, in `turns` turns.

    Returns the processor's and the engines' figures, for each way of keeping memory: "untuned" as
    the C library does it, "tuned" as `minibert answer` does. `ratio` is the speed, end to end, of
    minibert in the precision that it chooses by itself over the engine's, `ratio_to_tuned` the
    engine's own over its speed with memory tuned. Engines in bfloat16 are measured where the
    processor computes in it, other libraries where they are installed. `questions` None are 100, or
    40 without bfloat16: some minutes.
    """
    chosen = choose_precision("auto", CPU)
    able = chosen == "bf16"
    best = f"minibert, {PRECISIONS[chosen]}"
    names = [
        name
        for name, (dtype, _) in ENGINES.items()
        if (dtype == torch.float32 or able)
        and all(map(importlib.util.find_spec, NEEDS[name.partition(",")[0]]))
    ]
    questions = questions or (100 if able else 40)
    asked = sample(data, questions, seed)
    report = measured_on() | {"turns": turns, "seed": seed, "questions": questions, "best": best}
    with both_ways(load_engines, names, source, asked) as processes:
        told: dict[tuple[str, str], list[Told]] = {(m, n): [] for n in names for m in MEMORY}
        work = {
            (memory, name): lambda m=memory, n=name: told[m, n].append(
                processes[m].submit(ask, n).result()
            )
            for memory, name in told
        }
        seconds, peak = by_turns(work, {ENGINES[name][0] for name in names}, turns)
    qa = QuestionAnswerer.from_pretrained(source)
    windows = prepare_features(asked, qa.tokenizer)
    flops = sum(forward_flops(qa.model.config, len(window)) for window in windows)
    for memory in MEMORY:
        engines = {}
        for name in names:
            spent = seconds[memory, name]
            inside = statistics.median(t.forward_seconds for t in told[memory, name][1:])
            metrics = squad_metrics(told[memory, name][-1].predictions, asked)
            alike = seconds.get((memory, f"minibert, {name.partition(', ')[2]}"))
            engines[name] = {
                "questions_per_second": questions / statistics.median(spent),
                "forward_questions_per_second": questions / inside,
                "gflops": flops / inside / 1e9,
                "share_of_peak": flops / inside / peak[ENGINES[name][0]],
                "exact_match": metrics["exact_match"],
                "f1": metrics["f1"],
                "peak_memory_mb": in_fresh_process(memory_of_answers, name, source, asked, memory),
                "ratio": times_as_fast(spent, seconds[memory, best]),
                "ratio_same_precision": alike and times_as_fast(spent, alike),
                "ratio_to_tuned": times_as_fast(seconds["tuned", name], spent),
            }
        rates = {str(dtype): rate / 1e9 for dtype, rate in peak.items()}
        report[memory] = {"peak_gflops": rates, "engines": engines}
    return report


def sample(data: str, questions: int, seed: int) -> list[Example]:
    examples = load_squad(data, "validation")
    if len(examples) < questions:
        raise InputError(f"{data}: fewer than {questions} questions")
    return random.Random(seed).sample(examples, questions)


class Told(NamedTuple):
    """What an engine has answered, and how much of the time its forward passes took."""

    predictions: dict[str, str]
    forward_seconds: float


# of the process that answers, which keeps memory in one of the ways
LOADED: dict[str, Engine] = {}
ASKED: list[Example] = []


def load_engines(names: Sequence[str], source: str, asked: list[Example]) -> None:
    ASKED[:] = asked
    LOADED.update({name: ENGINES[name][1](source) for name in names})


def ask(name: str) -> Told:
    engine = LOADED[name]
    engine.forward_seconds.clear()
    return Told(engine.answer(ASKED), sum(engine.forward_seconds))


def memory_of_answers(name: str, source: str, asked: list[Example], memory: str) -> float | None:
    """Peak memory of a fresh process that answers with one engine, in MB."""
    keep_memory(memory)
    load_engines([name], source, asked)
    ask(name)
    return peak_memory_mb()
