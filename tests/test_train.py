"""Training and evaluation on the project's own examples: training learns, and saves its model."""

import json
import random
import re
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import minibert
from minibert import engine
from minibert.batches import collate, length_batches
from minibert.qa import soft_span_loss, span_loss
from minibert.training import config as training_config
from minibert.training.checkpoints import CHECKPOINTS, read_checkpoint
from minibert.training.config import TrainingConfig
from minibert.training.distillation import soft_targets
from minibert.training.finetune import load_data, train, train_step
from minibert.training.job import Job
from minibert.training.optimizer import decay_groups, make_optimizer, schedule

NOTES = str(Path(__file__).parent / "data" / "field_notes.json")


def config(tiny: Path, output: Path, **changes: Any) -> TrainingConfig:
    small = TrainingConfig(
        init=str(tiny),
        train_file=NOTES,
        output_dir=str(output),
        epochs=1,
        learning_rate=1e-3,
        max_length=128,
        doc_stride=32,
        max_train_examples=48,
        precision="fp32",
        progress=False,
    )
    return replace(small, **changes)


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_model_learns_and_is_saved(tiny, tmp_path):
    output = tmp_path / "run"
    with pytest.warns(UserWarning, match="^28 of 120 questions have no answer"):
        metrics = train(config(tiny, output, epochs=8, learning_rate=5e-3, dev_file=NOTES))
    steps = [line for line in lines(output) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    first, last = (
        sum(line["loss"] for line in steps if line["epoch"] == epoch) for epoch in (1, 8)
    )
    assert last < 0.5 * first  # measured: 0.3; with a learning rate of 1e-12: 1.02
    evaluations = [line for line in lines(output) if "f1" in line]
    assert len(evaluations) == 8 and evaluations[-1]["f1"] == metrics["f1"]

    qa = minibert.QuestionAnswerer.from_pretrained(
        output, "eager", max_length=128, doc_stride=32, precision="fp32"
    )
    examples = minibert.load_squad(NOTES)
    again = minibert.evaluate(qa, examples, tmp_path / "evaluation")
    assert again == pytest.approx(metrics, abs=1e-5)  # 1e-5 for thresholds, which are logits
    predictions = json.loads((tmp_path / "evaluation" / "predictions.json").read_text("utf-8"))
    nbest = json.loads((tmp_path / "evaluation" / "nbest_predictions.json").read_text("utf-8"))
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text("utf-8")) == again
    for example in examples:
        assert predictions[example.id] == nbest[example.id][0]["answer"]
        best = nbest[example.id][0]
        assert example.context[best["start"] : best["end"]] == best["answer"]
    best = {"best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh"}
    assert best <= again.keys()
    official = minibert.squad_metrics(predictions, examples)
    assert official == {name: value for name, value in again.items() if name not in best}


def test_the_same_seed_gives_the_same_weights(tiny, tmp_path):
    """Bit for bit on the same machine: the seed decides the order, dropout and the new head."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(config(tiny, tmp_path / name, seed=seed))
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b and a != c


def test_a_step_does_not_depend_on_the_size_of_its_passes(tiny, tmp_path):
    """Without dropout, for the first loss and the norm of the first gradient. The sums have another
    order, so they round differently. Later steps drift, because Adam amplifies rounding errors."""
    for name, max_tokens in (("whole", 100_000), ("parts", 300)):
        train(config(tiny, tmp_path / name, dropout=0.0, max_tokens=max_tokens))
    whole, parts = (lines(tmp_path / name)[0] for name in ("whole", "parts"))
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_bf16_trains(tiny, tmp_path):
    train(config(tiny, tmp_path / "run", precision="bf16", epochs=2))
    model = minibert.BertForQuestionAnswering.from_pretrained(tmp_path / "run")
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in model.parameters())


def test_the_learning_rate_rises_and_falls_in_straight_lines(tiny, tmp_path):
    train(config(tiny, tmp_path / "run", batch_size=4, warmup_ratio=0.25, learning_rate=1e-3))
    rates = [line["learning_rate"] for line in lines(tmp_path / "run")]
    warmup = round(0.25 * len(rates))
    assert rates[0] == 0.0 and rates[warmup] == max(rates) == 1e-3
    assert rates[-1] == pytest.approx(1e-3 / (len(rates) - warmup))


def test_the_schedule_ends_with_a_part_of_an_epoch(tiny, tmp_path):
    train(config(tiny, tmp_path / "run", epochs=1.5, batch_size=4, dev_file=NOTES))
    rows = lines(tmp_path / "run")
    steps = [row for row in rows if "loss" in row]
    first = sum(row["epoch"] == 1 for row in steps)
    assert len(steps) == round(1.5 * first) and [r["epoch"] for r in rows if "f1" in r] == [1, 2]
    assert steps[-1]["learning_rate"] == pytest.approx(1e-3 / len(steps))


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (10, 10)])
def test_schedule_equals_the_reference(transformers, warmup, total):
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = transformers.get_linear_schedule_with_warmup(optimizer, warmup, total)
    for step in range(total):
        assert schedule(step, warmup, total) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_what_decays_is_what_the_reference_decays(transformers, tiny):
    """S and E decay too, as their [2, H] matrix does in the trainer of transformers."""
    model = minibert.BertForQuestionAnswering.from_pretrained(tiny)
    decayed, kept = decay_groups(model, 0.01)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.01, 0.0)
    theirs = transformers.BertForQuestionAnswering.from_pretrained(tiny)
    names = transformers.Trainer.get_decay_parameter_names(None, theirs)  # it does not use self
    numbers = sum(p.numel() for n, p in theirs.named_parameters() if n in names)
    assert sum(p.numel() for p in decayed["params"]) == numbers
    assert any(p is model.head.S for p in decayed["params"])
    everything = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in kept["params"]) == everything - numbers


def test_a_folder_that_holds_a_run_is_not_changed(tiny, tmp_path):
    train(config(tiny, tmp_path / "run"))
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(minibert.InputError, match="holds a model or a run already"):
        train(config(tiny, tmp_path / "run", seed=9))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"warmup_ratio": 1.5}, "warmup_ratio=1.5"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0"),
        ({"max_train_examples": 0}, "max_train_examples=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"teachers": "minilm"}, "teachers='minilm'"),
        ({"precision": "fp8"}, "precision='fp8'"),
    ],
)
def test_bad_settings_are_named(tiny, tmp_path, change, named):
    with pytest.raises(minibert.InputError, match=named):
        config(tiny, tmp_path, **change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"train_file": "none.json"}, "none.json: no such file"),
        ({"dev_file": "none.json"}, "none.json: no such file"),
        ({"init": "no/such/folder"}, "no/such/folder"),
        ({"device": "abacus"}, "device='abacus'"),
        ({"max_length": 512}, "max_length=512, but this model has 384"),
    ],
)
def test_an_unreadable_input_is_met_before_anything_is_written(tiny, tmp_path, change, named):
    with pytest.raises(minibert.MinibertError, match=named):
        train(config(tiny, tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


def test_a_dev_question_too_long_is_met_before_training(tiny, tmp_path):
    example = {
        "id": "q",
        "question": "lamp " * 90,
        "answers": [{"text": "lamp", "answer_start": 0}],
    }
    data = {"data": [{"paragraphs": [{"context": "lamp", "qas": [example]}]}]}
    (tmp_path / "dev.json").write_text(json.dumps(data))
    with pytest.raises(minibert.InputError, match="q: max_length=128 leaves room"):
        train(config(tiny, tmp_path / "run", dev_file=str(tmp_path / "dev.json"), doc_stride=61))
    assert not (tmp_path / "run").exists()


def test_an_output_that_cannot_be_a_folder_is_met_before_training(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(minibert.InputError, match="cannot be a folder"):
        train(config(tiny, tmp_path / "file"))
    with pytest.raises(minibert.InputError, match="cannot be a folder"):
        minibert.evaluate(None, [], tmp_path / "file")


@pytest.mark.parametrize(
    ("every", "good"), [(500, "none yet"), (1, "checkpoint-0000001.safetensors")]
)
def test_a_number_that_is_not_finite_stops_the_run(tiny, tmp_path, every, good):
    """The message names the step, the last good checkpoint and the batch's examples."""
    wild = config(tiny, tmp_path / "run", learning_rate=1e30, checkpoint_every=every)
    with pytest.raises(
        minibert.NonFiniteError, match=r"step 2: not a finite number: loss nan"
    ) as caught:
        train(wild)
    features = minibert.prepare_train_features(
        random.Random(42).sample(minibert.load_squad(NOTES), 48),
        minibert.Tokenizer.from_pretrained(tiny),
        128,
        32,
    )
    names = [features[k].example_id for k in length_batches(features, 16, seed=43)[1]]
    assert str(caught.value).endswith(f"{good}; examples: {', '.join(names)}")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_defaults_are_those_of_the_blog_post():
    recipe = asdict(TrainingConfig(init="i", train_file="t", output_dir="o"))
    wanted = {"learning_rate": 2e-5, "batch_size": 16, "epochs": 3, "weight_decay": 0.01}
    wanted |= {"max_length": 384, "doc_stride": 128, "warmup_ratio": 0.0}
    assert {name: recipe[name] for name in wanted} == wanted


def test_padding_never_exceeds_the_positions():
    """The windows' length is not a multiple of 8, to which batches are padded."""
    ids = np.arange(5, 57, dtype=np.int32)
    context = minibert.Pieces(ids, np.zeros((52, 2), np.int32), ids)
    feature = minibert.Feature("1", 0, (2, 4, 4, 4, 3), context, 0, 51, 7, 9)
    assert len(feature) == 58
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = minibert.BertForQuestionAnswering(
        minibert.BertConfig(vocab_size=60, max_position_embeddings=58, intermediate_size=8, **sizes)
    )
    settings = TrainingConfig("", "", "", max_length=58, precision="fp32")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    tokenizer = SimpleNamespace(pad_id=0)
    assert train_step(Job(model, optimizer, tokenizer, settings), [feature]).finite


def other_than(tiny: Path, output: Path, seed: int) -> str:
    """A teacher: the tiny model with another head and noise on its weights."""
    torch.manual_seed(seed)
    model = minibert.BertForQuestionAnswering.from_pretrained(tiny)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(output)
    minibert.Tokenizer.from_pretrained(tiny).save_pretrained(output)
    return str(output)


def test_teachers_give_half_of_the_target(tiny, tmp_path):
    """For each window, one half of the loss comes from the label. The other half is the
    cross-entropy against the teachers' mean. A window without its answer has only the label."""
    paths = [other_than(tiny, tmp_path / str(seed), seed) for seed in (1, 2)]
    student, *teachers = map(minibert.BertForQuestionAnswering.from_pretrained, (tiny, *paths))
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    windows = load_data(config(tiny, tmp_path, negatives=0.5), tokenizer).features
    batch = collate(windows, tokenizer.pad_id)
    out = student(*batch[:3])
    logits = (out.start_logits, out.end_logits)
    targets = soft_targets(teachers, batch, "fp32")
    taught = torch.stack(targets)  # (2, B, T)
    assert torch.allclose(taught.sum(2), torch.ones(()), atol=1e-6)
    assert not taught.masked_select(batch.attention_mask == 0).any()

    expected, answered = [], 0
    for row, window in enumerate(windows):
        alone = collate([window], tokenizer.pad_id)
        shown = [side[row : row + 1, : len(window)] for side in logits]
        label = span_loss(*shown, *alone[3:])
        answered += window.start_position != 0
        if window.start_position:
            outs = [teacher(*alone[:3]) for teacher in teachers]
            sides = [
                torch.nn.functional.cross_entropy(
                    side, (sum(getattr(o, name) for o in outs) / 2).softmax(1)
                )
                for side, name in zip(shown, ("start_logits", "end_logits"), strict=True)
            ]
            label = (label + sum(sides) / 2) / 2
        expected.append(label.item())
    assert 0 < answered < len(windows)
    ours = soft_span_loss(*logits, *targets, batch.attention_mask)
    assert ours.item() == pytest.approx(np.mean(expected), rel=1e-5)  # float32, other lengths


def test_a_target_with_one_certain_token_is_a_label(tiny):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 7).unbind()
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 4 + [0] * 3])
    places = torch.tensor([[3, 0, 2], [6, 0, 3]]).unbind()
    targets = [torch.nn.functional.one_hot(side, 7) for side in places]
    ours = soft_span_loss(*logits, *targets, mask)
    assert ours.item() == pytest.approx(span_loss(*logits, *places, mask).item(), rel=1e-6)


def test_a_run_with_teachers(tiny, tmp_path):
    """It learns from its teachers, and resumes with the same teachers only."""
    teachers = (other_than(tiny, tmp_path / "t1", 1), other_than(tiny, tmp_path / "t2", 2))
    train(config(tiny, tmp_path / "without"))
    train(config(tiny, tmp_path / "run", teachers=teachers))
    first, other = (lines(tmp_path / name)[0]["loss"] for name in ("without", "run"))
    assert first != other
    train(config(tiny, tmp_path / "run", teachers=teachers), resume=True)
    with pytest.raises(minibert.CheckpointError, match="teacher_weights"):
        train(config(tiny, tmp_path / "run", teachers=teachers[:1]), resume=True)


def test_a_teacher_with_other_tokens_is_named(tiny, minilm, tmp_path):
    with pytest.raises(minibert.InputError, match="must have the tokenizer"):
        train(config(tiny, tmp_path / "run", teachers=(str(minilm),)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_position_embeddings": 100}, "max_length=128, but this model has 100 positions"),
        ({"vocab_size": 1000}, "embeddings for 1000"),
        ({"type_vocab_size": 1}, "type_vocab_size=1"),
    ],
)
def test_a_teacher_that_cannot_read_the_windows(tiny, tmp_path, change, named):
    """It is refused before anything is written, so the command can run again without it."""
    teacher = str(tmp_path / "teacher")
    sizes = json.loads((tiny / "config.json").read_text(encoding="utf-8")) | change
    model = minibert.BertForQuestionAnswering(minibert.BertConfig.from_dict(sizes))
    model.save_pretrained(teacher)
    minibert.Tokenizer.from_pretrained(tiny).save_pretrained(teacher)
    with pytest.raises(minibert.MinibertError, match=f"^{re.escape(teacher)}: .*{named}"):
        train(config(tiny, tmp_path / "run", teachers=(teacher,)))
    assert not (tmp_path / "run").exists()
    train(config(tiny, tmp_path / "run", epochs=0.1))


# Training in float16, which is for GPUs. It works on a CPU too, so the loss scale is tested there.
# Most CPUs are very slow at it.
SHORT = {
    "max_train_examples": 5, "batch_size": 1, "epochs": 2, "max_length": 64, "doc_stride": 8
}  # fmt: skip


@pytest.fixture
def float16_on_a_cpu(monkeypatch):
    """Returns a function that sets the first loss scale."""
    for module in (engine, training_config):
        monkeypatch.setattr(module, "choose_precision", lambda *given, **named: "fp16")
    plain = torch.amp.GradScaler

    def set_scale(scale: float) -> None:
        scaler = partial(plain, init_scale=scale, growth_interval=2)
        monkeypatch.setattr(torch.amp, "GradScaler", scaler)

    return set_scale


def test_float16_leaves_steps_out_until_the_scale_fits(tiny, tmp_path, float16_on_a_cpu):
    float16_on_a_cpu(2.0**22)
    train(config(tiny, tmp_path / "run", **SHORT))
    taken = ["grad_norm" in line for line in lines(tmp_path / "run")]
    assert not taken[0] and any(taken)  # the scale of each next step is half
    model = minibert.BertForQuestionAnswering.from_pretrained(tmp_path / "run")
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in model.parameters())


def test_a_resumed_float16_run_ends_with_the_same_weights(tiny, tmp_path, float16_on_a_cpu):
    float16_on_a_cpu(2.0**22)  # it changes during the run
    settings = SHORT | {"checkpoint_every": 3, "keep_checkpoints": 99}
    train(config(tiny, tmp_path / "whole", **settings))
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    first, *later = sorted((tmp_path / "resumed").glob(CHECKPOINTS))
    scales = {read_checkpoint(path)[1]["loss_scale"]["scale"] for path in (first, *later)}
    assert len(scales) > 1
    for path in later:
        path.unlink()
    train(config(tiny, tmp_path / "resumed", **settings), resume=True)
    whole, resumed = ((tmp_path / n / "model.safetensors") for n in ("whole", "resumed"))
    assert whole.read_bytes() == resumed.read_bytes()


@pytest.mark.parametrize(("scale", "finite"), [(4.0, True), (1.0, False)])
def test_gradients_that_are_not_finite_at_any_scale_are_an_error(
    tiny, tmp_path, float16_on_a_cpu, scale, finite
):
    float16_on_a_cpu(scale)
    model = minibert.BertForQuestionAnswering.from_pretrained(tiny)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = config(tiny, tmp_path / "run")
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    optimizer = make_optimizer(model, settings, torch.device("cpu"))
    job = Job(model, optimizer, tokenizer, settings)
    job.scaler.scale(model.head.S.sum() * float("inf")).backward()
    assert job.take_step(1.0, True).finite == finite
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert job.scaler.get_scale() == scale / 2
