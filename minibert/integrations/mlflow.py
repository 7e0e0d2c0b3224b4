"""A `pyfunc` model for MLflow. It needs the package `mlflow` or `mlflow-skinny`."""

from pathlib import Path
from typing import Any, NamedTuple

import mlflow.pyfunc
import pandas as pd
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema

from ..dropin import DEFAULTS, QuestionAnsweringPipeline, pipeline
from ..identity import installed_version
from ..reader import BUNDLED, QuestionAnswerer

EXAMPLE = pd.DataFrame({"question": ["Who lit the lamp?"], "context": ["Ada lit the lamp."]})
TYPES = {"score": "double", "start": "long", "end": "long", "answer": "string"}
# MLflow takes a parameter's type from its default, so None cannot be a default.
PARAMS = {name: value for name, value in DEFAULTS.items() if value is not None}


def save_model(path: str | Path, folder: str | Path = BUNDLED, **arguments: Any) -> None:
    """Write the model in `folder` (by default the bundled one) as an MLflow model at `path`.

    `arguments` are other arguments of `mlflow.pyfunc.save_model`. Its `model_config` holds
    arguments of `QuestionAnswerer.from_pretrained`, for example `{"device": "cpu"}`.
    """
    mlflow.pyfunc.save_model(path, **parts(folder) | arguments)


def log_model(name: str = "model", folder: str | Path = BUNDLED, **arguments: Any) -> Any:
    """As `save_model`, with `mlflow.pyfunc.log_model`. Returns its `ModelInfo`."""
    return mlflow.pyfunc.log_model(name=name, **parts(folder) | arguments)


def parts(folder: str | Path) -> dict[str, Any]:
    """The arguments that `save_model` and `log_model` share."""
    pair = Schema([ColSpec("string", name) for name in EXAMPLE])
    answer = Schema([ColSpec(kind, name) for name, kind in TYPES.items()])
    signature = ModelSignature(pair, answer, infer_signature(params=PARAMS).params)
    needed = {"pip_requirements": [f"minibert-qa=={installed_version()}"]}
    source = {"loader_module": __name__, "data_path": str(folder)}
    return {**source, **needed, "signature": signature, "input_example": EXAMPLE}


def _load_pyfunc(data_path: str, model_config: dict[str, Any] | None = None) -> "Reader":
    """The function with which MLflow loads the model."""
    return Reader(pipeline(model=QuestionAnswerer.from_pretrained(data_path, **model_config or {})))


class Reader(NamedTuple):
    """The object with which MLflow answers."""

    reader: QuestionAnsweringPipeline

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """The pipeline's answer for each row, as a dict; with `top_k` > 1, a list of dicts."""
        rows = pd.DataFrame(model_input)
        columns = {name: list(rows[name]) for name in EXAMPLE}
        return self.reader(columns, **params or {})
