"""The training loop: epochs -> steps -> checkpoints, from where the run stopped.

The caller passes two functions. One takes a step, the other is called after each epoch.
"""

import math
from collections.abc import Callable, Sequence

import torch

from ..errors import NonFiniteError, counted
from ..features import Feature
from .job import StepResult
from .optimizer import schedule
from .run import Run

Batches = list[list[Feature]]  # of one epoch; each batch is a list of windows


def train_epochs(
    run: Run,
    epochs: Sequence[Batches],
    step: Callable[[list[Feature]], StepResult],
    end_of_epoch: Callable[[int], None],
) -> None:
    """Take one `step` on every batch of every epoch, and call `end_of_epoch` after each epoch.

    A resumed run skips the steps that it has taken. If it stopped after the last step of an epoch,
    it calls `end_of_epoch` for this epoch first. This may be the second call for the same epoch, so
    `end_of_epoch` must write the same files again. Raises `NonFiniteError`, and `Interrupted` after
    a stop signal.
    """
    config, optimizer = run.job.config, run.job.optimizer
    total_steps = sum(map(len, epochs))
    warmup_steps = round(config.warmup_ratio * total_steps)
    count = sum(len(windows) for batches in epochs for windows in batches)
    run.announce(
        f"{run.job.device}, {config.precision}, {config.attention} attention, "
        f"{torch.get_num_threads()} threads, processes: {run.job.group.size}; "
        f"{counted(count, 'window', 'windows')}, {counted(total_steps, 'step', 'steps')}"
    )
    for epoch in range(run.epochs_done + 1, len(epochs) + 1):
        first_step = sum(map(len, epochs[: epoch - 1]))
        remaining = epochs[epoch - 1][run.step - first_step :]
        run.start_phase(f"epoch {epoch} training", sum(map(len, remaining)))
        run.job.model.train()
        for windows in remaining:
            learning_rate = config.learning_rate * schedule(run.step, warmup_steps, total_steps)
            for param_group in optimizer.param_groups:
                param_group["lr"] = learning_rate
            result = step(windows)
            if not result.finite:
                raise NonFiniteError(
                    f"step {run.step + 1}: not a finite number: loss {result.loss}, gradient norm "
                    f"{result.grad_norm}, or a logit; last good checkpoint: "
                    f"{run.last_checkpoint or 'none yet'}; examples: "
                    f"{', '.join(window.example_id for window in windows)}"
                )
            figures = {"loss": result.loss}
            if math.isfinite(result.grad_norm):  # otherwise `take_step` left this step out
                figures["grad_norm"] = result.grad_norm
            run.log_step(epoch, len(windows), figures | {"learning_rate": learning_rate})
            run.save_if_due()
        run.save()  # before `end_of_epoch`: a folder with a model must also have a checkpoint
        end_of_epoch(epoch)
        run.epochs_done = epoch
        run.save()
