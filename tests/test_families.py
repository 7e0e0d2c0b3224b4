"""BERT's siblings in the same encoder, compared with the reference: the same bits at every token
that is not padding, files that load in both directions, and mistakes that the tests notice."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import siblings
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import minibert
from minibert.families import FAMILIES
from minibert.fast.linear import fuse
from minibert.model import Bert, BertConfig

ALL = siblings.FAMILIES
SHAPES = {  # layers, hidden size, heads, intermediate size, rows, length
    "1 layer, 1 head": (1, 8, 1, 16, 3, 5),
    "one token": (4, 24, 2, 96, 2, 1),
    "the last position": (2, 48, 3, 64, 2, 512),
    "5 heads of 12": (5, 60, 5, 240, 2, 128),
    "12 layers": (12, 32, 2, 128, 3, 33),
}
BASE = {  # the base size of each family; XLM-R and CamemBERT have RoBERTa's
    "distilbert": (6, 768, 12, 3072, 2, 40),
    "roberta": (12, 768, 12, 3072, 2, 40),
    "electra": (12, 256, 4, 1024, 2, 40),  # the small size, because its base size is BERT's
}


def random_batch(model: Any, rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Ids and mask of rows of random length; the first row is full. Only padding has the padding's
    id, because the reference uses this id to count RoBERTa's positions."""
    ids = torch.randint(7, model.config.vocab_size, (rows, length))
    lengths = torch.randint(1, length + 1, (rows, 1))
    lengths[0] = length
    mask = (torch.arange(length) < lengths).long()
    return torch.where(mask == 1, ids, model.config.pad_token_id), mask


def assert_equal_at_tokens(ours: Any, theirs: Any, mask: Tensor) -> None:
    tokens = mask.bool()
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert torch.equal(a[tokens], b[tokens])
    assert torch.equal(ours.start_logits[tokens], theirs.start_logits[tokens])
    assert torch.equal(ours.end_logits[tokens], theirs.end_logits[tokens])


def compare(theirs: nn.Module, folder: Path, rows: int, length: int) -> None:
    ours = minibert.BertForQuestionAnswering.from_pretrained(folder)
    ids, mask = random_batch(theirs, rows, length)
    with torch.no_grad():
        wanted = theirs(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        assert_equal_at_tokens(ours(ids, mask), wanted, mask)


def sizes(shape: tuple[int, ...]) -> dict[str, int]:
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    return dict(zip(names, shape, strict=False)) | {"max_position_embeddings": 512}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("model_type", ALL)
def test_random_configurations_bit_for_bit(transformers, tmp_path, model_type, shape):
    theirs = siblings.reference_model(
        transformers, model_type, tmp_path, **sizes(SHAPES[shape]), vocab_size=211
    )
    compare(theirs, tmp_path, *SHAPES[shape][4:])


@pytest.mark.parametrize("where", ["before the tokens", "on both sides", "between the tokens"])
@pytest.mark.parametrize("model_type", ALL)
def test_padding_may_be_anywhere(transformers, tmp_path, model_type, where):
    """The same bits at every token. RoBERTa's positions don't count padding, BERT's do."""
    theirs = siblings.reference_model(transformers, model_type, tmp_path, vocab_size=211)
    ours = minibert.BertForQuestionAnswering.from_pretrained(tmp_path)
    padding = theirs.config.pad_token_id
    mask = torch.ones(3, 20, dtype=torch.long)  # the first row is full
    place = {"before the tokens": slice(0, 8), "between the tokens": slice(5, 9)}.get(where)
    for row in mask[1:]:
        if place is None:
            row[:4] = row[-6:] = 0
        else:
            row[place] = 0
    ids = torch.where(mask == 1, torch.randint(7, 211, mask.shape), padding)
    with torch.no_grad():
        wanted = theirs(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        assert_equal_at_tokens(ours(ids, mask), wanted, mask)
        fuse(ours)
        states = ours(ids, mask).hidden_states[-1]
        # to 1e-4, because fused layers round differently
        difference = (states - wanted.hidden_states[-1])[mask.bool()].abs().max()
        assert difference < 1e-4


@pytest.mark.parametrize("model_type", BASE)
def test_base_sizes_bit_for_bit(transformers, tmp_path, model_type):
    more = {"embedding_size": 128} if model_type == "electra" else {}
    theirs = siblings.reference_model(
        transformers, model_type, tmp_path, **sizes(BASE[model_type]), **more,
        vocab_size=211, initializer_range=0.05,
    )  # fmt: skip
    compare(theirs, tmp_path, *BASE[model_type][4:])


@pytest.mark.parametrize(
    ("model_type", "more", "absent"),
    [
        ("electra", {"embedding_size": 16}, "project"),  # as in its base and large sizes
        ("distilbert", {"sinusoidal_pos_embds": True}, "token_type"),
        ("roberta", {"type_vocab_size": 2, "pad_token_id": 4}, "project"),
        ("electra", {"type_vocab_size": 1, "layer_norm_eps": 1e-5}, "absent"),
    ],
    ids=["no projection", "sines and cosines", "padding's id is 4", "one segment"],
)
def test_options_of_a_configuration(transformers, tmp_path, model_type, more, absent):
    theirs = siblings.reference_model(transformers, model_type, tmp_path, **more)
    compare(theirs, tmp_path, 3, 50)
    ours = minibert.BertForQuestionAnswering.from_pretrained(tmp_path)
    assert not any(absent in name for name, _ in ours.named_parameters())


@pytest.mark.parametrize("model_type", ALL)
def test_sdpa_is_the_same_attention(transformers, tmp_path, model_type):
    theirs = siblings.reference_model(
        transformers, model_type, tmp_path, hidden_size=64, initializer_range=0.05
    )
    ids, mask = random_batch(theirs, 4, 70)
    states = []
    for attention in ("eager", "sdpa"):
        model = Bert.from_pretrained(tmp_path, attention=attention)
        with torch.no_grad():
            states.append(model(ids, mask).hidden_states)
    for a, b in zip(*states, strict=True):
        torch.testing.assert_close(a[mask.bool()], b[mask.bool()], rtol=1e-5, atol=1e-5)


def worst(ours: nn.Module, theirs: nn.Module) -> float:
    """The largest difference between the last hidden states, padding not included."""
    torch.manual_seed(3)
    ids, mask = random_batch(theirs, 3, 40)
    with torch.no_grad():
        a = ours(ids, mask).hidden_states[-1]
        b = theirs(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    return (a - b)[mask.bool()].abs().max().item()


@pytest.mark.parametrize(
    ("model_type", "sabotage"),
    [
        ("roberta", {"positions_after_padding": False}),
        ("xlm-roberta", {"positions_after_padding": False}),
        ("camembert", {"positions_after_padding": False}),
        ("roberta", {"eps": 1e-12}),
        ("distilbert", {"eps": 1e-5}),
        ("electra", {"eps": 1e-5}),
        ("bert", {"positions_after_padding": True}),
    ],
)
def test_sabotage_breaks_the_parity(transformers, tmp_path, monkeypatch, model_type, sabotage):
    """Positions from 0, or another family's eps, change the result by far more than rounding."""
    theirs = siblings.reference_model(transformers, model_type, tmp_path, initializer_range=0.02)
    assert worst(minibert.BertForQuestionAnswering.from_pretrained(tmp_path), theirs) == 0.0
    eps = sabotage.pop("eps", None)
    for change in sabotage.items():
        entry = replace(FAMILIES[model_type], **dict([change]))
        monkeypatch.setitem(FAMILIES, model_type, entry)
    ours = minibert.BertForQuestionAnswering.from_pretrained(tmp_path)
    for module in ours.modules():
        if eps and isinstance(module, nn.LayerNorm):
            module.eps = eps
    assert worst(ours, theirs) > 5e-5


def test_a_missing_separator_or_an_extra_segment_is_noticed(transformers, tmp_path):
    """A pair packed as for BERT gives a RoBERTa other logits than the reference's own packing."""
    theirs = siblings.checkpoint(transformers, "roberta", tmp_path, type_vocab_size=2)
    ours = minibert.BertForQuestionAnswering.from_pretrained(tmp_path)
    tokenizer = minibert.Tokenizer.from_pretrained(tmp_path)
    example = minibert.Example("", "Who lit the lamp?", "At dusk Ada lit the lamp.")
    (feature,) = minibert.prepare_features([example], tokenizer)
    packed = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        example.question, example.context, return_tensors="pt"
    )
    with torch.no_grad():
        context = len(feature) - feature.context_slice.start
        wanted = theirs(**packed).start_logits[0, -context:]

        def logits(ids: list[int], segments: list[int]) -> Tensor:
            out = ours(torch.tensor([ids]), None, torch.tensor([segments]))
            return out.start_logits[0, -context:]

        assert torch.equal(logits(feature.input_ids, feature.token_type_ids), wanted)
        segments = [0] * (len(feature) - context) + [1] * context
        assert (logits(feature.input_ids, segments) - wanted).abs().max() > 1e-2
        once = [*feature.input_ids]
        del once[feature.context_slice.start - 1]  # one </s> instead of two
        assert (logits(once, [0] * len(once)) - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("model_type", ["distilbert", "roberta", "electra"])
def test_stored_outputs(model_type):
    """The reference's numbers, for where it is not installed. 1e-5, for another processor."""
    folder = Path(__file__).parent / "reference"
    stored = load_file(folder / f"{model_type}.safetensors")
    ids, mask = stored["input_ids"], stored["attention_mask"]
    model = minibert.BertForQuestionAnswering.from_pretrained(folder / model_type)
    with torch.no_grad():
        out = model(ids, mask, stored.get("token_type_ids"))
    ours = {f"hidden_states.{k}": state for k, state in enumerate(out.hidden_states)}
    ours |= {"start_logits": out.start_logits, "end_logits": out.end_logits}
    for name, tensor in ours.items():
        a, b = tensor[mask.bool()], stored[name][mask.bool()]
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(transformers, tmp_path_factory) -> dict[str, Path]:
    """A small checkpoint of each family, with its tokenizer."""
    checkpoints = {}
    for k, model_type in enumerate(ALL):
        torch.manual_seed(k)
        checkpoints[model_type] = tmp_path_factory.mktemp(model_type)
        siblings.checkpoint(transformers, model_type, checkpoints[model_type])
    return checkpoints


@pytest.fixture
def copy(folders, tmp_path) -> Any:
    """Copies that a test may change."""
    return lambda model_type: Path(shutil.copytree(folders[model_type], tmp_path / model_type))


@pytest.mark.parametrize("model_type", ALL)
def test_saved_under_the_family_s_own_names(transformers, folders, tmp_path, model_type):
    """transformers loads every tensor of a saved folder, and computes the same. So do we."""
    model = minibert.BertForQuestionAnswering.from_pretrained(folders[model_type])
    assert model.config.model_type == model_type
    model.save_pretrained(tmp_path)
    minibert.Tokenizer.from_pretrained(folders[model_type]).save_pretrained(tmp_path)
    theirs, loading = transformers.AutoModelForQuestionAnswering.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert theirs.config.model_type == model_type
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    compare(theirs.eval(), tmp_path, 3, 50)
    before, after = (load_file(f / "model.safetensors") for f in (folders[model_type], tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    old, new = (
        json.loads((f / "config.json").read_text()) for f in (folders[model_type], tmp_path)
    )
    assert {key: old[key] for key in new if key in old} == {
        k: v for k, v in new.items() if k in old
    }
    tokenizers = [
        transformers.AutoTokenizer.from_pretrained(f) for f in (folders[model_type], tmp_path)
    ]
    pair = ("Who lit the lamp?", "Ada, the keeper,  lit it.\nThen she slept.")
    assert tokenizers[0](*pair)["input_ids"] == tokenizers[1](*pair)["input_ids"]
    assert tokenizers[0].model_input_names == tokenizers[1].model_input_names
    assert tokenizers[0].special_tokens_map == tokenizers[1].special_tokens_map


@pytest.mark.parametrize("model_type", ALL)
def test_a_table_names_every_parameter_once(folders, model_type):
    model = minibert.BertForQuestionAnswering.from_pretrained(folders[model_type])
    table = FAMILIES[model_type].keys
    assert len(set(table.values())) == len(table)
    rows = {ours.format(k) for ours in table.values() for k in range(2)}
    assert rows == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("model_type", ALL)
def test_bare_encoders_and_other_heads(transformers, folders, tmp_path, model_type):
    """An encoder saved alone, or with another head: every key has its place."""
    wanted = minibert.Bert.from_pretrained(folders[model_type]).state_dict()
    config = siblings.reference_config(transformers, model_type)
    for kind in ("AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification"):
        folder = tmp_path / kind
        model = getattr(transformers, kind).from_pretrained(folders[model_type], config=config)
        model.save_pretrained(folder)
        encoder = minibert.Bert.from_pretrained(folder).state_dict()
        assert wanted.keys() == encoder.keys()
        assert all(torch.equal(wanted[name], encoder[name]) for name in wanted)
        with pytest.raises(minibert.PretrainedError, match=r"lack head\.E"):
            minibert.BertForQuestionAnswering.from_pretrained(folder)
        assert minibert.BertForQuestionAnswering.from_pretrained(folder, new_head=True)


@pytest.mark.parametrize(
    ("model_type", "named"),
    [
        ("deberta-v2", "relative positions"),
        ("mpnet", "relative positions"),
        ("albert", "share their weights"),
        ("modernbert", "rotary"),
        ("longformer", "attention"),
        ("gpt2", "decoder"),
        ("xlnet", "bert, camembert, distilbert, electra, roberta, xlm-roberta"),
        (None, "bert, camembert, distilbert, electra, roberta, xlm-roberta"),
        (["bert"], "bert, camembert, distilbert, electra, roberta, xlm-roberta"),
    ],
)
def test_another_skeleton_is_refused_by_name(model_type, named):
    with pytest.raises(minibert.PretrainedError, match=named) as raised:
        BertConfig.from_dict({"model_type": model_type, "hidden_size": 8})
    assert repr(model_type) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("model_type", ALL)
def test_defaults_are_the_reference_s(transformers, model_type):
    """A config.json that has only a model_type."""
    theirs = transformers.AutoConfig.for_model(model_type)
    ours = BertConfig.from_dict({"model_type": model_type})
    for name in (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "pad_token_id",
        "max_position_embeddings", "initializer_range",
    ):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("intermediate_size", "hidden_dropout_prob", "attention_probs_dropout_prob"):
        names = FAMILIES[model_type].names
        assert getattr(ours, name) == getattr(theirs, names.get(name, name)), name
    for name in ("type_vocab_size", "layer_norm_eps", "embedding_size"):
        if hasattr(theirs, name):
            assert getattr(ours, name) == getattr(theirs, name), name


# --- broken folders ------------------------------------------------------------------------------


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def rename_keys(folder: Path, old: str, new: str) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({k.replace(old, new): v for k, v in weights.items()}, folder / "model.safetensors")


def tokenizer_of(other: str) -> Any:
    def spoil(folder: Path) -> None:
        siblings.write_tokenizer(other, folder)

    return spoil


def without(*names: str) -> Any:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def byte_level_files(folder: Path, *names: str) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    texts = {
        "vocab.json": json.dumps(model["vocab"]),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]),
    }
    for name in names:
        (folder / name).write_text(texts[name], encoding="utf-8")


def sentence_piece_alone(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "sentencepiece.bpe.model").write_bytes(b"\n\x0e\n\x05<unk>")


BROKEN = {
    "positions too few": (
        "roberta",
        lambda folder: change_config(folder, max_position_embeddings=2),
        "max_position_embeddings=2",
    ),
    "positions as BERT counts them": (
        "roberta",
        lambda folder: change_config(folder, max_position_embeddings=384),
        r"position_embeddings.* shape \(386, 16\)",
    ),
    "no merges": (
        "roberta", lambda folder: byte_level_files(folder, "vocab.json"), r"no merges\.txt"
    ),
    "no vocabulary": (
        "roberta", lambda folder: byte_level_files(folder, "merges.txt"), r"no vocab\.json"
    ),
    "no tokenizer at all": ("roberta", without("tokenizer.json"), "no tokenizer"),
    "BERT's keys in a roberta": (
        "roberta", lambda folder: rename_keys(folder, "roberta.", "bert."),
        "'roberta', but .* the names of 'bert'",
    ),
    "RoBERTa's keys in a bert": (
        "bert", lambda folder: rename_keys(folder, "bert.", "roberta."),
        "'bert', but .* the names of 'roberta' and 'xlm-roberta' and 'camembert'",
    ),
    "a bert that says distilbert": (
        "bert", lambda folder: change_config(folder, model_type="distilbert", dim=16,
                                             n_layers=2, n_heads=4, hidden_dim=40),
        "'distilbert', but .* the names of 'bert'",
    ),
    "BERT's tokenizer with a roberta": (
        "roberta", tokenizer_of("bert"), r"padding is token 0 \(\[PAD\]\), the model's is 1"
    ),
    "RoBERTa's tokenizer with a bert": (
        "bert", lambda folder: siblings.write_tokenizer("roberta", folder, 700),
        "700 tokens, but the model has embeddings for 600",
    ),
    "a vocabulary larger than the embeddings": (
        "camembert", lambda folder: change_vocabulary(folder), "tokens, but the model has"
    ),
    "only a sentencepiece model": (
        "xlm-roberta", sentence_piece_alone,
        r"no tokenizer\.json, only sentencepiece\.bpe\.model; to make one",
    ),
    "no projection in an electra": (
        "electra", lambda folder: change_config(folder, embedding_size=16), "shape"
    ),
    "heads that do not divide the size": (
        "distilbert", lambda folder: change_config(folder, n_heads=5), "n_heads=5"
    ),
    "another activation": (
        "distilbert", lambda folder: change_config(folder, activation="relu"), "activation='relu'"
    ),
    "a decoder": ("roberta", lambda folder: change_config(folder, is_decoder=True), "is_decoder"),
    "an embedding_size that is text": (
        "electra", lambda folder: change_config(folder, embedding_size="8"), "embedding_size='8'"
    ),
    "a negative pad_token_id": (
        "roberta", lambda folder: change_config(folder, pad_token_id=-1), "pad_token_id=-1"
    ),
}  # fmt: skip


def change_vocabulary(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    extra = {"id": 600, "content": "<new>", "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": True, "special": False}  # fmt: skip
    known = {t["id"] for t in tokenizer["added_tokens"]} | set(
        range(len(tokenizer["model"]["vocab"]))
    )
    for id in range(len(known), 601):
        tokenizer["added_tokens"].append(extra | {"id": id, "content": f"<new{id}>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_folder_gives_one_line_that_names_the_problem(copy, name):
    model_type, spoil, named = BROKEN[name]
    folder = copy(model_type)
    spoil(folder)
    with pytest.raises(minibert.PretrainedError, match=named) as raised:
        minibert.QuestionAnswerer.from_pretrained(folder, precision="fp32")
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)
