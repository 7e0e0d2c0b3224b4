"""minibert compared with other engines on the same questions: text in, text out.

Every engine has the same weights and reads windows of the same size. Each speed comes with EM and
F1, which show whether an engine is faster because it answers worse. `turns.py` does the measuring.
"""

import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ..config import BertConfig
from ..data.examples import Example, load_squad
from ..data.metric import squad_metrics
from ..errors import InputError
from ..fast.probe import candidates, fastest_precision
from ..features import prepare_features
from ..pretrained import read_config
from ..reader import QuestionAnswerer
from ..spans import WindowLogits, best_spans
from ..tokenization import Tokenizer
from . import engines as other_engines
from .turns import Turn, Work, bench_engines, forward_flops, median_seconds, times_as_fast

Answerer = Callable[[Sequence[Example]], dict[str, str]]  # -> {id: text}


@dataclass
class BenchEngine:
    """A function that answers questions, and how long its forward passes took."""

    answer: Answerer
    forward_seconds: list[float] = field(default_factory=list)


def watched(model: nn.Module, answer: Answerer) -> BenchEngine:
    """An engine that answers with a model of `transformers`, whose forward passes are timed."""
    engine = BenchEngine(answer)
    seconds = engine.forward_seconds
    model.register_forward_pre_hook(lambda *_: seconds.append(-time.perf_counter()))
    model.register_forward_hook(lambda *_: seconds.append(time.perf_counter() + seconds.pop()))
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


def reference_run_well(source: str, dtype: torch.dtype, batch_size: int = 16) -> BenchEngine:
    """`transformers` with windows sorted by length, and with minibert's search.

    Windows are padded to the longest of their batch. A batch has 16 windows, because batches of 24
    and 32 were not faster on two cores.
    """
    model = other_engines.transformers_model(source, "sdpa", dtype)
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
            out = model(**tokenizer.pad(rows, return_tensors="pt"))
            starts, ends = (t.float().numpy() for t in (out.start_logits, out.end_logits))
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

    return watched(model, answer)


def reference_as_blog_post(source: str) -> BenchEngine:
    """One question at a time, in float32: the best start, and independently the best end.

    As in the blog post, it reads one window of the model's full length, and joins the pieces of
    the answer to a text.
    """
    model = other_engines.transformers_model(source, "eager")
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
            )
            out = model(**inputs)
            start, end = int(out.start_logits.argmax()), int(out.end_logits.argmax())
            pieces = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0, start : end + 1])
            texts[example.id] = tokenizer.convert_tokens_to_string(pieces)
        return texts

    return watched(model, answer)


reader = partial(QuestionAnswerer.from_pretrained, device="cpu")  # as the other engines
ENGINES: dict[str, tuple[torch.dtype, Callable[[str], BenchEngine]]] = {
    "minibert, float32": (torch.float32, lambda s: ours(reader(s, precision="fp32"))),
    "minibert, bfloat16": (torch.bfloat16, lambda s: ours(reader(s, precision="bf16"))),
    "minibert, int8": (torch.float32, lambda s: ours(reader(s, precision="int8"))),
    "transformers, float32": (torch.float32, lambda s: reference_run_well(s, torch.float32)),
    "transformers, bfloat16": (torch.bfloat16, lambda s: reference_run_well(s, torch.bfloat16)),
    "transformers, the blog post's way": (torch.float32, reference_as_blog_post),
    "openvino, float32": (torch.float32, lambda s: ours(other_engines.openvino(s, "f32"))),
    "openvino, bfloat16": (torch.bfloat16, lambda s: ours(other_engines.openvino(s, "bf16"))),
    "onnxruntime, float32": (torch.float32, lambda s: ours(other_engines.onnxruntime(s, False))),
    "onnxruntime, int8": (torch.float32, lambda s: ours(other_engines.onnxruntime(s, True))),
}
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
# the first word of a name -> the packages that must be installed
NEEDS = {
    "minibert": (),
    "transformers": ("transformers",),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime", "onnx"),
}


def bench_answer(
    source: str, data: str, turns: int = 5, questions: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Answer a sample of a SQuAD set with every engine, in `turns` alternating turns.

    Returns the processor's and the engines' figures for both ways of keeping memory: "untuned" is
    the C library's default, "tuned" is the way of `minibert answer`. `ratio` is the end-to-end
    speed of minibert in the precision that it chooses by itself, divided by the engine's speed.
    `ratio_same_precision` is the same with minibert in the engine's precision (None: minibert has
    no such precision here). `ratio_to_tuned` is the engine's speed divided by its own speed with
    tuned memory. Engines in bfloat16 are measured only if the processor computes in it, and other
    libraries only if they are installed. `questions=None` means 100, or 40 without bfloat16. A run
    takes some minutes.
    """
    config = BertConfig.from_dict(read_config(source))
    chosen, bfloat16 = fastest_precision(config), "bf16" in candidates()
    dtypes = {
        name: dtype
        for name, (dtype, _) in ENGINES.items()
        if (dtype == torch.float32 or bfloat16)
        and all(map(importlib.util.find_spec, NEEDS[name.partition(",")[0]]))
    }
    questions = questions or (100 if bfloat16 else 40)
    examples = load_squad(data, "validation")
    if len(examples) < questions:
        raise InputError(f"{data}: fewer than {questions} questions")
    asked = random.Random(seed).sample(examples, questions)
    windows = prepare_features(asked, Tokenizer.from_pretrained(source))
    flops = sum(forward_flops(config, len(window)) for window in windows)

    def figures(name: str, measured: list[Turn]) -> dict[str, Any]:
        forward = statistics.median(turn.result.forward_seconds for turn in measured)
        metrics = squad_metrics(measured[-1].result.predictions, asked)
        return {
            "questions_per_second": questions / median_seconds(measured),
            "forward_questions_per_second": questions / forward,
            "gflops": flops / forward / 1e9,
            "exact_match": metrics["exact_match"],
            "f1": metrics["f1"],
        }

    best = f"minibert, {PRECISIONS[chosen]}"
    load = partial(load_answering, source, asked)
    report, measured = bench_engines(load, dtypes, turns, best, figures)
    for (memory, name), spent in measured.items():
        same = measured.get((memory, f"minibert, {name.partition(', ')[2]}"))
        report[memory]["engines"][name] |= {
            "ratio_same_precision": same and times_as_fast(spent, same),
            "ratio_to_tuned": times_as_fast(measured["tuned", name], spent),
        }
    about = {"seed": seed, "questions": questions, "best": best}
    return about | report


class Answered(NamedTuple):
    """What an engine answered in one turn, and how long its forward passes took."""

    predictions: dict[str, str]
    forward_seconds: float


def load_answering(source: str, asked: Sequence[Example], names: Sequence[str]) -> dict[str, Work]:
    return {name: partial(ask, ENGINES[name][1](source), asked) for name in names}


def ask(engine: BenchEngine, asked: Sequence[Example]) -> Answered:
    engine.forward_seconds.clear()
    return Answered(engine.answer(asked), sum(engine.forward_seconds))
