"""Loading: every form of a checkpoint, a report of every key, and an error for every bad folder."""

import json
import shutil
from pathlib import Path

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

import minibert
from minibert.families import FAMILIES
from minibert.pretrained import map_tensors, read_tensors
from minibert.qa import BertForQuestionAnswering

Tensors = dict[str, torch.Tensor]
# before version 1, the hub's client had one class for both
NoSuchFile = getattr(hub_errors, "RemoteEntryNotFoundError", hub_errors.EntryNotFoundError)
NOT_FOUND = httpx.Response(404, request=httpx.Request("GET", "https://hub"))


@pytest.fixture
def weights(tiny: Path) -> Tensors:
    return load_file(tiny / "model.safetensors")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def states(model: BertForQuestionAnswering) -> Tensors:
    return model.state_dict()


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rewrite(folder: Path, tensors: Tensors) -> None:
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")


def expected_shapes(folder: Path) -> dict[str, torch.Size]:
    model = BertForQuestionAnswering.from_pretrained(folder)
    return {k: v.shape for k, v in model.state_dict().items()}


def test_s_and_e_are_the_rows_of_qa_outputs(tiny, weights):
    head = BertForQuestionAnswering.from_pretrained(tiny).head
    assert torch.equal(head.S, weights["qa_outputs.weight"][0])
    assert torch.equal(head.E, weights["qa_outputs.weight"][1])
    assert head.S.shape == head.E.shape == (16,)


def test_loaded_models_are_ready(tiny):
    model = BertForQuestionAnswering.from_pretrained(tiny)
    assert not model.training
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    assert not any(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    "form", ["bin", "sharded", "sharded bin", "gamma/beta", "no prefix", "extra keys"]
)
def test_every_spelling_gives_the_same_model(tiny, folder, weights, form):
    original = BertForQuestionAnswering.from_pretrained(tiny)
    if form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
    elif form.startswith("sharded"):
        (folder / "model.safetensors").unlink()
        name, write = "model.safetensors", save_file
        if form == "sharded bin":
            name, write = "pytorch_model.bin", torch.save
        index = {key: f"{k % 3}-of-3-{name}" for k, key in enumerate(sorted(weights))}
        for shard in set(index.values()):
            write({k: weights[k] for k in index if index[k] == shard}, folder / shard)
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / f"{name}.index.json").write_text(text)
    elif form == "gamma/beta":
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        renamed = {}
        for key, tensor in weights.items():
            for new, spelling in old.items():
                key = key.replace(new, spelling)
            renamed[key] = tensor
        assert any("gamma" in key for key in renamed)
        rewrite(folder, renamed)
    elif form == "no prefix":
        rewrite(folder, {key.removeprefix("bert."): tensor for key, tensor in weights.items()})
    else:
        extra = {
            "bert.pooler.dense.weight": torch.ones(16, 16),
            "bert.embeddings.position_ids": torch.arange(160)[None],
            "cls.predictions.bias": torch.ones(5),
            "classifier.weight": torch.ones(3, 16),
        }
        rewrite(folder, weights | extra)
    assert same(states(original), states(BertForQuestionAnswering.from_pretrained(folder)))


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_a_wrapper_s_prefix_is_removed_and_reported(tiny, folder, weights, wrapper):
    shapes = expected_shapes(folder)
    wrapped = {wrapper + key: tensor for key, tensor in weights.items()}
    rewrite(folder, wrapped)
    original = BertForQuestionAnswering.from_pretrained(tiny)
    assert same(states(original), states(BertForQuestionAnswering.from_pretrained(folder)))
    _, report = map_tensors(wrapped, shapes)
    assert report.wrapper == wrapper and repr(wrapper) in str(report)


def test_an_extra_head_stays_unread_with_a_warning(tiny, folder, weights):
    """But an extra part of the encoder is refused: see `extra_layer` below."""
    rewrite(folder, weights | {"answer_type.weight": torch.ones(5, 16)})
    with pytest.warns(UserWarning, match=r"not read, .* answer_type\.weight"):
        model = BertForQuestionAnswering.from_pretrained(folder)
    assert same(states(model), states(BertForQuestionAnswering.from_pretrained(tiny)))


def test_half_precision_weights_become_float32(folder, weights):
    rewrite(folder, {k: v.half() for k, v in weights.items()})
    model = BertForQuestionAnswering.from_pretrained(folder)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.head.S, weights["qa_outputs.weight"][0].half().float())


def test_report_accounts_for_every_key_of_both_sides(folder, weights):
    shapes = expected_shapes(folder)
    changed = weights | {"bert.pooler.dense.bias": torch.ones(16), "adapter.down": torch.ones(2)}
    del changed["qa_outputs.bias"]
    tensors, report = map_tensors(changed, shapes)
    assert report.missing == ("head.bias",)
    assert report.unexpected == ("adapter.down",)
    assert list(report.ignored) == ["bert.pooler.dense.bias"]
    assert set(report.mapped.values()) == set(tensors) == set(shapes) - {"head.bias"}
    stems = {key.partition("[")[0] for key in report.mapped}
    assert stems | set(report.ignored) | set(report.unexpected) == set(changed)
    assert "adapter.down" in str(report) and "qa_outputs.weight[1] -> head.E" in str(report)


def test_table_names_every_parameter_once(tiny):
    """Every tensor of the model has a row in the table, and every row has a tensor."""
    shapes = expected_shapes(tiny)
    rows = {ours.format(k) for ours in FAMILIES["bert"].keys.values() for k in range(3)}
    assert rows == set(shapes)
    assert len(set(FAMILIES["bert"].keys.values())) == len(FAMILIES["bert"].keys)


def test_an_encoder_ignores_the_head_of_a_qa_checkpoint(tiny):
    encoder = minibert.Bert.from_pretrained(tiny)
    model = BertForQuestionAnswering.from_pretrained(tiny)
    assert same(encoder.state_dict(), model.bert.state_dict())


def test_a_missing_head_is_made_only_on_request(minilm):
    with pytest.raises(minibert.PretrainedError, match=r"lack head\.E"):
        BertForQuestionAnswering.from_pretrained(minilm)
    model = BertForQuestionAnswering.from_pretrained(minilm, new_head=True)
    assert 0.01 < model.head.S.std() < 0.03 and (model.head.bias == 0).all()


def test_new_head_keeps_a_trained_one(tiny):
    a = BertForQuestionAnswering.from_pretrained(tiny, new_head=True)
    assert same(states(a), states(BertForQuestionAnswering.from_pretrained(tiny)))


def test_half_a_head_is_refused(folder, weights):
    rewrite(folder, {k: v for k, v in weights.items() if k != "qa_outputs.bias"})
    with pytest.raises(minibert.PretrainedError, match=r"lack head\.bias"):
        BertForQuestionAnswering.from_pretrained(folder, new_head=True)


def test_save_and_load_is_exact(tiny, weights, tmp_path):
    BertForQuestionAnswering.from_pretrained(tiny).save_pretrained(tmp_path / "new" / "folder")
    assert same(weights, read_tensors(tmp_path / "new" / "folder"))


def change_shape(folder: Path, weights: Tensors) -> None:
    rewrite(folder, weights | {"bert.encoder.layer.1.output.dense.bias": torch.ones(17)})


def change_type(folder: Path, weights: Tensors) -> None:
    rewrite(folder, weights | {"qa_outputs.bias": torch.ones(2, dtype=torch.int64)})


def drop_weight(folder: Path, weights: Tensors) -> None:
    rewrite(folder, {k: v for k, v in weights.items() if "layer.1.output.dense.bias" not in k})


def extra_layer(folder: Path, weights: Tensors) -> None:
    more = {k.replace("layer.0", "layer.3"): v for k, v in weights.items() if "layer.0" in k}
    rewrite(folder, weights | {k: v.clone() for k, v in more.items()})


def twice(folder: Path, weights: Tensors) -> None:
    bias = weights["bert.embeddings.LayerNorm.bias"].clone()
    rewrite(folder, weights | {"embeddings.LayerNorm.beta": bias})


def truncate(folder: Path, weights: Tensors) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lfs_pointer(folder: Path, weights: Tensors) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def lfs_pointer_bin(folder: Path, weights: Tensors) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")


def wrapped_in_part(folder: Path, weights: Tensors) -> None:
    rewrite(folder, {k if "bias" in k else f"module.{k}": v for k, v in weights.items()})


def no_weights(folder: Path, weights: Tensors) -> None:
    (folder / "model.safetensors").unlink()


def code_in_pickle(folder: Path, weights: Tensors) -> None:
    no_weights(folder, weights)

    class Payload:
        def __reduce__(self) -> tuple:
            return (Path.touch, (folder / "executed",))

    torch.save({"weight": Payload()}, folder / "pytorch_model.bin")


def outside_shard(folder: Path, weights: Tensors) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "../model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def missing_shard(folder: Path, weights: Tensors) -> None:
    no_weights(folder, weights)
    index = {"weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def no_config(folder: Path, weights: Tensors) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path, weights: Tensors) -> None:
    (folder / "config.json").write_text('{"hidden_size": 16')


def list_config(folder: Path, weights: Tensors) -> None:
    (folder / "config.json").write_text("[16]")


SPOILED = [
    (change_shape, "layer.1.output.dense.bias: shape (17,)"),
    (change_type, "qa_outputs.bias: expected real numbers"),
    (drop_weight, "lack bert.layers.1.feed_forward.contract.bias"),
    (extra_layer, "no place for the weights bert.encoder.layer.3"),
    (twice, "already given"),
    (truncate, "model.safetensors: not readable"),
    (lfs_pointer, "model.safetensors: a Git LFS pointer"),
    (lfs_pointer_bin, "pytorch_model.bin: a Git LFS pointer, not the file: git lfs pull gets it"),
    (wrapped_in_part, "some weights begin with 'module.', but not bert.embeddings.LayerNorm.bias"),
    (no_weights, "no weights"),
    (code_in_pickle, "pytorch_model.bin: not readable"),
    (outside_shard, "not a plain file name"),
    (missing_shard, "no model-00001-of-00001.safetensors"),
    (no_config, "no config.json"),
    (broken_config, "config.json: not readable as JSON"),
    (list_config, "expected a JSON object"),
]


@pytest.mark.parametrize(("spoil", "named"), SPOILED, ids=lambda x: getattr(x, "__name__", ""))
def test_a_bad_folder_is_refused_by_name(folder, weights, spoil, named):
    spoil(folder, weights)
    with pytest.raises(minibert.PretrainedError) as caught:
        BertForQuestionAnswering.from_pretrained(folder)
    assert named in str(caught.value)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("version", ["2.4.0", "2.6.0", "2.9.1+cu128"])
def test_a_pickle_is_refused_where_torch_may_execute_it(folder, weights, monkeypatch, version):
    """Before 2.10, `weights_only=True` could be bypassed. Then the file is not even opened."""
    no_weights(folder, weights)
    torch.save(weights, folder / "pytorch_model.bin")
    assert same(weights, read_tensors(folder))
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(minibert.PretrainedError, match=r"a pickle.* 2\.10") as error:
        read_tensors(folder)
    assert "model.safetensors" in str(error.value)
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.10.0"))
    with pytest.raises(pytest.fail.Exception):
        read_tensors(folder)


def test_neither_folder_nor_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "nowhere", "no/such/place", "../x", "-flag"):
        with pytest.raises(minibert.PretrainedError, match="neither a folder nor a hub id"):
            minibert.Bert.from_pretrained(source)
    (tmp_path / "file").write_text("")
    with pytest.raises(minibert.PretrainedError, match="a file; expected a folder"):
        minibert.Bert.from_pretrained(tmp_path / "file")


class Hub:
    """A mock of `hf_hub_download` that serves a folder, and can be unreachable for some files."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.asked, self.unreachable = folder, [], ()
        patch.setattr(huggingface_hub, "hf_hub_download", self)

    def __call__(self, repo_id: str, filename: str, revision: str | None = None) -> str:
        self.asked.append(filename)
        if filename in self.unreachable:
            raise LocalEntryNotFoundError(f"cannot reach the hub for {filename}")
        if repo_id != "someone/tiny":
            raise RepositoryNotFoundError("404 Not Found", response=NOT_FOUND)
        path = self.folder / filename
        if not path.exists():
            raise NoSuchFile(f"404 no {filename}", response=NOT_FOUND)
        return str(path)


def test_hub_ids_go_through_the_hub_client(tiny, monkeypatch):
    hub = Hub(tiny, monkeypatch)
    model = BertForQuestionAnswering.from_pretrained("someone/tiny")
    assert same(states(model), states(BertForQuestionAnswering.from_pretrained(tiny)))
    tokenizer = minibert.Tokenizer.from_pretrained("someone/tiny")
    assert tokenizer.vocab_size == minibert.Tokenizer.from_pretrained(tiny).vocab_size
    assert list(dict.fromkeys(hub.asked))[:2] == ["config.json", "model.safetensors"]


def test_hub_failures_are_one_line(tiny, monkeypatch):
    Hub(tiny, monkeypatch)
    with pytest.raises(minibert.PretrainedError, match="404 Not Found"):
        BertForQuestionAnswering.from_pretrained("someone/else")
    Hub(tiny.parent, monkeypatch)  # this folder has none of the files
    with pytest.raises(minibert.PretrainedError, match=r"no config\.json on the hub"):
        BertForQuestionAnswering.from_pretrained("someone/tiny")


def test_unreachable_is_not_absent(tiny, monkeypatch):
    """A cased tokenizer must not start to lower-case because its settings are unreachable."""
    hub = Hub(tiny, monkeypatch)
    hub.unreachable = ("tokenizer_config.json",)
    with pytest.raises(minibert.PretrainedError, match=r"cannot reach the hub for tokenizer_c"):
        minibert.Tokenizer.from_pretrained("someone/tiny")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the user's wish
    assert minibert.Tokenizer.from_pretrained("someone/tiny").vocab_size > 0
