"""Our model in MLflow: logged, loaded and served by MLflow, it answers as our pipeline."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # the small package has no database for its runs
mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
pytestmark = [pytest.mark.others, pytest.mark.usefixtures("offline")]

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from starlette.testclient import TestClient

import minibert
from minibert.integrations import mlflow as ours

ROWS = [
    {"question": "Who lit the lamp?", "context": "At dusk the keeper, Zoë, lit the lamp. 🦉"},
    {"question": "Who rang the bell?", "context": "Bo rang the fog bell. " * 70},
    {"question": "What is the capital of France?", "context": "Rain fell in May."},
]
TABLE = pd.DataFrame(ROWS, index=[5, 7, 9])
FIRST = {"precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What MLflow says about the logged model, and the folder of its runs."""
    folder = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((folder / "runs").as_uri())
    with mlflow.start_run():
        yield ours.log_model(model_config=FIRST)
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def model(logged: Any) -> Any:
    return mlflow.pyfunc.load_model(logged.model_uri)


@pytest.fixture(scope="module")
def pipe() -> minibert.QuestionAnsweringPipeline:
    return minibert.pipeline(model=minibert.QuestionAnswerer.from_pretrained(**FIRST))


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"top_k": 3},
        {"max_answer_len": 30, "align_to_words": False},
        {"handle_impossible_answer": True},
    ],
)
def test_the_answers_are_those_of_the_pipeline(model, pipe, params):
    expected = pipe(ROWS, **params)
    assert model.predict(TABLE, params) == expected
    assert model.predict(ROWS, params) == expected
    assert model.predict(ROWS[0], params) == expected[:1]


def test_the_answers_are_those_of_a_reader(model, pipe):
    params = {"max_answer_len": 30, "align_to_words": False}
    answers = [pipe.qa(row["question"], row["context"]) for row in ROWS]
    assert [row["answer"] for row in model.predict(TABLE, params)] == [a.answer for a in answers]
    assert [row["start"] for row in model.predict(TABLE, params)] == [a.start for a in answers]


def test_a_table_without_rows(model):
    assert model.predict(TABLE.iloc[:0]) == []


def test_a_wrong_table_or_parameter_is_an_error(model):
    with pytest.raises(MlflowException, match="context"):
        model.predict(TABLE[["question"]])
    with pytest.raises(MlflowException, match="top_k"):
        model.predict(TABLE, {"top_k": "many"})
    with pytest.raises(minibert.InputError, match="item 0: no words in the context"):
        model.predict({"question": "Who?", "context": " "})


def test_the_server_of_mlflow_answers(model, pipe):
    """As `mlflow models serve` does, without its process."""
    client = TestClient(scoring_server.init(model))
    asked = {"dataframe_records": ROWS, "params": {"top_k": 2}}
    response = client.post("/invocations", json=asked)
    assert (response.status_code, response.json()) == (200, {"predictions": pipe(ROWS, top_k=2)})
    wordless = {"dataframe_records": [{"question": "Who?", "context": " "}]}
    assert client.post("/invocations", json=wordless).status_code == 400


def test_the_stored_model_says_what_it_takes_and_needs(logged, model):
    signature = logged.signature
    assert signature.inputs.input_names() == ["question", "context"]
    assert signature.outputs.input_names() == ["score", "start", "end", "answer"]
    defaults = {param.name: param.default for param in signature.params}
    assert defaults["top_k"] == 1 and defaults["max_answer_len"] == 15
    needed = Path(mlflow.pyfunc.get_model_dependencies(logged.model_uri)).read_text("utf-8")
    assert f"minibert-qa=={minibert.identity.installed_version()}" in needed.splitlines()
    assert model.model_config == FIRST
    assert model.predict(model.input_example)[0]["answer"] == "Ada"


def test_a_new_process_loads_a_saved_folder(tiny, tmp_path):
    """Also without the files that it was made from."""
    qa = minibert.QuestionAnswerer.from_pretrained(tiny, **FIRST)
    qa.save_pretrained(tmp_path / "trained")
    ours.save_model(
        tmp_path / "saved", tmp_path / "trained", model_config=FIRST | {"max_length": 40}
    )
    (tmp_path / "trained").rename(tmp_path / "elsewhere")
    program = (
        "import json, sys, mlflow, pandas as pd; model = mlflow.pyfunc.load_model(sys.argv[1]);"
        "table = pd.DataFrame(json.loads(sys.argv[2])); print(json.dumps(model.predict(table)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "saved"), json.dumps(ROWS)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    reader = minibert.QuestionAnswerer.from_pretrained(tiny, max_length=40, **FIRST)
    assert json.loads(run.stdout.splitlines()[-1]) == minibert.pipeline(model=reader)(ROWS)
