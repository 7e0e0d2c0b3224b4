"""minibert: BERT for question answering, by hand. The modules, in the order in which text flows:

errors, tuning, pretrained, tokenization, squad, features, model, qa, fused, spans, reader, dropin,
evaluate, checkpoint, parallel, train, viz, bench, bench_engines, bench_answer, cli.

"The seed" in a comment is the text that this project grew from, "Understanding BERT with
Huggingface": https://mlwhiz.com/blog/2021/07/24/huggingface-bert/
"""

from .dropin import QuestionAnsweringPipeline, pipeline
from .errors import (
    CheckpointError,
    DataError,
    InputError,
    Interrupted,
    MinibertError,
    NonFiniteError,
    PretrainedError,
)
from .evaluate import evaluate
from .features import Feature, prepare_features, prepare_train_features
from .model import Bert, BertConfig
from .qa import BertForQuestionAnswering, span_loss
from .reader import Answer, QuestionAnswerer
from .spans import best_spans
from .squad import Example, GoldAnswer, load_squad, squad_metrics
from .tokenization import Pieces, Tokenizer
from .train import TrainingConfig, train

__all__ = [
    "Answer",
    "Bert",
    "BertConfig",
    "BertForQuestionAnswering",
    "CheckpointError",
    "DataError",
    "Example",
    "Feature",
    "GoldAnswer",
    "InputError",
    "Interrupted",
    "MinibertError",
    "NonFiniteError",
    "Pieces",
    "PretrainedError",
    "QuestionAnswerer",
    "QuestionAnsweringPipeline",
    "Tokenizer",
    "TrainingConfig",
    "best_spans",
    "evaluate",
    "load_squad",
    "pipeline",
    "prepare_features",
    "prepare_train_features",
    "span_loss",
    "squad_metrics",
    "train",
]
