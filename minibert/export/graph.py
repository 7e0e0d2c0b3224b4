"""A model -> an ONNX graph of the same computation, as plain data; and the graph -> a file.

The graph is written by hand, operation by operation, as `model.py` and `qa.py` compute. So it has
the same names in every version of torch, and needs no exporter. Format and operations:
https://onnx.ai/onnx/operators/. Shapes are explained in `model.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..explain.eight_bit import eight_bit
from ..files import write_errors
from ..identity import installed_version
from ..model import Embeddings, EncoderLayer
from ..qa import BertForQuestionAnswering

Array = npt.NDArray[Any]

# The oldest set of operations with LayerNorm as one operation, and the oldest file format for it.
# The package `onnx` by itself would write its newest format, which older programs cannot read.
OPERATIONS, FORMAT = 17, 8
OUTPUTS = ("start_logits", "end_logits")
# A file of protobuf has less than 2 GiB. Larger constants are in a second file, model.onnx_data.
LARGEST_FILE = 2**31 - 2**20
# Processors with AVX2 but without VNNI add two products in 16 bits. With 7 bits this sum fits.
LARGEST_WEIGHT = 63
NEAR_ZERO = 1e-12  # no step is smaller
FLOAT, UINT8, INT64 = 1, 2, 7  # ONNX's numbers of the types


@dataclass(frozen=True)
class Node:
    """One operation. Inputs and outputs are names of tensors."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass
class Graph:
    """Operations in the order of computation, and constants by name."""

    inputs: tuple[str, ...]  # each is int64 (B, T)
    int8: bool = False  # whether large matrices are stored, and multiplied, in 8-bit integers
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add an operation with one output. Returns the output's name."""
        [name] = self.add_several(kind, *inputs, outputs=[output], **attributes)
        return name

    def add_several(
        self, kind: str, *inputs: str, outputs: Sequence[str], **attributes: Any
    ) -> list[str]:
        """Add an operation. An output whose name is "" gets the operation's name and a number."""
        number = len(self.nodes)
        names = [name or f"{kind}_{number}_{k}" for k, name in enumerate(outputs)]
        self.nodes.append(Node(kind, inputs, tuple(names), attributes))
        return names

    def constant(self, value: Any, name: str = "") -> str:
        """Add a constant: a tensor, or a number (int64 or float32). Returns its name."""
        if isinstance(value, Tensor):
            array = value.detach().numpy()
        else:
            array = np.array(value)
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = array
        return name

    def linear(self, name: str, x: str, weight: Tensor, bias: Tensor) -> str:
        """x W^T + b: (B, T, K) -> (B, T, N)."""
        if not self.int8:
            mapped = self.add("MatMul", x, self.constant(weight.T, f"{name}.weight"))
        else:
            mapped = self.in_integers(name, x, weight)
        return self.add("Add", mapped, self.constant(bias, f"{name}.bias"))

    def in_integers(self, name: str, x: str, weight: Tensor) -> str:
        """x W^T in 8-bit integers, with one scale per output and one per token.

        So an answer does not depend on the other texts of its batch. (ONNX's own operation,
        DynamicQuantizeLinear, has one scale for a whole batch. The root mean square error of the
        logits was then 0.20 instead of 0.09, for 150 questions and the bundled model.)
        """
        largest = self.add("ReduceMax", self.add("Abs", x), axes=[-1], keepdims=1)  # (B, T, 1)
        largest = self.add("Max", largest, self.constant(NEAR_ZERO))
        step = self.add("Mul", largest, self.constant(1 / 127))
        integers = self.add("Round", self.add("Div", x, step))  # from -127 to 127
        stored = self.add("Cast", self.add("Add", integers, self.constant(128.0)), to=UINT8)
        rows, scale = eight_bit(weight, LARGEST_WEIGHT)
        columns = self.constant(rows.T, f"{name}.weight")
        zero = self.constant(torch.tensor(128, dtype=torch.uint8))
        products = self.add("Cast", self.add("MatMulInteger", stored, columns, zero), to=FLOAT)
        scaled = self.add("Mul", products, self.constant(scale, f"{name}.scale"))
        return self.add("Mul", scaled, step)

    def norm_of_sum(self, name: str, x: str, y: str, norm: nn.LayerNorm) -> str:
        """LayerNorm of x + y. The operation is Sum, not Add, because onnxruntime would replace Add
        and LayerNorm by one operation with which the model takes a tenth more time.
        """
        return self.norm(name, self.add("Sum", x, y), norm)

    def norm(self, name: str, x: str, norm: nn.LayerNorm) -> str:
        weight = self.constant(norm.weight, f"{name}.weight")
        bias = self.constant(norm.bias, f"{name}.bias")
        return self.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)

    def places(self, counted: str = "") -> str:
        """How many tokens are before each token: int64 (B, T).

        `counted` is True for tokens that count; "" means that all count. Not by the operation
        Range: onnxruntime 1.32 replaces it by a Slice that fails.
        """
        counted = counted or self.add("Equal", self.inputs[0], self.inputs[0])
        ones = self.add("Cast", counted, to=INT64)
        return self.add("CumSum", ones, self.constant(1), exclusive=1)


def embed(graph: Graph, embeddings: Embeddings, segments: str) -> str:
    """Word + position + segment, then LayerNorm: (B, T) -> (B, T, H).

    `segments` is "" for a family whose tokens all have segment 0.
    """
    name = "embeddings"
    x = lookup(graph, f"{name}.word", embeddings.word.weight)
    if embeddings.token_type is not None:
        table = embeddings.token_type.weight
        if segments:
            part = graph.constant(table, f"{name}.token_type")
            x = graph.add("Add", x, graph.add("Gather", part, segments))
        else:
            x = graph.add("Add", x, graph.constant(table[0], f"{name}.token_type"))
    counted = ""
    if embeddings.pad_id is not None:
        counted = graph.add(
            "Not", graph.add("Equal", "input_ids", graph.constant(embeddings.pad_id))
        )
    places = graph.places(counted)
    table = embeddings.position.weight[embeddings.first_position :]
    position = graph.add("Gather", graph.constant(table, f"{name}.position"), places)
    x = graph.norm(f"{name}.norm", graph.add("Add", x, position), embeddings.norm)
    if embeddings.project is None:
        return x
    project = embeddings.project
    return graph.linear(f"{name}.project", x, project.weight, project.bias)


def lookup(graph: Graph, name: str, table: Tensor) -> str:
    """The rows of a table for `input_ids`: (B, T) -> (B, T, width)."""
    if not graph.int8:
        return graph.add("Gather", graph.constant(table, name), "input_ids")
    rows, scale = eight_bit(table)
    integers = graph.add("Gather", graph.constant(rows, name), "input_ids")
    scales = graph.add("Gather", graph.constant(scale[:, None], f"{name}.scale"), "input_ids")
    return graph.add("Mul", graph.add("Cast", integers, to=FLOAT), scales)


def encode(graph: Graph, name: str, layer: EncoderLayer, x: str, mask: str) -> str:
    """One layer: (B, T, H) -> (B, T, H)."""
    attended = attend(graph, f"{name}.attention", layer, x, mask)
    x = graph.norm_of_sum(f"{name}.attention_norm", attended, x, layer.attention_norm)
    expand, contract = layer.feed_forward.expand, layer.feed_forward.contract
    y = graph.linear(f"{name}.feed_forward.expand", x, expand.weight, expand.bias)
    # GELU by its formula, x / 2 (1 + erf(x / sqrt 2)): as one operation it is younger (2023)
    erf = graph.add("Erf", graph.add("Div", y, graph.constant(math.sqrt(2))))
    y = graph.add("Mul", y, graph.add("Add", erf, graph.constant(1.0)))
    y = graph.add("Mul", y, graph.constant(0.5))
    y = graph.linear(f"{name}.feed_forward.contract", y, contract.weight, contract.bias)
    return graph.norm_of_sum(f"{name}.feed_forward_norm", y, x, layer.feed_forward_norm)


def attend(graph: Graph, name: str, layer: EncoderLayer, x: str, mask: str) -> str:
    """softmax(Q K^T / sqrt(D)) V, in N heads: (B, T, H) -> (B, T, H)."""
    attention = layer.attention
    maps = attention.query, attention.key, attention.value
    # One product for all three. The queries' part includes the division by sqrt(D).
    shrink = attention.head_size**-0.5
    factors = torch.tensor([shrink, 1, 1]).repeat_interleave(attention.query.out_features)
    weight = torch.cat([part.weight for part in maps]) * factors[:, None]  # (3H, H)
    bias = torch.cat([part.bias for part in maps]) * factors
    joined = graph.linear(f"{name}.query_key_value", x, weight, bias)
    split = graph.add_several("Split", joined, outputs=[""] * 3, axis=-1)
    shape = graph.constant([0, 0, attention.heads, attention.head_size])  # 0: as it was
    q, k, v = (graph.add("Reshape", part, shape) for part in split)  # (B, T, N, D)
    q = graph.add("Transpose", q, perm=[0, 2, 1, 3])  # (B, N, T, D)
    k = graph.add("Transpose", k, perm=[0, 2, 3, 1])  # (B, N, D, T)
    v = graph.add("Transpose", v, perm=[0, 2, 1, 3])  # (B, N, T, D)
    scores = graph.add("Add", graph.add("MatMul", q, k), mask)  # (B, N, T, T)
    mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)  # (B, N, T, D)
    mixed = graph.add("Transpose", mixed, perm=[0, 2, 1, 3])  # (B, T, N, D)
    mixed = graph.add("Reshape", mixed, graph.constant([0, 0, -1]))  # (B, T, H)
    return graph.linear(f"{name}.output", mixed, attention.output.weight, attention.output.bias)


def add_model(graph: Graph, model: BertForQuestionAnswering, segments: str) -> list[str]:
    """Add a model to a graph. Returns the names of its start and end logits, both (B, T)."""
    x = embed(graph, model.bert.embeddings, segments)
    # Added to the scores: 0 at tokens, and at padding the same number as in `Bert.forward`.
    padding = graph.add("Equal", "attention_mask", graph.constant(0))
    lowest = graph.constant(torch.finfo(torch.bfloat16).min)
    mask = graph.add("Where", padding, lowest, graph.constant(0.0))  # (B, T)
    mask = graph.add("Unsqueeze", mask, graph.constant([1, 2]))  # (B, 1, 1, T)
    layers: Any = model.bert.layers
    for k, layer in enumerate(layers):
        x = encode(graph, f"layers.{k}", layer, x, mask)
    vectors = torch.stack((model.head.S, model.head.E)).T  # (H, 2)
    both = graph.add("MatMul", x, graph.constant(vectors, "head.weight"))  # (B, T, 2)
    both = graph.add("Add", both, graph.constant(model.head.bias, "head.bias"))
    parts = graph.add_several("Split", both, outputs=["", ""], axis=-1)  # two of (B, T, 1)
    axis = graph.constant([-1])
    return [graph.add("Squeeze", part, axis) for part in parts]


def model_graph(model: BertForQuestionAnswering, int8: bool = False) -> Graph:
    """The graph of a float32 model: ids, mask and, if its family has them, segments -> logits."""
    ours = model.config.family.context_segment and model.bert.embeddings.token_type is not None
    segments = "token_type_ids" if ours else ""
    names = ("input_ids", "attention_mask", segments)
    graph = Graph(tuple(filter(None, names)), int8)
    for logits, name in zip(add_model(graph, model, segments), OUTPUTS, strict=True):
        graph.add("Identity", logits, output=name)
    return graph


def onnx_library() -> ModuleType:
    """The package `onnx`. Raises `InputError` if it is not installed."""
    try:
        import onnx
    except ImportError as error:
        raise InputError(f"{error}; export needs: pip install 'minibert-qa[export]'") from error
    library: ModuleType = onnx
    return library


def save_graph(graph: Graph, path: Path) -> None:
    """Write an ONNX file. Raises `InputError` if `onnx` is missing or the disk refuses."""
    onnx = onnx_library()
    helper, shape = onnx.helper, ("batch", "tokens")
    nodes = [helper.make_node(n.kind, n.inputs, n.outputs, **n.attributes) for n in graph.nodes]
    inputs = [helper.make_tensor_value_info(name, INT64, shape) for name in graph.inputs]
    outputs = [helper.make_tensor_value_info(name, FLOAT, shape) for name in OUTPUTS]
    constants = [
        onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        for name, array in graph.constants.items()
    ]
    operations = [helper.make_operatorsetid("", OPERATIONS)]
    model = helper.make_model(
        helper.make_graph(nodes, "minibert", inputs, outputs, constants),
        ir_version=FORMAT,
        opset_imports=operations,
        producer_name="minibert",
        producer_version=installed_version(),
    )
    large = sum(array.nbytes for array in graph.constants.values()) > LARGEST_FILE
    with write_errors(path):
        onnx.save(model, path, save_as_external_data=large, location=f"{path.name}_data")
