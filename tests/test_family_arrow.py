"""The whole arrow with each of BERT's siblings: the drop-in beside the reference's pipeline,
training that resumes, the commands, the bench's engines."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import siblings
import torch
from safetensors.torch import load_file
from test_family_tokenizers import stripped

import minibert
from minibert.bench import answering
from minibert.cli import main
from minibert.explain.attribution import sentences
from minibert.training import finetune as training

ALL = siblings.FAMILIES
NOTES = str(Path(__file__).parent / "data" / "field_notes.json")


@pytest.fixture(scope="module")
def folders(transformers, tmp_path_factory) -> dict[str, Path]:
    """A small checkpoint of each family, with its tokenizer."""
    found = {}
    for k, model_type in enumerate(ALL):
        torch.manual_seed(k)
        found[model_type] = tmp_path_factory.mktemp(model_type)
        siblings.checkpoint(transformers, model_type, found[model_type])
    return found


@pytest.mark.parametrize("model_type", ALL)
def test_best_answers_are_the_pipeline_s(transformers, folders, field_notes, model_type):
    """On contexts of one window: the same text and place, but for white space at its edges, which
    is theirs alone. Aligned to words theirs adds up the scores of spans of the same words; where
    another answer wins, its score is more than any span's."""
    if not hasattr(transformers, "QuestionAnsweringPipeline"):
        pytest.skip("this transformers has no question-answering pipeline (5.2.0 is the last)")
    folder = str(folders[model_type])
    theirs = transformers.pipeline("question-answering", model=folder, tokenizer=folder)
    ours = minibert.pipeline("question-answering", model=folder, dtype="float32")
    aligned = []
    for example in field_notes[::6]:
        context = example.context[:300]
        call = {"question": example.question, "context": context, "align_to_words": False}
        a, b = ours(**call), theirs(**call)
        assert [a["start"], a["end"]] == stripped(context, b["start"], b["end"])
        words = call | {"align_to_words": True}
        a, summed = ours(**words), theirs(**words)
        same = [a["start"], a["end"]] == stripped(context, summed["start"], summed["end"])
        assert same or summed["score"] > b["score"]
        aligned.append(same)
    assert sum(aligned) >= len(aligned) / 3


@pytest.mark.parametrize("model_type", ["roberta", "distilbert"])
def test_training_resumes_to_the_same_weights(folders, tmp_path, monkeypatch, model_type):
    """A run of 50 steps, and one that stops without warning in its 32nd step and resumes."""
    settings: dict[str, Any] = {
        "init": str(folders[model_type]), "train_file": NOTES, "dev_file": NOTES, "epochs": 50 / 50,
        "learning_rate": 1e-3, "max_length": 128, "doc_stride": 32, "batch_size": 4,
        "max_train_examples": 60, "checkpoint_every": 15, "progress": False,
    }  # fmt: skip
    whole = training.TrainingConfig(output_dir=str(tmp_path / "whole"), **settings)
    training.train(whole)
    log = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").open()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert len(losses) >= 50 and sum(losses[-10:]) < sum(losses[:10])

    step, taken = training.train_step, 0

    def dies(*args: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 32:
            raise RuntimeError("out of power")
        return step(*args)

    monkeypatch.setattr(training, "train_step", dies)
    stopped = training.TrainingConfig(output_dir=str(tmp_path / "stopped"), **settings)
    with pytest.raises(RuntimeError, match="out of power"):
        training.train(stopped)
    monkeypatch.setattr(training, "train_step", step)
    training.train(stopped, resume=True)
    names = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (
            tmp_path / "stopped" / name
        ).read_bytes()
    before = load_file(folders[model_type] / "model.safetensors")
    after = load_file(tmp_path / "whole" / "model.safetensors")
    assert before.keys() == after.keys()
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["model_type"] == model_type
    qa = minibert.QuestionAnswerer.from_pretrained(tmp_path / "whole")
    assert qa("Who lit the lamp?", "Ada lit the lamp.").answer in "Ada lit the lamp."


@pytest.mark.slow
def test_a_model_learns_with_robbert_s_shape_of_tokenizer(tmp_path, field_notes):
    """Its pre-tokenizer puts a space before each word, and its post-processor does not know this.

    A small model learns 92 questions by heart. Each context is the sentence with the answer.
    """
    examples = []
    for example in field_notes:
        for answer in example.answers[:1]:
            place = answer.char_start
            ends = [(a, b) for a, b in sentences(example.context) if a <= place < b]
            gold = replace(answer, char_start=place - ends[0][0])
            context = example.context[slice(*ends[0])]
            examples.append(replace(example, context=context, answers=(gold,)))
    assert len(examples) == 92
    rows = [
        json.dumps({
            "id": e.id, "question": e.question, "context": e.context,
            "answers": {"text": [a.text for a in e.answers],
                        "answer_start": [a.char_start for a in e.answers]},
        })
        for e in examples
    ]  # fmt: skip
    data = tmp_path / "notes.jsonl"
    data.write_text("\n".join(rows), encoding="utf-8")

    siblings.write_tokenizer("roberta", tmp_path / "init", 1000)
    path = tmp_path / "init" / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    level = state["pre_tokenizer"] | {"add_prefix_space": True}
    parts = [{"type": "WhitespaceSplit"}, level]
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    path.write_text(json.dumps(state), encoding="utf-8")
    sizes = {
        "vocab_size": 1000, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 256, "max_position_embeddings": 386, "type_vocab_size": 1,
    }  # fmt: skip
    config = minibert.BertConfig.from_dict({"model_type": "roberta", **sizes})
    minibert.BertForQuestionAnswering(config).save_pretrained(tmp_path / "init")

    settings = training.TrainingConfig(
        str(tmp_path / "init"), str(data), str(tmp_path / "out"), epochs=30, batch_size=8,
        learning_rate=1e-3, warmup_ratio=0.1, dropout=0.0, progress=False,
    )  # fmt: skip
    training.train(settings)
    qa = minibert.QuestionAnswerer.from_pretrained(tmp_path / "out", precision="fp32")
    assert minibert.evaluate(qa, examples)["exact_match"] >= 95


@pytest.mark.parametrize("model_type", ALL)
def test_evaluated(folders, tmp_path, field_notes, model_type):
    qa = minibert.QuestionAnswerer.from_pretrained(folders[model_type], precision="fp32")
    metrics = minibert.evaluate(qa, field_notes[:10], tmp_path)
    assert {"exact_match", "f1"} <= metrics.keys()
    told = json.loads((tmp_path / "predictions.json").read_text())
    assert told.keys() == {example.id for example in field_notes[:10]}


@pytest.mark.parametrize("model_type", ALL)
def test_no_answer_is_one_candidate(folders, model_type):
    qa = minibert.QuestionAnswerer.from_pretrained(folders[model_type], precision="fp32")
    answers = qa("Who lit it?", "Ada lit it.", top_k=10_000, no_answer=True)
    assert sum(a.score for a in answers) == pytest.approx(1)
    assert sum(a.answer == "" for a in answers) == 1


@pytest.mark.parametrize("model_type", ALL)
def test_bfloat16_and_its_kernels(folders, model_type):
    """Where the processor has them; else it is emulated."""
    context = "At dusk the keeper, Ada, lit the lamp."
    qa = minibert.QuestionAnswerer.from_pretrained(folders[model_type], precision="bf16")
    answer = qa("Who lit the lamp?", context)
    assert answer.answer and context[answer.start : answer.end] == answer.answer


@pytest.mark.parametrize("model_type", ALL)
def test_inspect_prints_the_family_and_every_key(folders, monkeypatch, capsys, model_type):
    monkeypatch.setattr("sys.argv", ["minibert", "inspect", str(folders[model_type])])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().out
    assert end.value.code in (0, None)
    assert f"{'model_type':30} {model_type}" in said and " 0 missing, 0 unexpected" in said


@pytest.mark.parametrize("model_type", ALL)
def test_the_bench_s_engines_answer(transformers, folders, field_notes, model_type):
    """minibert beside transformers on the same weights: the same answers, mostly."""
    examples, cpu = field_notes[:12], torch.device("cpu")
    setup = answering.Setup(str(folders[model_type]), cpu, samples=())
    ours, well, plain = (
        answering.ENGINES[name][1](setup).answer(examples)
        for name in (
            "minibert, float32",
            "transformers, float32",
            "transformers, the blog post's way",
        )
    )
    assert ours.keys() == well.keys() == plain.keys()
    alike = [ours[key] == well[key].strip() for key in ours]
    assert sum(alike) >= 9  # theirs takes the best of each window alone, pieces of one letter apart


@pytest.mark.parametrize("model_type", ALL)
def test_max_length_is_what_the_positions_leave(transformers, tmp_path, model_type):
    """RoBERTa's first two positions are never a token's."""
    siblings.checkpoint(transformers, model_type, tmp_path, max_position_embeddings=100)
    qa = minibert.QuestionAnswerer.from_pretrained(tmp_path, precision="fp32")
    assert qa.window_settings.max_length == qa.model.config.max_length == 100
    assert qa("Who lit the lamp?", "Ada lit the lamp. " * 40).answer  # several full windows
    with pytest.raises(minibert.InputError, match="this model has 100 positions"):
        minibert.QuestionAnswerer.from_pretrained(tmp_path, max_length=101)
    assert asdict(qa.model.config)["model_type"] == model_type
