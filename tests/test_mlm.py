"""Continued pretraining of an encoder: masks, head, and a run that stops and resumes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import minibert
from minibert import Bert, Tokenizer, TrainingConfig
from minibert.cli import app
from minibert.training import masked_lm as mlm
from minibert.training import run
from minibert.training.job import Job
from minibert.training.parallel import ProcessGroup

NOTES = str(Path(__file__).parent / "data" / "field_notes.json")


def config(tiny, output, **changes) -> TrainingConfig:
    given = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3, "dropout": 0.0} | changes
    return TrainingConfig(str(tiny), NOTES, str(output), progress=False, **given)


def test_masks_have_the_paper_s_shares():
    """300,000 tokens: each share within 5 standard deviations of the paper's."""
    ids = torch.randint(10, 1000, (300, 1000), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, 700], ids[:, 900:] = 1, 2, 0
    shown, chosen = mlm.mask_tokens(ids, [0, 1, 2], 3, 1000, seed=5)
    assert not chosen[:, [0, 700, *range(900, 1000)]].any()
    assert torch.equal(shown[~chosen], ids[~chosen])
    tokens = 300 * 898
    assert chosen.sum().item() / tokens == pytest.approx(
        0.15, abs=5 * (0.15 * 0.85 / tokens) ** 0.5
    )
    count = int(chosen.sum())
    hidden = (shown == 3)[chosen].sum().item() / count
    same = (shown == ids)[chosen].sum().item() / count
    assert hidden == pytest.approx(0.8, abs=5 * (0.8 * 0.2 / count) ** 0.5)
    # a random token is sometimes the original token
    assert same == pytest.approx(0.1, abs=5 * (0.1 * 0.9 / count) ** 0.5 + 1e-3)
    replaced = shown[chosen & (shown != 3) & (shown != ids)]
    assert replaced.min() < 20 and replaced.max() > 980  # from the whole vocabulary


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(1, 6), st.integers(1, 40))
def test_the_same_seed_gives_the_same_masks(seed, rows, tokens):
    ids = torch.arange(rows * tokens).view(rows, tokens) + 5
    first, again = (mlm.mask_tokens(ids, [0], 3, 300, seed) for _ in range(2))
    assert all(map(torch.equal, first, again))


def test_logits_equal_the_reference(transformers, tiny):
    """With the reference's weights; to 1e-5, because products of other shapes round differently."""
    torch.manual_seed(0)
    reference = transformers.BertForMaskedLM(transformers.BertConfig.from_pretrained(tiny)).eval()
    encoder = transformers.BertModel.from_pretrained(tiny, add_pooling_layer=False)
    reference.bert.load_state_dict(encoder.state_dict())
    predictions = reference.cls.predictions
    torch.nn.init.normal_(predictions.bias)
    model = mlm.MaskedLM(Bert.from_pretrained(tiny)).eval()
    transform = predictions.transform
    model.head.dense.load_state_dict(transform.dense.state_dict())
    model.head.norm.load_state_dict(transform.LayerNorm.state_dict())
    model.head.bias.data.copy_(predictions.bias)
    ids = torch.randint(5, 90, (3, 17))
    mask, segments = torch.ones_like(ids), torch.zeros_like(ids)
    mask[1, 12:] = 0
    chosen = torch.rand(3, 17).lt(0.4) & mask.bool()
    with torch.no_grad():
        ours = model(ids, mask, segments, chosen)
        theirs = reference(ids, mask, segments).logits[chosen]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_step_does_not_depend_on_the_size_of_its_passes(tiny):
    """The loss is a mean over all chosen tokens, for any number of windows in one pass."""
    tokenizer = Tokenizer.from_pretrained(tiny)
    settings = config(tiny, "")
    windows = [w for batch in mlm.load_passages(settings, tokenizer)[0][0] for w in batch][:8]

    def weights_after(max_tokens):
        torch.manual_seed(0)
        model = mlm.MaskedLM(Bert.from_pretrained(tiny)).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        part = replace(settings, max_tokens=max_tokens, precision="fp32")
        result = mlm.masked_lm_step(Job(model, optimizer, tokenizer, part), windows, seed=3)
        return result, torch.nn.utils.parameters_to_vector(model.parameters())

    (whole, one), (parts, other) = weights_after(10**6), weights_after(1)
    assert whole.finite and whole.loss == pytest.approx(parts.loss, rel=1e-5)
    assert torch.allclose(one, other, atol=1e-6)  # the sums have another order


class Rank(ProcessGroup):
    """One of several processes, without the shares of the others."""

    def gather(self, value):
        return [value]

    def add_gradients(self, model):
        pass


@pytest.mark.parametrize("count", [1, 5])  # one window is less than one for each process
def test_shares_of_a_batch_add_up_to_it(tiny, count):
    """For the changes of the weights, without clipping; to 1e-6: the sums have another order."""
    tokenizer = Tokenizer.from_pretrained(tiny)
    part = config(tiny, "", precision="fp32", max_grad_norm=1e9)
    windows = [w for batch in mlm.load_passages(part, tokenizer)[0][0] for w in batch][:count]

    def change(group):
        torch.manual_seed(0)
        model = mlm.MaskedLM(Bert.from_pretrained(tiny)).eval()  # no dropout
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        result = mlm.masked_lm_step(Job(model, optimizer, tokenizer, part, group), windows, 3)
        return result.loss, torch.nn.utils.parameters_to_vector(model.parameters()) - before

    loss, whole = change(Rank(0, 1))
    losses, parts = zip(*(change(Rank(rank, 2)) for rank in (0, 1)), strict=True)
    assert loss == pytest.approx(sum(losses), rel=1e-5) and whole.abs().max() > 1e-4
    assert torch.allclose(whole, sum(parts), atol=1e-6)


def test_every_epoch_has_one_question_for_every_passage():
    examples = minibert.load_squad(NOTES)
    first, second = (mlm.one_question_each(examples, seed) for seed in (1, 2))
    contexts = {example.context for example in examples}
    for asked in (first, second):
        assert len(asked) == len(contexts) and {e.context for e in asked} == contexts
    assert {e.id for e in first} != {e.id for e in second}


def test_an_encoder_learns_and_is_saved(transformers, tiny, tmp_path):
    minibert.adapt(config(tiny, tmp_path / "out", epochs=6))
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    report = json.loads((tmp_path / "out" / "config.json").read_text())
    was = json.loads((tiny / "config.json").read_text())
    # the changed dropout rate was only for this run
    assert report["architectures"] == ["BertModel"]
    assert report["hidden_dropout_prob"] == was["hidden_dropout_prob"]
    ours = Bert.from_pretrained(tmp_path / "out")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "out", add_pooling_layer=False)
    ids = torch.randint(5, 90, (2, 9))
    with torch.no_grad():
        expected = theirs.eval()(ids).last_hidden_state
        # to 1e-5, because the reference computes with sdpa
        assert torch.allclose(ours(ids).hidden_states[-1], expected, atol=1e-5)
        before = Bert.from_pretrained(tiny)(ids).hidden_states[-1]
    assert not torch.allclose(before, expected, atol=0.01)
    # fine-tuning can start from this encoder
    minibert.train(
        TrainingConfig(
            str(tmp_path / "out"), NOTES, str(tmp_path / "tuned"), epochs=0.1, progress=False
        )
    )


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_at", [3, 9])
def test_stopped_and_resumed_it_ends_with_the_same_weights(tiny, tmp_path, monkeypatch, stop_at):
    """In the first epoch, and in the second; with dropout, which continues its random numbers."""
    settings = {"checkpoint_every": 2, "dropout": 0.1, "batch_size": 4, "epochs": 1.5}
    minibert.adapt(config(tiny, tmp_path / "whole", **settings))
    step = mlm.masked_lm_step
    calls = []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == stop_at:
            raise Stop
        return step(*arguments)

    monkeypatch.setattr(mlm, "masked_lm_step", stopping)
    with pytest.raises(Stop):
        minibert.adapt(config(tiny, tmp_path / "parts", **settings))
    minibert.adapt(config(tiny, tmp_path / "parts", **settings), resume=True)
    whole, parts = (
        safetensors.torch.load_file(tmp_path / name / "model.safetensors")
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_settings_of_training_hold(tiny, tmp_path, monkeypatch):
    """And another machine resumes only on request, as in `train`."""
    changes = {"max_tokens": 300, "attention": "sdpa", "weight_decay": 0.5, "keep_checkpoints": 1}
    settings = config(tiny, tmp_path, epochs=0.5, checkpoint_every=1, **changes)
    minibert.adapt(settings)
    run_json = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert {name: run_json[name] for name in changes} == changes
    assert len(list(tmp_path.glob("checkpoint-*"))) == 1
    monkeypatch.setattr(run, "device_name", lambda device: "Abacus 9000")
    with pytest.raises(minibert.CheckpointError, match="Abacus"):
        minibert.adapt(settings, resume=True)
    with pytest.warns(UserWarning, match="Abacus"):
        minibert.adapt(settings, resume=True, allow_other_machine=True)


@pytest.mark.parametrize("change", [{"negatives": 0.5}, {"dev_file": NOTES}, {"teachers": ("a",)}])
def test_settings_of_fine_tuning_are_refused(tiny, tmp_path, change):
    with pytest.raises(minibert.InputError, match=next(iter(change))):
        minibert.adapt(config(tiny, tmp_path, **change))


def test_a_tokenizer_that_does_not_fit_is_named(tiny, minilm, tmp_path):
    shutil.copytree(tiny, tmp_path / "mixed")
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm / name, tmp_path / "mixed" / name)
    with pytest.raises(minibert.PretrainedError, match="30522 tokens"):
        minibert.adapt(config(tmp_path / "mixed", tmp_path / "out"))


@pytest.mark.parametrize("lacking", ["a mask token", "positions"])
def test_what_is_lacking_is_named_before_anything_is_written(tiny, tmp_path, lacking):
    init = tmp_path / "init"
    sizes = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    tokens = (tiny / "vocab.txt").read_text(encoding="utf-8").splitlines()
    if lacking == "positions":
        sizes["max_position_embeddings"] = 200
        error = "max_length=384, but this model has 200 positions"
    else:
        tokens[tokens.index("[MASK]")] = "[unused1]"
        error = f"{init}: the vocabulary has no mask token"
    model = minibert.BertForQuestionAnswering(minibert.BertConfig.from_dict(sizes))
    model.save_pretrained(init)
    Tokenizer.from_vocabulary(tokens).save_pretrained(init)
    with pytest.raises(minibert.MinibertError, match=error) as raised:
        minibert.adapt(config(init, tmp_path / "out"))
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_a_skipped_question_is_listed_once(tiny, tmp_path):
    """Several epochs may ask it: here each passage has one question."""
    rows = [
        {"id": f"k{k}", "question": "Who?", "context": f"Ada {k} lit it.", "answer": "Ada"}
        for k in range(6)
    ]
    rows[1] |= {"answer": "Bo"}  # not in the context
    rows[2] |= {"question": "\u200b"}  # no words
    rows[4] |= {"question": "\u200b"}
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    settings = config(tiny, tmp_path / "out", epochs=4, skip_invalid=True)
    minibert.adapt(replace(settings, train_file=str(path)))
    listed = (tmp_path / "out" / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert len(listed) == 3
    assert all(any(name in line for line in listed) for name in ("k1", "k2", "k4"))


def test_any_seed_of_torch_is_accepted(tiny, tmp_path):
    minibert.adapt(config(tiny, tmp_path, epochs=0.1, seed=2**63))


def test_the_command(tiny, tmp_path):
    output = str(tmp_path / "out")
    arguments = ["adapt", "--train-file", NOTES, "--output", output, "--init", str(tiny)]
    result = CliRunner().invoke(app, [*arguments, "--epochs", "0.5"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1]) == {"output": output}
    assert Bert.from_pretrained(output)
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code != 0
