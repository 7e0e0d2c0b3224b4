"""minibert: BERT for question answering, by hand.

The modules, in the order in which text flows; each imports only those before it:

    errors, files                       one line for what goes wrong; files that appear whole
    fast.memory, fast.dropout           what is about speed and not about BERT
    families, config, pretrained        a folder of weights -> tensors under our names
    fast.processor                      which device, precision and attention to compute with
    tokenizer_files, tokenization       text -> pieces that know their characters
    squad, metric                       data sets -> examples; the official figures
    negatives                           questions with an answer -> questions without one
    features, batches                   question + context -> windows -> padded batches
    model, qa                           token ids -> hidden states -> two logits a token
    fast.linear, fast.quantized         layers in faster kernels, to read with
    fast.threads                        several passes at once
    spans, reader                       logits -> spans -> answers: the whole arrow
    dropin                              the pipeline that transformers had
    lines                               JSON lines of questions -> the same lines, answered
    evaluation, calibration             predictions -> the metric; what their scores are worth
    parallel, run, training             fine-tuning, in a folder from which it resumes exactly
    mlm                                 pretraining gone on with, before fine-tuning
    explain.attribution, explain.page, explain.explanation, explain.server
    viz                                 pictures for notebooks
    bench.turns, bench.training, bench.engines, bench.answering, bench.parts, bench.doubt
    bench.parity
    cli

"The blog post" in a comment is the text that this project grew from, "Understanding BERT with
Huggingface": https://mlwhiz.com/blog/2021/07/24/huggingface-bert/
"""

from .calibration import calibrate, save_calibrated
from .config import BertConfig
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
from .evaluation import evaluate
from .features import Feature, prepare_features, prepare_train_features
from .metric import squad_metrics
from .mlm import adapt
from .model import Bert
from .qa import BertForQuestionAnswering, span_loss
from .reader import Answer, PassageAnswer, QuestionAnswerer
from .spans import Calibration, best_spans
from .squad import Example, GoldAnswer, load_squad
from .tokenization import Pieces, Tokenizer
from .training import TrainingConfig, train

__all__ = [
    "Answer",
    "Bert",
    "BertConfig",
    "BertForQuestionAnswering",
    "Calibration",
    "CheckpointError",
    "DataError",
    "Example",
    "Feature",
    "GoldAnswer",
    "InputError",
    "Interrupted",
    "MinibertError",
    "NonFiniteError",
    "PassageAnswer",
    "Pieces",
    "PretrainedError",
    "QuestionAnswerer",
    "QuestionAnsweringPipeline",
    "Tokenizer",
    "TrainingConfig",
    "adapt",
    "best_spans",
    "calibrate",
    "evaluate",
    "load_squad",
    "pipeline",
    "prepare_features",
    "prepare_train_features",
    "save_calibrated",
    "span_loss",
    "squad_metrics",
    "train",
]
