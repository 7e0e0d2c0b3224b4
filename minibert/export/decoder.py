"""Two independent argmaxes that give the best legal span: the search of `spans.py` in the graph.

Some programs call a model with ids and mask only, and take the argmax of each output. Without
segments BERT finds hardly any answer. Without the search, a start can come after its end, or lie in
the question. So this graph makes the segments itself, and changes the logits after the search.
"""

from ..qa import BertForQuestionAnswering
from ..settings import AnswerSettings
from ..tokenization import Tokenizer
from .graph import INT64, OUTPUTS, Graph, add_model

# The logit of a place that cannot be an answer: its probability is exactly 0 in float32. It is
# finite also in float16, and the two outputs can be added.
ILLEGAL = -10000.0


def argmax_graph(
    model: BertForQuestionAnswering, tokenizer: Tokenizer, int8: bool = False
) -> Graph:
    """The graph of a float32 model with the search: ids and mask -> two outputs (B, T).

    The argmax of `start_logits` is the start of the best legal span, the argmax of `end_logits` its
    end (inclusive). A legal span is in the context and has at most 30 tokens. If several are the
    best, the earliest start counts, then the shortest span. Without a legal span both are 0, the
    place of [CLS].
    """
    graph = Graph(("input_ids", "attention_mask"), int8)
    separator = graph.add("Equal", "input_ids", graph.constant(tokenizer.sep_id))
    before = graph.places(counted=separator)  # separators before each token
    segments = ""
    if tokenizer.context_segment:
        second = graph.add("Greater", before, graph.constant(0))
        segments = graph.add("Cast", second, to=INT64)
    logits = add_model(graph, model, segments)
    # The context: after the separators, no separator itself, no padding.
    last = graph.constant(tokenizer.separators - 1)
    legal = graph.add("And", graph.add("Greater", before, last), graph.add("Not", separator))
    padding = graph.add("Equal", "attention_mask", graph.constant(0))
    legal = graph.add("And", legal, graph.add("Not", padding))
    illegal = graph.constant(ILLEGAL)
    start, end = (graph.add("Where", legal, side, illegal) for side in logits)
    search(graph, legal, start, end, AnswerSettings().max_answer_len)
    return graph


def search(graph: Graph, legal: str, start: str, end: str, longest: int) -> None:
    """Add the search over start and end logits (B, T), which are `ILLEGAL` outside of `legal`."""
    # for each start, the best end: the largest of the logits of this token and the 29 after it
    rows = graph.add("Unsqueeze", end, graph.constant([1]))  # (B, 1, T)
    best_end = graph.add("MaxPool", rows, kernel_shape=[longest], pads=[0, longest - 1])
    best_end = graph.add("Squeeze", best_end, graph.constant([1]))  # (B, T)
    illegal = graph.constant(ILLEGAL)
    total = graph.add("Add", start, best_end)
    total = graph.add("Where", legal, total, illegal, output=OUTPUTS[0])
    # only ends that fit the best start stay
    first = graph.add("ArgMax", total, axis=1, keepdims=1)  # (B, 1)
    length = graph.add("Sub", graph.places(), first)  # (B, T): 0 at the start itself
    near = graph.add(
        "And",
        graph.add("Less", graph.constant(-1), length),
        graph.add("Less", length, graph.constant(longest)),
    )
    graph.add("Where", near, end, illegal, output=OUTPUTS[1])
