"""Small random checkpoints of BERT's siblings, made by the reference; their tokenizers are trained
on the project's own paragraphs, each of the kind that its family has."""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre
from torch import nn

HERE = Path(__file__).parent
FAMILIES = ["bert", "distilbert", "roberta", "xlm-roberta", "camembert", "electra"]
BRACKETS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ANGLES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]

# theirs, where not BERT's: a DistilBertConfig has names of its own
NAMES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}


@cache
def paragraphs() -> list[str]:
    """The contexts and questions of `data/field_notes.json`."""
    notes = json.loads((HERE / "data" / "field_notes.json").read_text(encoding="utf-8"))
    found = [p for article in notes["data"] for p in article["paragraphs"]]
    return [p["context"] for p in found] + [q["question"] for p in found for q in p["qas"]]


def word_pieces(size: int) -> Tokenizer:
    """BERT's, lower-casing. The library's own trainer of WordPieces depends on the order of a hash
    table, so this one takes the letters and the most frequent words."""
    normalizer, words = normalizers.BertNormalizer(), pre.BertPreTokenizer()
    counts = Counter(
        word
        for text in paragraphs()
        for word, _ in words.pre_tokenize_str(normalizer.normalize_str(text))
    )
    letters = sorted(set("".join(counts)) | set("[]<>/"))
    tokens = [*BRACKETS, *letters, *(f"##{letter}" for letter in letters)]
    tokens += [word for word, _ in counts.most_common() if len(word) > 1][: size - len(tokens)]
    return tokenizer_of_words(tokens)


def tokenizer_of_words(tokens: list[str]) -> Tokenizer:
    """A lower-casing WordPiece tokenizer with this vocabulary, which begins with `BRACKETS`."""
    ids = {token: k for k, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre.BertPreTokenizer(),
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(BRACKETS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def byte_level(size: int, add_prefix_space: bool = False, trim_offsets: bool = True) -> Tokenizer:
    """RoBERTa's: pairs of bytes, with the space before a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=ANGLES, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(paragraphs(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=trim_offsets, add_prefix_space=add_prefix_space
    )
    return tokenizer


def space_pairs(size: int) -> Tokenizer:
    """Pairs of characters, with "▁" for the space before a word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=ANGLES, show_progress=False)
    tokenizer.train_from_iterator(paragraphs(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def unigram(size: int, words_first: bool) -> Tokenizer:
    """XLM-R's, which splits at white space before it puts the "▁"; or CamemBERT's, which doesn't,
    and has its control tokens elsewhere in the vocabulary."""
    tokenizer = Tokenizer(models.Unigram())
    space = pre.Metaspace(replacement="▁", prepend_scheme="always")
    if words_first:
        special = ANGLES
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), "▁")]
        )
        tokenizer.pre_tokenizer = pre.Sequence([pre.WhitespaceSplit(), space])
    else:
        special = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
        special = [*special, "<mask>"]
        tokenizer.normalizer = normalizers.Sequence(
            [
                normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "),
                normalizers.Strip(left=False, right=True),
            ]
        )
        tokenizer.pre_tokenizer = space
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(paragraphs(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, special.index(token)) for token in ("<s>", "</s>")],
    )
    return tokenizer


@cache
def trained(model_type: str, size: int = 600) -> str:
    """The `tokenizer.json` of a family, as text."""
    if model_type == "roberta":
        return str(byte_level(size).to_str())
    if model_type in ("xlm-roberta", "camembert"):
        return str(unigram(size, words_first=model_type == "xlm-roberta").to_str())
    return str(word_pieces(size).to_str())


def settings(model_type: str) -> dict[str, Any]:
    """The `tokenizer_config.json` beside it. XLM-R's and CamemBERT's classes of transformers 5.2
    make their normalizers anew, whatever the file says; the general class reads the file."""
    if model_type in ("bert", "distilbert", "electra"):
        names = dict(zip(("pad", "unk", "cls", "sep", "mask"), BRACKETS, strict=True))
        kind: dict[str, Any] = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    else:
        roles = ("bos", "pad", "eos", "unk", "mask", "cls", "sep")
        names = dict(zip(roles, [*ANGLES, "<s>", "</s>"], strict=True))
        kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
        if model_type == "roberta":
            kind = {"tokenizer_class": "RobertaTokenizer"}
        kind["model_input_names"] = ["input_ids", "attention_mask"]
    return kind | {f"{role}_token": token for role, token in names.items()}


def write_tokenizer(model_type: str, folder: Path, size: int = 600) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(trained(model_type, size) + "\n", encoding="utf-8")
    text = json.dumps(settings(model_type), indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def reference_config(transformers: ModuleType, model_type: str, **sizes: Any) -> Any:
    """A configuration of the reference, small unless `sizes` (under BERT's names) say otherwise."""
    sizes = {
        "vocab_size": 600,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 384,
        "initializer_range": 0.3,  # wide, so that every part matters to the output
    } | sizes
    if model_type in ("roberta", "xlm-roberta", "camembert"):
        sizes = {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1} | sizes
        sizes["max_position_embeddings"] += 2  # the first is pad_token_id + 1
    if model_type == "electra":
        sizes = {"embedding_size": 8} | sizes
    if model_type == "distilbert":
        sizes = {NAMES.get(name, name): value for name, value in sizes.items()}
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    config._attn_implementation = "eager"
    return config


def reference_model(
    transformers: ModuleType, model_type: str, folder: Path, **sizes: Any
) -> nn.Module:
    """A random checkpoint with a span head, saved by the reference in `folder`; and the model."""
    config = reference_config(transformers, model_type, **sizes)
    model = transformers.AutoModelForQuestionAnswering.from_config(
        config, attn_implementation="eager"
    )
    for name, parameter in model.named_parameters():  # biases and norms as training leaves them
        if name.endswith("bias") or "orm" in name.rpartition(".")[0]:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.qa_outputs.weight.data *= 4  # a decided model: best spans that stand out
    model.save_pretrained(folder)
    return model.eval()


def checkpoint(transformers: ModuleType, model_type: str, folder: Path, **sizes: Any) -> nn.Module:
    """`reference_model` with the family's tokenizer beside it."""
    write_tokenizer(model_type, folder)
    return reference_model(transformers, model_type, folder, **sizes)
