"""A `pyfunc` model for MLflow. It needs the package `mlflow` or `mlflow-skinny`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow.models import infer_signature

from ..dropin import DEFAULTS, QuestionAnsweringPipeline, pipeline
from ..identity import installed_version
from ..reader import BUNDLED, QuestionAnswerer

PAIR = pd.DataFrame({"question": ["Who lit the lamp?"], "context": ["Ada lit the lamp."]})
ANSWERS = [{"score": 0.9, "start": 0, "end": 3, "answer": "Ada"}]
# Settings whose default is None cannot be parameters: MLflow takes the type from the default.
PARAMS = {name: value for name, value in DEFAULTS.items() if value is not None}


def save_model(path: str | Path, folder: str | Path = BUNDLED, **arguments: Any) -> None:
    """Write the model in `folder` (by default the bundled one) as an MLflow model at `path`.

    `arguments` are other arguments of `mlflow.pyfunc.save_model`. For example, `model_config` may
    hold arguments of `QuestionAnswerer.from_pretrained`, such as `{"device": "cpu"}`.
    """
    mlflow.pyfunc.save_model(path, **parts(folder) | arguments)


def log_model(name: str = "model", folder: str | Path = BUNDLED, **arguments: Any) -> Any:
    """As `save_model`, with `mlflow.pyfunc.log_model`. Returns its `ModelInfo`."""
    return mlflow.pyfunc.log_model(name=name, **parts(folder) | arguments)


def parts(folder: str | Path) -> dict[str, Any]:
    """The arguments that `save_model` and `log_model` share."""
    return {
        "loader_module": __name__,
        "data_path": str(folder),
        "signature": infer_signature(PAIR, ANSWERS, PARAMS),
        "pip_requirements": [f"minibert-qa=={installed_version()}"],
    }


def _load_pyfunc(data_path: str, model_config: dict[str, Any] | None = None) -> "Reader":
    """The function with which MLflow loads the model."""
    return Reader(pipeline(model=QuestionAnswerer.from_pretrained(data_path, **model_config or {})))


@dataclass
class Reader:
    """What `mlflow.pyfunc.load_model` wraps."""

    reader: QuestionAnsweringPipeline

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """The pipeline's answer for each row, as a dict; with `top_k` > 1, a list of dicts."""
        rows = pd.DataFrame(model_input)
        columns = {name: list(rows[name]) for name in PAIR}
        return self.reader(columns, **params or {})
