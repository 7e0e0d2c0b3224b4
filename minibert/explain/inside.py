"""Inside the model: the three parts of each token's embedding, and what each head attends to.

Both are for one window and in float32. The numbers are rounded to thousandths, so that the page
stays small. BERT (arXiv:1810.04805v2) section 3, "Input/Output Representations"; "Attention Is All
You Need" (arXiv:1706.03762v7) section 3.2.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..engine import Engine, as_array
from ..features import Feature
from ..qa import BertForQuestionAnswering, QuestionAnsweringOutput
from .attribution import plain

SHOWN = 32  # the page shows only the first numbers of each vector

Row = tuple[int, ...]  # whole numbers: thousandths


@dataclass(frozen=True, slots=True)
class EmbeddingParts:
    """The vectors that are added for each token, before LayerNorm.

    Only the first numbers of each vector are here, in thousandths. Lengths are of whole vectors.
    """

    width: int  # the numbers of a whole vector
    hidden_size: int  # if it differs from `width`, a matrix widens the vectors after LayerNorm
    piece: tuple[Row, ...]  # (T, min(width, 32))
    position: tuple[Row, ...]  # (T, min(width, 32))
    segment: tuple[Row, ...]  # one row for each segment of the window; () in a model without them
    # (T, 4): of piece, position, segment (0 in a model without segments), and of their sum
    lengths: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True, slots=True)
class AttentionRows:
    """How much [CLS] and the question's pieces attend to each token, in each head of each layer."""

    rows: tuple[int, ...]  # R positions in the window: the tokens that attend
    # (L, N, R, T) in thousandths: a row sums to 1,000, except for the rounding
    weights: tuple[tuple[tuple[Row, ...], ...], ...]


def inside(
    engine: Engine, feature: Feature, question: slice
) -> tuple[EmbeddingParts, AttentionRows]:
    """The embeddings and the attention of one window; `question` are the question's positions.

    The window is read once more, by a copy of the model that computes the attention weights.
    """
    model = plain(engine.model, "eager")
    reader = Engine(model, engine.tokenizer, engine.window_settings)
    rows = (0, *range(question.start, question.stop))
    layers: list[npt.NDArray[Any]] = []

    def keep(_: list[int], out: QuestionAnsweringOutput) -> None:
        assert out.attentions is not None
        layers.extend(
            as_array(weights[0, :, list(rows), : len(feature)])[0] for weights in out.attentions
        )  # (B, N, T, T) -> (N, R, T)

    reader.forward([feature], keep, attentions=True)
    attention = AttentionRows(rows, thousandths(np.stack(layers)))
    return embedding_parts(model, feature), attention


def embedding_parts(model: BertForQuestionAnswering, feature: Feature) -> EmbeddingParts:
    """The parts of the embedding of each token of a window."""
    embeddings, device = model.bert.embeddings, model.head.S.device
    ids, segments = (
        torch.tensor([row], device=device) for row in (feature.input_ids, feature.token_type_ids)
    )
    with torch.inference_mode():
        piece, segment, position = (
            None if part is None else part.expand(1, len(feature), -1)[0]  # (T, width)
            for part in embeddings.parts(ids, segments)
        )
        assert piece is not None and position is not None
        total = piece + position if segment is None else piece + segment + position
        nothing = torch.zeros_like(piece)
        parts = as_array(piece, position, nothing if segment is None else segment, total)
    _, first = np.unique(feature.token_type_ids, return_index=True)  # a token of each segment
    shown = parts[:3, :, :SHOWN]
    return EmbeddingParts(
        width=piece.shape[-1],
        hidden_size=model.config.hidden_size,
        piece=thousandths(shown[0]),
        position=thousandths(shown[1]),
        segment=() if segment is None else thousandths(shown[2][first]),
        lengths=tuple(map(tuple, np.linalg.norm(parts, axis=-1).T.astype(float).round(3).tolist())),
    )


def thousandths(numbers: npt.NDArray[Any]) -> Any:
    """Numbers as whole thousandths, in nested tuples of the same shape.

    >>> thousandths(np.array([[0.25, -0.0126], [1, 0]]))
    ((250, -13), (1000, 0))
    """

    def frozen(values: Any) -> Any:
        return tuple(map(frozen, values)) if isinstance(values[0], list) else tuple(values)

    return frozen(np.rint(1000 * numbers).astype(int).tolist())
