"""minibert compared with other engines on the same questions: text in, text out.

Every engine has the same weights and reads windows of the same size. Each speed comes with EM and
F1, which show whether an engine is faster because it answers worse. `turns.py` does the measuring.
"""

import importlib.util
import random
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ..config import BertConfig
from ..data.examples import Example, GoldAnswer, load_squad
from ..data.metric import squad_metrics
from ..engine import GPU_BATCH_SIZE
from ..errors import InputError
from ..fast.probe import candidates, fastest_precision
from ..fast.processor import Precision, choose_device, gpu_precision, has_int8
from ..fast.ranges import stored_ranges
from ..features import prepare_features
from ..pretrained import read_config
from ..reader import QuestionAnswerer
from ..spans import WindowLogits, best_spans
from ..tokenization import Tokenizer
from . import engines as other_engines
from .row import circumstances
from .turns import (
    PAUSE,
    Turn,
    Work,
    by_turns,
    compared,
    forward_flops,
    loaded,
    measured_on,
    median_seconds,
    memory_of,
    synchronize,
    times_as_fast,
)

Answerer = Callable[[Sequence[Example]], dict[str, str]]  # -> {id: text}

# What is measured: questions of SQuAD, short pairs, and one question at a time. For each question
# there are so many of them.
SHARES = {"questions": 1.0, "pairs": 2.0, "one": 0.2}
FEWEST, MOST = 20, 500  # questions
SHORT = 200  # characters: the longest context of a short pair
SAMPLES = 100  # questions with which OpenVINO's int8 finds the range of the numbers in each layer


class Setup(NamedTuple):
    """What engines are made from."""

    source: str  # the model
    device: torch.device
    samples: Sequence[Example]  # questions that are not asked


@dataclass
class BenchEngine:
    """A function that answers questions, and how long its forward passes took."""

    answer: Answerer
    forward_seconds: list[float] = field(default_factory=list)


def watched(model: nn.Module, device: torch.device, answer: Answerer) -> BenchEngine:
    """An engine that answers with a model of `transformers`, whose forward passes are timed."""
    engine = BenchEngine(answer)
    seconds = engine.forward_seconds

    def after(*_: Any) -> None:
        synchronize(device)
        seconds.append(time.perf_counter() + seconds.pop())

    model.register_forward_pre_hook(lambda *_: seconds.append(-time.perf_counter()))
    model.register_forward_hook(after)
    return engine


def ours(qa: QuestionAnswerer) -> BenchEngine:
    def answer(examples: Sequence[Example]) -> dict[str, str]:
        answers = qa.answer_many([(e.question, e.context) for e in examples])
        return {example.id: a.answer for example, a in zip(examples, answers, strict=True)}

    engine = BenchEngine(answer)
    logits = qa.logits

    def timed(*arguments: Any) -> list[WindowLogits]:
        began = time.perf_counter()
        windows = logits(*arguments)
        engine.forward_seconds.append(time.perf_counter() - began)
        return windows

    qa.logits = timed  # type: ignore[assignment, method-assign]
    return engine


def reference_run_well(dtype: torch.dtype, setup: Setup) -> BenchEngine:
    """`transformers` with windows sorted by length, and with minibert's search.

    Windows are padded to the longest of their batch. A batch has 16 windows, because batches of 24
    and 32 were not faster on two cores. On a GPU it has 32, as minibert's.
    """
    source, device, _ = setup
    batch_size = 16 if device.type == "cpu" else GPU_BATCH_SIZE
    model = other_engines.transformers_model(source, "sdpa", dtype).to(device)
    tokenizer = other_engines.transformers_tokenizer(source)

    @torch.inference_mode()
    def answer(examples: Sequence[Example]) -> dict[str, str]:
        encoded = other_engines.transformers_windows(tokenizer, examples)
        windows = encoded["input_ids"]
        order = sorted(range(len(windows)), key=lambda k: -len(windows[k]))
        best: dict[str, tuple[float, str]] = {}
        for i in range(0, len(order), batch_size):
            chosen = order[i : i + batch_size]
            rows = {n: [encoded[n][k] for k in chosen] for n in tokenizer.model_input_names}
            out = model(**tokenizer.pad(rows, return_tensors="pt").to(device))
            starts, ends = (t.float().cpu().numpy() for t in (out.start_logits, out.end_logits))
            for row, k in enumerate(chosen):
                context = [t for t, text in enumerate(encoded.sequence_ids(k)) if text == 1]
                inside = slice(context[0], context[-1] + 1)
                logits = WindowLogits(0, starts[row, inside], ends[row, inside])
                span = best_spans([logits])[0]
                example = examples[encoded["overflow_to_sample_mapping"][k]]
                places = encoded["offset_mapping"][k][inside]
                text = example.context[places[span.token_start][0] : places[span.token_end][1]]
                scored = (span.start_logit + span.end_logit, text)
                best[example.id] = max(best.get(example.id, scored), scored)
        return {key: text for key, (_, text) in best.items()}

    return watched(model, device, answer)


def reference_as_blog_post(setup: Setup) -> BenchEngine:
    """One question at a time, in float32: the best start, and independently the best end.

    As in the blog post, it reads one window of the model's full length, and joins the pieces of
    the answer to a text.
    """
    source, device, _ = setup
    model = other_engines.transformers_model(source, "eager").to(device)
    tokenizer = other_engines.transformers_tokenizer(source)
    max_length = BertConfig.from_dict(read_config(source)).max_length

    @torch.inference_mode()
    def answer(examples: Sequence[Example]) -> dict[str, str]:
        texts = {}
        for example in examples:
            inputs = tokenizer(
                example.question,
                example.context,
                truncation="only_second",
                max_length=max_length,
                return_tensors="pt",
            ).to(device)
            out = model(**inputs)
            start, end = int(out.start_logits.argmax()), int(out.end_logits.argmax())
            pieces = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0, start : end + 1])
            texts[example.id] = tokenizer.convert_tokens_to_string(pieces)
        return texts

    return watched(model, device, answer)


def own(precision: Precision, setup: Setup) -> BenchEngine:
    device = str(setup.device)
    return ours(QuestionAnswerer.from_pretrained(setup.source, device=device, precision=precision))


def openvino(precision: other_engines.OpenVinoPrecision, setup: Setup) -> BenchEngine:
    return ours(other_engines.openvino(setup.source, precision, setup.samples))


def onnxruntime(int8: bool, setup: Setup) -> BenchEngine:
    return ours(other_engines.onnxruntime(setup.source, int8))


ENGINES: dict[str, tuple[torch.dtype, Callable[[Setup], BenchEngine]]] = {
    "minibert, float32": (torch.float32, partial(own, "fp32")),
    "minibert, bfloat16": (torch.bfloat16, partial(own, "bf16")),
    "minibert, float16": (torch.float16, partial(own, "fp16")),
    "minibert, int8": (torch.float32, partial(own, "int8")),
    "transformers, float32": (torch.float32, partial(reference_run_well, torch.float32)),
    "transformers, bfloat16": (torch.bfloat16, partial(reference_run_well, torch.bfloat16)),
    "transformers, float16": (torch.float16, partial(reference_run_well, torch.float16)),
    "transformers, the blog post's way": (torch.float32, reference_as_blog_post),
    "openvino, float32": (torch.float32, partial(openvino, "f32")),
    "openvino, bfloat16": (torch.bfloat16, partial(openvino, "bf16")),
    "openvino, int8": (torch.float32, partial(openvino, "int8")),
    "onnxruntime, float32": (torch.float32, partial(onnxruntime, False)),
    "onnxruntime, int8": (torch.float32, partial(onnxruntime, True)),
}
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8"}
# the first word of a name, or a name -> the packages that must be installed
NEEDS = {
    "minibert": (),
    "transformers": ("transformers",),
    "openvino": ("openvino",),
    "openvino, int8": ("openvino", "nncf"),
    "onnxruntime": ("onnxruntime", "onnx"),
}


def engines_on(device: torch.device) -> dict[str, torch.dtype]:
    """The engines that can be measured, each with the type of its floats.

    bfloat16 is left out if the device has no instructions for it. float16 is only for GPUs. A GPU
    is for minibert and `transformers`. minibert's int8 is left out where it cannot compute.
    """
    on_cpu = device.type == "cpu"
    dtypes = {torch.float32}
    if ("bf16" in candidates()) if on_cpu else (gpu_precision(device) == "bf16"):
        dtypes.add(torch.bfloat16)
    if not on_cpu:
        dtypes.add(torch.float16)
    chosen = {}
    for name, (dtype, _) in ENGINES.items():
        library = name.partition(", ")[0]
        packages = NEEDS.get(name, NEEDS[library])
        here = on_cpu or library in ("minibert", "transformers")
        if name == "minibert, int8":
            here = on_cpu and has_int8()
        if here and dtype in dtypes and all(map(importlib.util.find_spec, packages)):
            chosen[name] = dtype
    return chosen


def bench_answer(
    source: str,
    data: str,
    turns: int = 5,
    minutes: float = 10.0,
    device: str = "auto",
    questions: int | None = None,
) -> dict[str, Any]:
    """Answer a sample of a SQuAD set with every engine, in `turns` alternating turns.

    Returns the processor's and the engines' figures for both ways of keeping memory: "untuned" is
    the C library's default, "tuned" is the way of `minibert answer`. `ratio` is the end-to-end
    speed of minibert in the precision that it chooses by itself, divided by the engine's speed.
    `ratio_same_precision` is the same with minibert in the engine's precision (None: minibert has
    no such precision here). `ratio_to_tuned` is the engine's speed divided by its own speed with
    tuned memory.

    "untuned" also has the figures for short pairs and for one question at a time, and the peak
    memory. A short pair is a question about the sentence that answers it.

    `engines_on` says which engines are measured. Other libraries are measured if they are
    installed. `questions` None means as many as fit into `minutes`, from 20 to 500. A first pass
    over 20 questions shows how many these are. Only questions with an answer are asked, because
    the engines are not asked whether there is one.
    """
    began = time.monotonic()
    chosen = choose_device(device)
    config = read_config(source)
    shapes, ranges = BertConfig.from_dict(config), stored_ranges(config)
    on_cpu = chosen.type == "cpu"
    precision = fastest_precision(shapes, ranges) if on_cpu else gpu_precision(chosen)
    best, dtypes = f"minibert, {PRECISIONS[precision]}", engines_on(chosen)
    asked, samples = questions_of(data, questions)
    load = partial(load_answering, Setup(source, chosen, samples), asked)
    few = min(FEWEST, len(asked["questions"]))
    memory = {name: memory_of(load, name, "untuned", "questions", few) for name in dtypes}
    with loaded(load, dtypes) as work:
        if questions is None:
            first, _ = by_turns(works(work, dtypes, few), 1)
            left = 60 * minutes - (time.monotonic() - began)
            count = affordable(few, [turn.seconds for [turn] in first.values()], left / (turns + 1))
            questions = max(few, min(count, len(asked["questions"])))
        kinds = works(work, dtypes, questions)
        measured, peak = by_turns(kinds, turns, set(dtypes.values()), chosen)
    sample = {kind: asked[kind][: counted(questions, kind)] for kind in SHARES}
    windows = prepare_features(sample["questions"], Tokenizer.from_pretrained(source))
    flops = sum(forward_flops(shapes, len(window)) for window in windows)
    figures = partial(figures_of, sample["questions"], flops)
    answered = {key[:2]: spent for key, spent in measured.items() if key[2] == "questions"}
    report = {"turns": turns, "questions": questions, "best": best, **measured_on(chosen)}
    report |= circumstances(chosen) | compared(answered, peak, dtypes, best, figures)
    for (way, name), spent in answered.items():
        same = answered.get((way, f"minibert, {name.partition(', ')[2]}"))
        row = report[way]["engines"][name]
        row["ratio_same_precision"] = same and times_as_fast(spent, same)
        row["ratio_to_tuned"] = times_as_fast(answered["tuned", name], spent)
        if way == "untuned":
            row["peak_memory_mb"] = memory[name]
            row |= other_figures(measured, name, sample)
    return report


def figures_of(
    asked: Sequence[Example], flops: float, name: str, spent: Sequence[Turn]
) -> dict[str, Any]:
    """An engine's figures for the questions. `flops` is the arithmetic of one turn."""
    forward = statistics.median(turn.result.forward_seconds for turn in spent)
    return {
        "questions_per_second": len(asked) / median_seconds(spent),
        "forward_questions_per_second": len(asked) / forward,
        "gflops": flops / forward / 1e9,
        **quality(spent, asked),
    }


def other_figures(
    measured: Mapping[tuple[str, str, str], Sequence[Turn]],
    name: str,
    sample: Mapping[str, Sequence[Example]],
) -> dict[str, float]:
    """An engine's figures for short pairs and for one question at a time."""
    pairs, one = (measured["untuned", name, kind] for kind in ("pairs", "one"))
    return {
        "pairs_per_second": len(sample["pairs"]) / median_seconds(pairs),
        "one_ms": 1000 * median_seconds(one) / len(sample["one"]),
        **quality(pairs, sample["pairs"], "pairs_"),
        **quality(one, sample["one"], "one_"),
    }


def questions_of(data: str, count: int | None) -> tuple[dict[str, list[Example]], list[Example]]:
    """The questions of each kind, and some other questions.

    `count` None means as many as there are, but at most `MOST`.
    """
    examples = [e for e in load_squad(data, "validation") if not e.is_impossible]
    random.Random(0).shuffle(examples)
    if len(examples) < (count or 1):
        raise InputError(f"{data}: fewer than {count or 1} questions with an answer")
    asked = examples[: count or MOST]
    pairs = [pair for pair in map(short_pair, examples) if pair is not None]
    pairs = pairs[: counted(len(asked), "pairs")] or asked
    return {"questions": asked, "pairs": pairs, "one": asked}, examples[-SAMPLES:]


def short_pair(example: Example) -> Example | None:
    """The same question about the sentence that answers it; None if this sentence is not short."""
    context, answer = example.context, example.answers[0]
    if answer.char_start < 0:
        return None
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)", context)]
    start = max((end for end in ends if end <= answer.char_start), default=0)
    end = min((end for end in ends if end >= answer.char_end), default=len(context))
    start += len(context[start:]) - len(context[start:].lstrip())
    if end - start > SHORT:
        return None
    texts = tuple(a for a in example.answers if a.text in context[start:end])
    moved = tuple(GoldAnswer(a.text, context[start:end].index(a.text)) for a in texts)
    return replace(example, context=context[start:end], answers=moved)


def counted(questions: int, kind: str) -> int:
    """How many of this kind are measured, if so many questions are."""
    return max(1, int(questions * SHARES[kind]))


def works(work: Work, names: Iterable[str], questions: int) -> dict[tuple[str, str, str], Work]:
    """(memory, engine, kind) -> what the engine does in one turn."""
    kinds = [("tuned", "questions"), *(("untuned", kind) for kind in SHARES)]
    return {
        (memory, name, kind): partial(work, memory, name, kind, counted(questions, kind))
        for memory, kind in kinds
        for name in names
    }


def affordable(few: int, spent: Sequence[float], seconds: float) -> int:
    """How many questions can be asked in a turn of this length.

    `spent` has the seconds that each engine needed for `few` questions. Between two engines there
    is a pause.

    >>> affordable(20, [1.0, 3.0], 100 + 2 * PAUSE)
    500
    """
    return int(few * (seconds - PAUSE * len(spent)) / sum(spent))


def quality(spent: Sequence[Turn], asked: Sequence[Example], prefix: str = "") -> dict[str, float]:
    """EM and F1 of the last turn."""
    metrics = squad_metrics(spent[-1].result.predictions, asked)
    return {f"{prefix}{name}": metrics[name] for name in ("exact_match", "f1")}


class Answered(NamedTuple):
    """What an engine answered in one turn, and how long its forward passes took."""

    predictions: dict[str, str]
    forward_seconds: float


def load_answering(
    setup: Setup, asked: Mapping[str, Sequence[Example]], names: Sequence[str]
) -> dict[str, Work]:
    return {name: partial(ask, ENGINES[name][1](setup), asked) for name in names}


def ask(
    engine: BenchEngine, asked: Mapping[str, Sequence[Example]], kind: str, count: int
) -> Answered:
    """Let an engine answer the first `count` questions of a kind: one at a time for "one"."""
    engine.forward_seconds.clear()
    examples = asked[kind][:count]
    predictions: dict[str, str] = {}
    for together in ([e] for e in examples) if kind == "one" else (examples,):
        predictions |= engine.answer(together)
    return Answered(predictions, sum(engine.forward_seconds))
