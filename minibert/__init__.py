"""minibert: BERT for question answering, by hand.

The modules. Each imports only modules that are listed above it, so the order is also roughly the
way of a text through the program:

    errors, files                       messages of one line; files that appear only when complete
    graphemes, settings                 letters of several characters; settings, checked once
    fast.memory, fast.dropout           speed: the parts that the model and training use
    families, config, hub, pretrained   folder or hub id -> files -> tensors under our names
    fast.processor                      device, precision and attention to compute with
    tokenizer_files, tokenization       text -> pieces that know their characters
    data.rows, data.formats             files and data sets -> rows
    data.examples                       rows -> questions with their answers
    data.metric                         the official metric
    data.similarity                     texts -> how similar they are to a query
    data.misleading                     questions that a text answers -> misleading ones
    data.negatives                      questions with an answer -> questions without one
    features, batches                   question + context -> windows -> padded batches
    identity                            digests of models and data; how two jobs differ
    model, qa                           token ids -> hidden states -> two logits per token
    their_objects                       loaded objects of transformers -> our model and tokenizer
    fast.unpadded, fast.linear          faster kernels for reading on a CPU
    fast.ranges, fast.quantized         reading in 8-bit integers
    fast.threads                        several passes at the same time
    fast.probe                          the fastest precision, found by measuring
    spans                               logits -> the best spans over all windows
    engine                              examples -> windows -> the model -> logits
    answers, passages                   logits -> answers; many passages -> one ranking
    explain.eight_bit                   the weights in 8-bit integers, for one file with everything
    explain.attribution, explain.page   which words an answer depends on; the page
    explain.inside                      embeddings and attention of one window
    explain.explanation                 why this answer
    reader                              text in, answers out: the whole flow
    export.graph, export.decoder        the model as ONNX, by itself and with the search
    export.folder                       a folder with this model, for other programs
    dropin                              the pipeline that transformers had
    integrations.haystack, integrations.txtai, integrations.mlflow  adapters for other programs
    scoring.evaluation                  a data set -> predictions -> the metric
    scoring.calibration                 how reliable the scores are
    training.config                     the settings of a run
    training.optimizer                  AdamW and the learning rate
    training.parallel, training.job     several processes; what a training step needs
    training.checkpoints, training.run  the folder of a training run
    training.loop                       the training loop
    training.distillation               learning from other models
    training.finetune                   fine-tuning on questions and answers
    training.masked_lm                  continued pretraining
    explain.site                        the page with the model inside
    serve.guard, serve.requests         who may ask; the body of a request
    serve.page, serve.endpoint          the live page; question answering for other programs
    serve.connections, serve.server     connections; the server
    viz                                 pictures for notebooks
    bench.turns, bench.engines, bench.training, bench.row, bench.answering, bench.parts
    bench.doubt, bench.serving, bench.web, bench.parity  comparisons with other libraries
    cli.command, cli.options, cli.printing, cli.lines, cli.joining, cli.answering, cli.exporting
    cli.inspection, cli.training, cli.scoring, cli.bench, cli.program  the command line

"The blog post" in a comment is the text that this project grew from, "Understanding BERT with
Huggingface": https://mlwhiz.com/blog/2021/07/24/huggingface-bert/
"""

from .answers import Answer
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
from .identity import installed_version, warn_of_namesake
from .model import Bert
from .passages import PassageAnswer
from .qa import BertForQuestionAnswering, span_loss
from .reader import QuestionAnswerer
from .scoring.calibration import calibrate, save_calibrated
from .scoring.evaluation import evaluate
from .settings import AnswerSettings, Calibration, WindowSettings
from .spans import best_spans
from .tokenization import Pieces, Tokenizer
from .training.config import TrainingConfig
from .training.finetune import train
from .training.masked_lm import adapt

__version__ = installed_version()
warn_of_namesake()

__all__ = [
    "Answer", "AnswerSettings", "Bert", "BertConfig", "BertForQuestionAnswering", "Calibration",
    "CheckpointError", "DataError", "Example", "Feature", "GoldAnswer", "InputError", "Interrupted",
    "MinibertError", "NonFiniteError", "PassageAnswer", "Pieces", "PretrainedError",
    "QuestionAnswerer", "QuestionAnsweringPipeline", "Tokenizer", "TrainingConfig",
    "WindowSettings", "adapt", "best_spans", "calibrate", "evaluate", "load_squad", "pipeline",
    "prepare_features", "prepare_train_features", "save_calibrated", "span_loss", "squad_metrics",
    "train",
]  # fmt: skip
