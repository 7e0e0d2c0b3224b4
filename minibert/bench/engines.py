"""Other engines with the same weights, for the benchmarks, if they are installed.

OpenVINO and onnxruntime replace only the forward pass: tokenizer, windows and search are
minibert's. As in minibert, each thread computes its own pass, because both engines were slower
with all threads on each pass (`README.md`).
"""

import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..batches import collate
from ..data.examples import Example
from ..export.graph import model_graph, save_graph
from ..fast.processor import has_int8, processor_has
from ..fast.quantized import largest_weight
from ..features import prepare_features
from ..qa import BertForQuestionAnswering, SpanHead
from ..reader import QuestionAnswerer
from ..tokenization import Tokenizer

NAMES = ("input_ids", "attention_mask", "token_type_ids")
OpenVinoPrecision = Literal["f32", "bf16", "int8"]
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
        self.bert = nn.Identity()  # no `UnpaddedBert`, so batches are padded
        self.head = SpanHead(0, 1.0)  # tells the reader: float32, on the CPU

    def forward(
        self, ids: Tensor, mask: Tensor | None, segments: Tensor, **unused: bool
    ) -> SimpleNamespace:
        tensors = (ids, torch.ones_like(ids) if mask is None else mask, segments)
        start, end = self.run({n: t.numpy() for n, t in zip(NAMES, tensors, strict=True)})
        return SimpleNamespace(start_logits=torch.as_tensor(start), end_logits=torch.as_tensor(end))


def openvino(
    source: str, precision: OpenVinoPrecision, samples: Sequence[Example] = ()
) -> QuestionAnswerer:
    """ "int8" needs nncf, which finds the range of the numbers in each layer with `samples`.

    What is not int8 is in bfloat16 with AMX, otherwise in float32 (`README.md` says why).
    """
    import openvino as ov

    model = BertForQuestionAnswering.from_pretrained(source, "sdpa")
    example = tuple(torch.ones(2, 9, dtype=torch.int64) for _ in NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the result of the check of lengths is now constant
        converted = ov.convert_model(Logits(model), example_input=example)
    for given, name in zip(converted.inputs, NAMES, strict=True):
        given.get_tensor().set_names({name})
    if precision == "int8":
        converted = in_int8(converted, source, samples)
        precision = "bf16" if processor_has("amx_bf16") else "f32"
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


def in_int8(converted: Any, source: str, samples: Sequence[Example]) -> Any:
    """A model of OpenVINO with 8-bit integers, by nncf's quantisation after training."""
    import nncf

    tokenizer = Tokenizer.from_pretrained(source)
    batches = [
        {name: tensor.numpy() for name, tensor in zip(NAMES, batch[:3], strict=True)}
        for batch in (collate([w], tokenizer.pad_id) for w in prepare_features(samples, tokenizer))
    ]
    with redirect_stdout(sys.stderr):  # its progress bars are no part of a report
        return nncf.quantize(
            converted,
            nncf.Dataset(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
        )


def onnxruntime(source: str, int8: bool) -> QuestionAnswerer:
    """With `int8`, onnxruntime makes the matrices 8-bit integers, with one scale per output.

    This setting had the best F1. Embeddings stay floats: in int8 they cost one point of F1. Weights
    have 7 bits where sums of 16 bits could overflow, as minibert's.
    """
    from onnxruntime.quantization import quantize_dynamic

    model = BertForQuestionAnswering.from_pretrained(source)
    with tempfile.TemporaryDirectory() as folder:
        plain, small = (Path(folder) / name for name in ("plain.onnx", "int8.onnx"))
        save_graph(model_graph(model), plain)
        if int8:
            quantize_dynamic(
                plain,
                small,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                reduce_range=has_int8() and largest_weight() < 127,
            )
        return onnx_answerer(source, model, small if int8 else plain)


def onnx_answerer(source: str, model: BertForQuestionAnswering, path: Path) -> QuestionAnswerer:
    """An ONNX file in the place of the model of a reader."""
    session = onnx_session(path)
    names = [given.name for given in session.get_inputs()]

    def run(arrays: dict[str, Any]) -> tuple[Any, Any]:
        start, end = session.run(None, {name: arrays[name] for name in names})
        return start, end

    return answerer(source, model, run)


def onnx_session(path: Path) -> Any:
    """An ONNX file in onnxruntime, with one thread for each run."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def answerer(source: str, model: BertForQuestionAnswering, run: Forward) -> QuestionAnswerer:
    foreign: Any = Foreign(model.config, run)
    return QuestionAnswerer(foreign, Tokenizer.from_pretrained(source))
