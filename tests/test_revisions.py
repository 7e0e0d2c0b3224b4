"""`revision=` wherever a hub id goes: the same id at two commits gives two models, offline, from a
cache as the hub's client keeps it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import minibert
from minibert.cli import main

NAME = "keeper/lamp"


@pytest.fixture
def hub_cache(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A cache with `main`, the tiny checkpoint, and `v1`: the same with another S and an uncased
    vocabulary that has lost its last token. Returns the hub id."""
    repo = tmp_path / "models--keeper--lamp"
    for revision, commit in (("main", "a" * 40), ("v1", "b" * 40)):
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / revision).write_text(commit)
        shutil.copytree(tiny, repo / "snapshots" / commit)
    old = repo / "snapshots" / ("b" * 40)
    model = minibert.BertForQuestionAnswering.from_pretrained(tiny)
    with torch.no_grad():
        model.head.S.neg_()
    model.save_pretrained(old)
    settings = json.loads((old / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["do_lower_case"] = False
    (old / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return NAME


def test_every_loader_reads_the_revision(hub_cache, tiny):
    new = minibert.BertForQuestionAnswering.from_pretrained(hub_cache)
    assert torch.equal(new.head.S, minibert.BertForQuestionAnswering.from_pretrained(tiny).head.S)
    for revision in ("v1", "b" * 40):  # a branch or tag, or a commit
        old = minibert.BertForQuestionAnswering.from_pretrained(hub_cache, revision=revision)
        assert torch.equal(old.head.S, -new.head.S)
        encoder = minibert.Bert.from_pretrained(hub_cache, revision=revision)
        assert torch.equal(encoder.embeddings.word.weight, new.bert.embeddings.word.weight)
        cased = minibert.Tokenizer.from_pretrained(hub_cache, revision=revision)
        assert cased.encode("The").ids.tolist() != cased.encode("the").ids.tolist()
        qa = minibert.QuestionAnswerer.from_pretrained(hub_cache, revision=revision)
        assert torch.equal(qa.model.head.S, old.head.S.to(qa.model.head.S.dtype))
        assert qa.tokenizer.encode("The").ids.tolist() == cased.encode("The").ids.tolist()
        reader = minibert.pipeline(model=hub_cache, revision=revision, dtype="float32")
        assert torch.equal(reader.qa.model.head.S, old.head.S)


def test_the_command_line_reads_the_revision(hub_cache, monkeypatch, capsys):
    question, context = "Who lit the lamp?", "Ada lit the lamp."
    logits = set()
    for revision in (None, "v1"):
        command = ["minibert", "answer", "--model", hub_cache, "--precision", "fp32", "--json"]
        command += ["--question", question, "--context", context]
        command += [] if revision is None else ["--revision", revision]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        qa = minibert.QuestionAnswerer.from_pretrained(
            hub_cache, precision="fp32", revision=revision
        )
        expected = qa(question, context)
        (printed,) = json.loads(capsys.readouterr().out)
        assert printed["start_logit"] == expected.start_logit
        logits.add(expected.start_logit)
    assert len(logits) == 2


def test_a_revision_that_cannot_be_had_is_named(hub_cache, tiny):
    with pytest.raises(minibert.PretrainedError, match="keeper/lamp, revision v2: no config"):
        minibert.QuestionAnswerer.from_pretrained(hub_cache, revision="v2")
    with pytest.raises(minibert.PretrainedError, match="a folder; revision='v1' is for a hub id"):
        minibert.QuestionAnswerer.from_pretrained(tiny, revision="v1")
    with pytest.raises(minibert.PretrainedError, match="a folder; revision='v1' is for a hub id"):
        minibert.pipeline(revision="v1")


def test_a_tokenizer_from_elsewhere(hub_cache, tiny, tmp_path):
    """The tokenizer of another place is read there; a revision is the model's."""
    bare = tmp_path / "bare"
    minibert.BertForQuestionAnswering.from_pretrained(tiny).save_pretrained(bare)
    with pytest.raises(minibert.PretrainedError, match="no tokenizer"):
        minibert.pipeline(model=bare)
    call = {"question": "Who lit the lamp?", "context": "Ada lit the lamp."}
    expected = minibert.pipeline(model=tiny)(**call)
    assert minibert.pipeline(model=bare, tokenizer=tiny)(**call) == expected
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    assert minibert.pipeline(model=bare, tokenizer=tokenizer)(**call) == expected
    reader = minibert.pipeline(model=hub_cache, revision="v1", tokenizer=tiny)
    assert reader.qa.tokenizer.encode("The").ids.tolist() == tokenizer.encode("The").ids.tolist()
