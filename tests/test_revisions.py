"""`revision=` for a hub id: the same id at two commits gives two models. All from a cache of the
hub's client, offline."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

import minibert
from minibert.cli import main
from minibert.hub import pinned

NAME = "keeper/lamp"


@pytest.fixture
def hub_cache(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A cache with two commits: `main`, the tiny checkpoint, and `v1`, with S negated and a cased
    tokenizer. Returns the hub id."""
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


@pytest.fixture
def commits(hub_cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commit of each downloaded file. After the first download someone pushes: `main` moves to
    the other commit."""
    download, seen = huggingface_hub.hf_hub_download, []

    def download_and_push(*args: Any, **options: Any) -> str:
        path = Path(download(*args, **options))
        seen.append(path.parent.name)
        (tmp_path / "models--keeper--lamp" / "refs" / "main").write_text("b" * 40)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download_and_push)
    return seen


LOADERS = [
    minibert.Bert.from_pretrained,
    minibert.BertForQuestionAnswering.from_pretrained,
    minibert.Tokenizer.from_pretrained,
    minibert.QuestionAnswerer.from_pretrained,
]


@pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__self__.__name__)
def test_one_load_reads_one_commit(hub_cache, commits, load):
    """Even when someone pushes in the meantime. The next load reads the new commit."""
    load(hub_cache)
    assert set(commits) == {"a" * 40} and len(commits) > 1
    commits.clear()
    load(hub_cache)
    assert set(commits) == {"b" * 40}


def test_several_loads_read_a_pinned_commit(hub_cache, commits, tiny):
    for revision, commit in ((None, "a" * 40), ("main", "b" * 40), ("b" * 40, "b" * 40)):
        commits.clear()
        revision = pinned(hub_cache, revision)
        assert revision == commit
        for load in LOADERS:
            load(hub_cache, revision=revision)
        assert set(commits) == {commit}
    assert pinned(hub_cache, "v2") == "v2"  # there is none; the load itself reports this
    assert pinned(tiny) is None
    with pytest.raises(minibert.PretrainedError, match="neither a folder nor a hub id"):
        pinned(tiny / "nowhere")


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


@pytest.mark.parametrize(("revision", "commit"), [(None, "a" * 40), ("v1", "b" * 40)])
def test_inspect_parity_compares_one_commit(
    hub_cache, commits, monkeypatch, capsys, transformers, revision, commit
):
    """Both sides read it. At other commits S has another sign, so the logits would differ."""
    command = ["minibert", "inspect", hub_cache, "--parity"]
    monkeypatch.setattr("sys.argv", command + (["--revision", revision] if revision else []))
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0 and "first divergence: none" in capsys.readouterr().out
    assert set(commits) == {commit}


def test_a_missing_revision_is_named(hub_cache, tiny):
    with pytest.raises(minibert.PretrainedError, match="keeper/lamp, revision v2: no config"):
        minibert.QuestionAnswerer.from_pretrained(hub_cache, revision="v2")
    with pytest.raises(minibert.PretrainedError, match="a folder; revision='v1' is for a hub id"):
        minibert.QuestionAnswerer.from_pretrained(tiny, revision="v1")
    with pytest.raises(minibert.PretrainedError, match="a folder; revision='v1' is for a hub id"):
        minibert.pipeline(revision="v1")


def test_a_tokenizer_from_elsewhere(hub_cache, tiny, tmp_path):
    """A tokenizer from another source is read there. The revision is for the model only."""
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
