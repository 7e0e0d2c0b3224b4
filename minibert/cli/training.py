"""The commands `train` and `adapt`: their options are the fields of `TrainingConfig`."""

import json
import os
from dataclasses import dataclass

from typer import echo

from ..reader import BUNDLED
from ..settings import setting
from ..training import finetune, masked_lm
from ..training.config import TrainingConfig
from .options import with_settings

# The fields of `TrainingConfig` without an option in `adapt`, and why. `train` has all fields.
NOT_IN_ADAPT = {
    "dev_file": "adapt does not evaluate: its model answers no questions",
    "max_answer_len": "it is a limit in the evaluation",
    "negatives": "adapt uses passages and questions, but no answers",
    "misleading": "adapt makes no negatives",
    "teachers": "teachers answer questions",
}


@dataclass(frozen=True)
class Resuming:
    """Whether a run continues. The last two arguments of `train` and `adapt`."""

    resume: bool = setting(False, "Continue the stopped run in the output folder.")
    allow_other_machine: bool = setting(
        False, "Resume also on another machine, where the weights may differ in their last bits."
    )


@with_settings(init=str(BUNDLED))
def train(config: TrainingConfig, run: Resuming) -> None:
    """Fine-tune an encoder on questions with answers, as in SQuAD.

    Ctrl-C saves a checkpoint and stops. The same command with --resume continues.
    """
    metrics = finetune.train(config, run.resume, run.allow_other_machine)
    print_result({"output": config.output_dir} | metrics)


BY_ADAPT = {"epochs": 2.0, "batch_size": 32, "learning_rate": 5e-4, "warmup_ratio": 0.06}


@with_settings(NOT_IN_ADAPT, **BY_ADAPT, dropout=0.0, init=str(BUNDLED))
def adapt(config: TrainingConfig, run: Resuming) -> None:
    """Continue a model's pretraining on your texts.

    The model learns to predict hidden words in the passages of a data set. Fine-tune the result
    with `train --model OUTPUT`. Ctrl-C and --resume work as in `train`.
    """
    masked_lm.adapt(config, run.resume, run.allow_other_machine)
    print_result({"output": config.output_dir})


def print_result(result: dict[str, str | float | int]) -> None:
    """Print the result as JSON. If torchrun started several processes, only the first prints."""
    if os.environ.get("RANK", "0") == "0":
        echo(json.dumps(result))
