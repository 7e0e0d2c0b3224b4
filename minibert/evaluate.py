"""Evaluation: examples -> predictions on disk -> the official metric."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .errors import InputError
from .reader import QuestionAnswerer
from .squad import Example, squad_metrics


def evaluate(
    qa: QuestionAnswerer,
    examples: Sequence[Example],
    output_dir: str | Path | None = None,
    n_best: int = 20,
    max_answer_len: int = 30,
    on_batch: Callable[[int], None] = lambda windows: None,
) -> dict[str, float | int]:
    """Answer every example and score the best answers with `squad_metrics`.

    With an `output_dir`, writes `predictions.json` ({id: text}, what the official scripts read),
    `nbest_predictions.json` ({id: the `n_best` answers with scores and offsets}) and
    `metrics.json` there. `on_batch` is told how many windows have just been read.
    """
    folder = None if output_dir is None else make_folder(output_dir)  # before the long work
    found = qa.n_best(examples, n_best, max_answer_len, on_batch)
    nbest = {example.id: answers for example, answers in zip(examples, found, strict=True)}
    predictions = {key: answers[0].answer for key, answers in nbest.items()}
    metrics = squad_metrics(predictions, examples)
    if folder is not None:
        rows = {key: [asdict(a) for a in answers] for key, answers in nbest.items()}
        _write(folder / "predictions.json", predictions)
        _write(folder / "nbest_predictions.json", rows)
        _write(folder / "metrics.json", metrics)
    return metrics


def make_folder(path: str | Path) -> Path:
    """A folder, made if need be. Raises `InputError` where it cannot be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be a folder to write to: {error}") from error
    return folder


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
