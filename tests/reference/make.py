"""Make the stored reference outputs. They were made with transformers 5.2.0, torch 2.13.0 (CPU).

    python tests/reference/make.py MINILM_FOLDER EVALUATE_V1.1.py EVALUATE_V2.0.py

(the official evaluation scripts of SQuAD, from https://rajpurkar.github.io/SQuAD-explorer/)
writes, beside itself:
    tiny/                 a random BertForQuestionAnswering of 3 layers, 16 wide, with a vocabulary
                          drawn from tests/data/field_notes.json
    tiny.safetensors      what transformers computes with it: every hidden state, both logits
    distilbert/, roberta/, electra/, and a .safetensors of each
                          the same for three of BERT's siblings (tests/siblings.py makes them)
    minilm.safetensors    the same for the real encoder, as slices and sums
    pipeline.json         the best spans of transformers' question-answering pipeline, tiny model
    metrics.json          what the official scripts give for the adversarial predictions below
Rerun it only to add to them: a checkpoint made anew is another one.
"""

import json
import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import BertPreTokenizer

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))
import siblings  # noqa: E402  # it stands beside this folder

PAIRS = [
    ("Who was the first president?", "George Washington was the first president."),
    ("Why is the light seen so far?", "A lens gathers it. " * 12),
    ("What?", "Tides."),
]

# gold answers, prediction (None: missing)
METRIC_CASES: list[tuple[list[str], str | None]] = [
    (["cat"], "the cat"),
    (["the cat", "a cat sat"], "cat sat"),
    (["The The"], "the"),
    (["an"], "A"),
    (["theatre"], "the atre"),
    (["theatre"], "the-atre"),
    (["the U.S. Constitution"], "U.S. constitution."),
    (["don't panic"], "dont panic"),
    (["foo_bar"], "foobar"),
    (["1,000"], "1000"),
    (["3.14"], "3 14"),
    (["twenty-one"], "twenty one"),
    (["a – b"], "a - b"),
    (["«quoted»"], "quoted"),
    (["“quoted”"], '"quoted"'),
    (["Ångström"], "ångström"),
    (["A\u030angstro\u0308m"], "Ångström"),
    (["İstanbul"], "istanbul"),
    (["STRASSE"], "straße"),
    (["10\u00a0000 km"], "10 000 km"),
    (["東京 タワー"], "東京"),
    (["한국"], "한국"),
    (["😀 smile"], "smile"),
    (["b b b c"], "b b c c"),
    (["b a c"], "c b"),
    (["  spaced\tout\nwords "], "spaced out words"),
    (["x"], ""),
    ([""], ""),
    (["!!!"], "???"),
    (["the"], "a"),
    (["the", "end"], ""),
    (["the", "end"], "end"),
    (["one", "one two", "one two three"], "two three"),
    (["nothing alike"], "wholly different"),
    (["gone"], None),
]


def make_tiny(folder: Path, texts: list[str]) -> None:
    words = Counter(
        w for text in texts for w, _ in BertPreTokenizer().pre_tokenize_str(text.lower())
    )
    letters = sorted(set("".join(words)))
    common = [word for word, _ in words.most_common(1000) if len(word) > 1]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *letters, *(f"##{letter}" for letter in letters), *common]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=384,
        initializer_range=0.4,  # wide, so that every part of the network matters to the output
    )
    torch.manual_seed(7)
    model = transformers.BertForQuestionAnswering(config)
    for name, parameter in model.named_parameters():  # biases and norms as training leaves them
        if name.endswith("bias") or "LayerNorm" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.qa_outputs.weight.data *= 4  # a decided model: best spans that stand out
    model.save_pretrained(folder)


def outputs(
    model: torch.nn.Module, tokenizer: transformers.BertTokenizer
) -> dict[str, torch.Tensor]:
    questions, contexts = zip(*PAIRS, strict=True)
    inputs = tokenizer(list(questions), list(contexts), padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    states = {f"hidden_states.{k}": state for k, state in enumerate(out.hidden_states)}
    logits = {k: out[k] for k in ("start_logits", "end_logits") if k in out}
    return {**inputs, **states, **logits}


def make_sibling(model_type: str) -> None:
    folder = HERE / model_type
    if not folder.exists():
        torch.manual_seed(14)
        siblings.checkpoint(transformers, model_type, folder, max_position_embeddings=192)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(
        folder, attn_implementation="eager"
    ).eval()
    found = outputs(model, transformers.AutoTokenizer.from_pretrained(folder))
    tensors = {name: tensor.contiguous() for name, tensor in found.items()}
    save_file(tensors, HERE / f"{model_type}.safetensors")


def summary(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Of a hidden state (B, T, H): the first 8 numbers of the first 8 tokens, and their sums."""
    if not name.startswith("hidden_states"):
        return tensor
    return torch.cat([tensor[:, :8, :8].flatten(1), tensor.sum((1, 2))[:, None]], dim=1)


def official(script: dict[str, Any], cases: list[tuple[list[str], str | None]]) -> dict[str, float]:
    """The figures of one of the official scripts for these cases; v2.0's when it is that one."""
    golds = [answers for answers, _ in cases]
    qas = [
        {"id": str(k), "answers": [{"text": text} for text in texts]}
        for k, texts in enumerate(golds)
    ]
    dataset = [{"paragraphs": [{"qas": qas}]}]
    predictions = {str(k): text for k, (_, text) in enumerate(cases) if text is not None}
    if "get_raw_scores" not in script:
        return dict(script["evaluate"](dataset, predictions))
    exact, f1 = script["get_raw_scores"](dataset, predictions)
    figures = script["make_eval_dict"](exact, f1)
    for name, wanted in (("HasAns", True), ("NoAns", False)):
        chosen = [
            str(k) for k, texts in enumerate(golds) if bool(texts) is wanted and str(k) in exact
        ]
        if chosen:
            script["merge_eval"](figures, script["make_eval_dict"](exact, f1, chosen), name)
    return dict(figures)


def make_metrics(v1: dict[str, Any], v2: dict[str, Any]) -> dict[str, Any]:
    """Each case alone, then all together; v2.0 beside questions that have no answer."""
    none_right: tuple[list[str], str | None] = ([], "")
    none_wrong: tuple[list[str], str | None] = ([], "something")
    answered = [
        case for case in METRIC_CASES if case[1] is not None
    ]  # v2.0 leaves missing ones out
    groups_v1 = [[case] for case in METRIC_CASES] + [METRIC_CASES]
    groups_v2 = [[case, none_right] for case in answered] + [[*answered, none_right, none_wrong]]
    return {
        "v1.1": [{"cases": group, "figures": official(v1, group)} for group in groups_v1],
        "v2.0": [{"cases": group, "figures": official(v2, group)} for group in groups_v2],
    }


def main() -> None:
    notes = json.loads((HERE.parent / "data" / "field_notes.json").read_text(encoding="utf-8"))
    paragraphs = [p for article in notes["data"] for p in article["paragraphs"]]
    folder = HERE / "tiny"
    if not folder.exists():
        make_tiny(folder, [p["context"] for p in paragraphs])

    eager = {"attn_implementation": "eager"}
    model = transformers.BertForQuestionAnswering.from_pretrained(folder, **eager).eval()
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    save_file(
        {k: v.contiguous() for k, v in outputs(model, tokenizer).items()}, HERE / "tiny.safetensors"
    )

    for model_type in ("distilbert", "roberta", "electra"):
        make_sibling(model_type)

    minilm = transformers.BertModel.from_pretrained(sys.argv[1], **eager).eval()
    found = outputs(minilm, transformers.AutoTokenizer.from_pretrained(sys.argv[1]))
    save_file(
        {k: summary(k, v).contiguous() for k, v in found.items()}, HERE / "minilm.safetensors"
    )

    metrics = make_metrics(*(runpy.run_path(path) for path in sys.argv[2:4]))
    text = json.dumps(metrics, ensure_ascii=False)
    (HERE / "metrics.json").write_text(text + "\n", encoding="utf-8")

    reader = transformers.pipeline("question-answering", model=model, tokenizer=tokenizer)
    settings = {"max_answer_len": 15}
    rows = []
    for paragraph in paragraphs:
        question = paragraph["qas"][0]
        call = {"question": question["question"], "context": paragraph["context"], **settings}
        best = reader(**call, top_k=5, align_to_words=False)
        rows.append({"id": question["id"], "answers": best, "aligned": reader(**call)})
    text = json.dumps({"settings": settings, "rows": rows}, ensure_ascii=False, indent=1)
    (HERE / "pipeline.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
