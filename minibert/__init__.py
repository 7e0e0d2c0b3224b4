"""minibert: BERT for question answering, by hand.

The modules, in the order in which text flows; each imports only those before it:

    errors, files, settings             one line for each error; complete files; settings as objects
    fast.memory, fast.dropout           speed: the parts that the model and training use
    families, config, pretrained        a folder of weights -> tensors under our names
    fast.processor                      device, precision and attention to compute with
    tokenizer_files, tokenization       text -> pieces that know their characters
    data.examples, data.metric          data sets -> examples; the official metric
    data.negatives                      questions with an answer -> questions without one
    features, batches                   question + context -> windows -> padded batches
    identity                            digests of models and data; how two jobs differ
    model, qa                           token ids -> hidden states -> two logits per token
    fast.linear, fast.unpadded          faster kernels for reading on a CPU
    fast.quantized                      reading in 8-bit integers
    fast.threads                        several passes at once
    spans, reader                       logits -> spans -> answers
    dropin                              the pipeline that transformers had
    scoring.evaluation                  a data set -> predictions -> the metric
    scoring.calibration                 how reliable the scores are
    training.config, training.optimizer
    training.parallel, training.run     a training run and its folder
    training.finetune                   fine-tuning on questions and answers
    training.masked_lm                  continued pretraining
    explain.attribution, explain.page, explain.explanation, explain.server
    viz                                 pictures for notebooks
    bench.turns, bench.training, bench.engines, bench.answering, bench.parts, bench.doubt
    bench.parity
    cli.printing, cli.options, cli.lines
    cli.answering, cli.explaining, cli.training, cli.scoring, cli.bench, cli.inspection
    cli.program                         the list of commands, and errors as one line

"The blog post" in a comment is the text that this project grew from, "Understanding BERT with
Huggingface": https://mlwhiz.com/blog/2021/07/24/huggingface-bert/
"""

from .config import BertConfig
from .data.examples import Example, GoldAnswer, load_squad
from .data.metric import squad_metrics
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
from .features import Feature, prepare_features, prepare_train_features
from .model import Bert
from .qa import BertForQuestionAnswering, span_loss
from .reader import Answer, PassageAnswer, QuestionAnswerer
from .scoring.calibration import calibrate, save_calibrated
from .scoring.evaluation import evaluate
from .settings import Calibration
from .spans import best_spans
from .tokenization import Pieces, Tokenizer
from .training.config import TrainingConfig
from .training.finetune import train
from .training.masked_lm import adapt

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
