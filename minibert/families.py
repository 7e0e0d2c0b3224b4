"""How BERT's siblings differ: one entry per `model_type`. Tables only, no logic.

All have the architecture of BERT (arXiv:1810.04805v2): post-LayerNorm layers, learned positions.
DistilBERT (arXiv:1910.01108v4) has half the layers and no segments. RoBERTa (arXiv:1907.11692v1)
was trained longer, and has no segments. XLM-R (arXiv:1911.02116v2) is a RoBERTa for 100 languages,
CamemBERT (arXiv:1911.03894v3) one for French. ELECTRA (arXiv:2003.10555v1) learned to find replaced
words; its small size has embeddings that are narrower than its layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """The names that a family uses, and its differences from BERT."""

    architecture: str  # the class in `transformers` with a span head
    # Checkpoint keys -> our names. `{}` is the layer's number. `[row]` at the end: only this row.
    keys: Mapping[str, str]
    # Prefixes of checkpoint keys that minibert ignores -> the reason
    ignored: Mapping[str, str]
    # Fields of `BertConfig` -> their names in config.json, if different; None: no such field there
    names: Mapping[str, str | None] = field(default_factory=dict)
    # Values of fields that config.json leaves out, if different from BERT's
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # The first token's position is pad_token_id + 1, not 0, and only tokens that are not padding
    # are counted.
    positions_after_padding: bool = False
    context_segment: int = 1  # the question's segment is 0
    separators: int = 1  # between question and context
    # The special tokens, for a checkpoint whose tokenizer files do not name them
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """The first part of the encoder's keys, such as "bert"."""
        return next(iter(self.keys)).partition(".")[0]


def weight_and_bias(modules: Mapping[str, str]) -> dict[str, str]:
    """A table for modules (their name -> our name) -> the table for their weights and biases.

    >>> weight_and_bias({"lin1": "expand"})
    {'lin1.weight': 'expand.weight', 'lin1.bias': 'expand.bias'}
    """
    return {
        f"{theirs}.{name}": f"{ours}.{name}"
        for theirs, ours in modules.items()
        for name in ("weight", "bias")
    }


HEAD = {
    "qa_outputs.weight[0]": "head.S",
    "qa_outputs.weight[1]": "head.E",
    "qa_outputs.bias": "head.bias",
}


def bert_keys(prefix: str) -> dict[str, str]:
    """BERT's table of keys, for a family that calls its encoder `prefix`."""
    embeddings, layer = f"{prefix}.embeddings", f"{prefix}.encoder.layer.{{}}"
    return {
        f"{embeddings}.word_embeddings.weight": "bert.embeddings.word.weight",
        f"{embeddings}.position_embeddings.weight": "bert.embeddings.position.weight",
        f"{embeddings}.token_type_embeddings.weight": "bert.embeddings.token_type.weight",
        **weight_and_bias(
            {
                f"{embeddings}.LayerNorm": "bert.embeddings.norm",
                f"{layer}.attention.self.query": "bert.layers.{}.attention.query",
                f"{layer}.attention.self.key": "bert.layers.{}.attention.key",
                f"{layer}.attention.self.value": "bert.layers.{}.attention.value",
                f"{layer}.attention.output.dense": "bert.layers.{}.attention.output",
                f"{layer}.attention.output.LayerNorm": "bert.layers.{}.attention_norm",
                f"{layer}.intermediate.dense": "bert.layers.{}.feed_forward.expand",
                f"{layer}.output.dense": "bert.layers.{}.feed_forward.contract",
                f"{layer}.output.LayerNorm": "bert.layers.{}.feed_forward_norm",
            }
        ),
        **HEAD,
    }


DISTILBERT_KEYS = {
    "distilbert.embeddings.word_embeddings.weight": "bert.embeddings.word.weight",
    "distilbert.embeddings.position_embeddings.weight": "bert.embeddings.position.weight",
    **weight_and_bias(
        {
            "distilbert.embeddings.LayerNorm": "bert.embeddings.norm",
            "distilbert.transformer.layer.{}.attention.q_lin": "bert.layers.{}.attention.query",
            "distilbert.transformer.layer.{}.attention.k_lin": "bert.layers.{}.attention.key",
            "distilbert.transformer.layer.{}.attention.v_lin": "bert.layers.{}.attention.value",
            "distilbert.transformer.layer.{}.attention.out_lin": "bert.layers.{}.attention.output",
            "distilbert.transformer.layer.{}.sa_layer_norm": "bert.layers.{}.attention_norm",
            "distilbert.transformer.layer.{}.ffn.lin1": "bert.layers.{}.feed_forward.expand",
            "distilbert.transformer.layer.{}.ffn.lin2": "bert.layers.{}.feed_forward.contract",
            "distilbert.transformer.layer.{}.output_layer_norm": "bert.layers.{}.feed_forward_norm",
        }
    ),
    **HEAD,
}

POOLER = "reads [CLS] only; a span head reads every token"
PRETRAINING = "a head for pretraining"
OTHER_TASK = "a head for another task"
POSITIONS = "a constant: 0, 1, 2, ..."

NO_EMBEDDING_SIZE: dict[str, str | None] = {"embedding_size": None}  # always hidden_size

BRACKETS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ANGLES = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}


def roberta(architecture: str, **defaults: Any) -> Family:
    """RoBERTa, and the families that differ from it only in their vocabulary and training text."""
    return Family(
        architecture,
        keys=bert_keys("roberta"),
        ignored={
            "roberta.pooler.": POOLER,
            "lm_head.": PRETRAINING,
            "classifier.": OTHER_TASK,
            "roberta.embeddings.position_ids": POSITIONS,
        },
        names=NO_EMBEDDING_SIZE,
        defaults={"pad_token_id": 1, **defaults},
        positions_after_padding=True,
        context_segment=0,
        separators=2,
        special_tokens=ANGLES,
    )


FAMILIES: dict[str, Family] = {
    "bert": Family(
        "BertForQuestionAnswering",
        keys=bert_keys("bert"),
        ignored={
            "bert.pooler.": POOLER,
            "cls.": PRETRAINING,
            "classifier.": OTHER_TASK,
            "bert.embeddings.position_ids": POSITIONS,
        },
        names=NO_EMBEDDING_SIZE,
        special_tokens=BRACKETS,
    ),
    "distilbert": Family(
        "DistilBertForQuestionAnswering",
        keys=DISTILBERT_KEYS,
        ignored={
            "vocab_transform.": PRETRAINING,
            "vocab_layer_norm.": PRETRAINING,
            "vocab_projector.": PRETRAINING,
            "pre_classifier.": OTHER_TASK,
            "classifier.": OTHER_TASK,
            "distilbert.embeddings.position_ids": POSITIONS,
        },
        names={
            **NO_EMBEDDING_SIZE,
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
            "hidden_dropout_prob": "dropout",
            "attention_probs_dropout_prob": "attention_dropout",
            "layer_norm_eps": None,
            "type_vocab_size": None,
        },
        defaults={"num_hidden_layers": 6, "type_vocab_size": 0},
        context_segment=0,
        special_tokens=BRACKETS,
    ),
    "roberta": roberta("RobertaForQuestionAnswering", vocab_size=50265),
    "xlm-roberta": roberta("XLMRobertaForQuestionAnswering"),
    "camembert": roberta("CamembertForQuestionAnswering"),
    "electra": Family(
        "ElectraForQuestionAnswering",
        keys=bert_keys("electra")
        | weight_and_bias({"electra.embeddings_project": "bert.embeddings.project"}),
        ignored={
            "discriminator_predictions.": PRETRAINING,
            "generator_predictions.": PRETRAINING,
            "generator_lm_head.": PRETRAINING,
            "classifier.": OTHER_TASK,
            "electra.embeddings.position_ids": POSITIONS,
        },
        defaults={
            "embedding_size": 128,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        },
        special_tokens=BRACKETS,
    ),
}

# Model types that minibert cannot read -> the reason
REFUSED: dict[str, str] = {
    "albert": "its layers share their weights",
    "bart": "it is an encoder with a decoder",
    "big_bird": "its attention is sparse",
    "convbert": "its attention has convolutions",
    "deberta": "it has relative positions",
    "deberta-v2": "it has relative positions",
    "funnel": "its layers pool their tokens",
    "gpt2": "it is a decoder",
    "longformer": "its attention is a sliding window",
    "mobilebert": "its layers have bottlenecks",
    "modernbert": "it has rotary positions",
    "mpnet": "it has relative positions",
    "t5": "it is an encoder with a decoder",
    "xlnet": "it has relative positions",
}
