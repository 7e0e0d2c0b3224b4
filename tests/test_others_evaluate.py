"""The evaluator of the package `evaluate`, unchanged, with our pipeline: the same answers and the
same figures as ours."""

import re
import textwrap
from pathlib import Path
from typing import Any

import datasets
import pytest

import minibert

evaluate = pytest.importorskip("evaluate", reason="pip install evaluate[evaluator]")
pytest.importorskip("scipy", reason="pip install evaluate[evaluator]")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.others

GUIDE = Path(__file__).parent.parent / "notebooks" / "from-transformers.md"
TEXT = datasets.Value("string")


class Squad(evaluate.Metric):
    """The metrics "squad" and "squad_v2" as objects of `evaluate`. `evaluate.load` downloads them,
    so this one computes with our implementation. It keeps what the evaluator gives it."""

    def __init__(self, no_answer: bool) -> None:
        self.no_answer = no_answer
        super().__init__(config_name="v2" if no_answer else "v1")

    def _info(self) -> Any:
        prediction = {"id": TEXT, "prediction_text": TEXT}
        if self.no_answer:
            prediction["no_answer_probability"] = datasets.Value("float32")
        gold = {"text": TEXT, "answer_start": datasets.Value("int32")}
        reference = {"id": TEXT, "answers": datasets.Sequence(gold)}
        features = datasets.Features({"predictions": prediction, "references": reference})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
        self.answers = [one["prediction_text"] for one in predictions]
        self.scores = [one.get("no_answer_probability") for one in predictions]
        golds = [one["answers"] for one in references]
        examples = [
            minibert.Example(
                one["id"],
                "Who?",
                "Ada",
                tuple(map(minibert.GoldAnswer, gold["text"], gold["answer_start"])),
                is_impossible=not gold["text"],
            )
            for one, gold in zip(references, golds, strict=True)
        ]
        texts = {one["id"]: one["prediction_text"] for one in predictions}
        return minibert.squad_metrics(texts, examples)


@pytest.mark.parametrize("no_answer", [False, True])
def test_the_evaluator_runs_unchanged(monkeypatch, field_notes, no_answer):
    """The code of the guide. `evaluate` 0.4.6 asks `transformers` for a class that version 5 no
    longer has, and fails for every pipeline. So the code gives `transformers` an empty class."""
    blocks = re.findall(r"```py\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "import evaluate" in block)
    monkeypatch.setattr(transformers, "TFPreTrainedModel", None, raising=False)  # restored after it
    # the evaluator changes these for its whole class, and so for the next test
    kind = type(evaluate.evaluator("question-answering"))
    monkeypatch.setattr(kind, "PIPELINE_KWARGS", dict(kind.PIPELINE_KWARGS))
    examples = [e for e in field_notes if no_answer or not e.is_impossible][:24]
    assert any(e.is_impossible for e in examples) == no_answer
    rows = [
        {
            "id": e.id,
            "question": e.question,
            "context": e.context,
            "answers": {
                "text": [gold.text for gold in e.answers],
                "answer_start": [gold.char_start for gold in e.answers],
            },
        }
        for e in examples
    ]
    metric = Squad(no_answer)
    names = {"data": datasets.Dataset.from_list(rows), "metric": metric}
    exec(compile(textwrap.dedent(code), str(GUIDE), "exec"), names)
    reader, result = names["reader"], names["metrics"]
    questions, contexts = [e.question for e in examples], [e.context for e in examples]
    ours = reader(question=questions, context=contexts, handle_impossible_answer=no_answer)
    assert metric.answers == [one["answer"] for one in ours]
    if no_answer:
        assert metric.scores == pytest.approx([one["score"] for one in ours])
    texts = {e.id: answer for e, answer in zip(examples, metric.answers, strict=True)}
    expected = minibert.squad_metrics(texts, examples)
    assert {name: result[name] for name in expected} == expected
    assert result["f1"] > 50 and result["total"] == 24 and result["samples_per_second"] > 0
