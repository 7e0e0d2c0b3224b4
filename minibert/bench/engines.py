"""Other engines with the same weights, for the benchmarks, if they are installed.

OpenVINO and onnxruntime replace only the forward pass: tokenizer, windows and search are
minibert's. As in minibert, each thread computes its own pass, because both engines were slower
with all threads on each pass (`README.md`).
"""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..data.examples import Example
from ..qa import BertForQuestionAnswering
from ..reader import QuestionAnswerer
from ..tokenization import Tokenizer

NAMES = ("input_ids", "attention_mask", "token_type_ids")
# arrays (B, T) by name -> start and end logits (B, T)
Forward = Callable[[dict[str, Any]], tuple[Any, Any]]


def transformers_model(source: str, attention: str, dtype: torch.dtype = torch.float32) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers.AutoModelForQuestionAnswering.from_pretrained(
        source, attn_implementation=attention, dtype=dtype
    ).eval()


def transformers_tokenizer(source: str) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(source)


def transformers_windows(tokenizer: Any, examples: Sequence[Example]) -> Any:
    """Windows of 384 tokens that overlap by 128, with the offsets of their tokens."""
    return tokenizer(
        [example.question for example in examples],
        [example.context for example in examples],
        truncation="only_second",
        max_length=384,
        stride=128,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )


class Logits(nn.Module):
    """The model in the form that engines convert: three tensors in, two tensors out."""

    def __init__(self, model: BertForQuestionAnswering) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model(*tensors)
        return out.start_logits, out.end_logits


class Foreign(nn.Module):
    """An engine's forward pass in the place of the model of a `QuestionAnswerer`."""

    def __init__(self, config: Any, run: Forward) -> None:
        super().__init__()
        self.config, self.run = config, run
        self.weight = nn.Parameter(torch.zeros(0))  # tells the reader: float32, on the CPU

    def forward(
        self, ids: Tensor, mask: Tensor | None, segments: Tensor, output_hidden_states: bool = False
    ) -> SimpleNamespace:
        tensors = (ids, torch.ones_like(ids) if mask is None else mask, segments)
        start, end = self.run({n: t.numpy() for n, t in zip(NAMES, tensors, strict=True)})
        return SimpleNamespace(start_logits=torch.as_tensor(start), end_logits=torch.as_tensor(end))


def openvino(source: str, precision: Literal["f32", "bf16"]) -> QuestionAnswerer:
    import openvino as ov

    model = BertForQuestionAnswering.from_pretrained(source, "sdpa")
    example = tuple(torch.ones(2, 9, dtype=torch.int64) for _ in NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the result of the check of lengths is now constant
        converted = ov.convert_model(Logits(model), example_input=example)
    for given, name in zip(converted.inputs, NAMES, strict=True):
        given.get_tensor().set_names({name})
    threads = torch.get_num_threads()
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": str(threads),
        "INFERENCE_NUM_THREADS": str(threads),
    }
    compiled = ov.Core().compile_model(converted, "CPU", settings)
    requests: Queue[Any] = Queue()  # a request can compute one pass at a time
    for _ in range(threads):
        requests.put(compiled.create_infer_request())

    def run(arrays: dict[str, Any]) -> tuple[Any, Any]:
        request = requests.get()
        try:
            start, end = (output.copy() for output in request.infer(arrays).values())
        finally:
            requests.put(request)
        return start, end

    return answerer(source, model, run)


def export_onnx(model: BertForQuestionAnswering, path: str) -> None:
    """Write an ONNX file for batches (B, T) of any size. The model needs "eager" attention."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the check of lengths, and the old exporter
        torch.onnx.export(
            Logits(model),
            tuple(torch.ones(2, 9, dtype=torch.int64) for _ in NAMES),
            path,
            input_names=list(NAMES),
            dynamic_axes={name: {0: "B", 1: "T"} for name in NAMES},
            dynamo=False,
        )


def onnxruntime(source: str, int8: bool) -> QuestionAnswerer:
    """With `int8` the matrices are 8-bit integers, with one scale per output."""
    import onnxruntime as ort
    from onnxruntime.quantization import quantize_dynamic

    model = BertForQuestionAnswering.from_pretrained(source, "eager")
    with tempfile.TemporaryDirectory() as folder:
        plain, small = (str(Path(folder) / name) for name in ("plain.onnx", "int8.onnx"))
        export_onnx(model, plain)
        if int8:
            quantize_dynamic(plain, small, per_channel=True)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        path = small if int8 else plain
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(arrays: dict[str, Any]) -> tuple[Any, Any]:
        start, end = session.run(None, arrays)
        return start, end

    return answerer(source, model, run)


def answerer(source: str, model: BertForQuestionAnswering, run: Forward) -> QuestionAnswerer:
    foreign: Any = Foreign(model.config, run)
    return QuestionAnswerer(foreign, Tokenizer.from_pretrained(source))
