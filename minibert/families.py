"""Which tensor of a checkpoint is which of ours: data, no code that decides."""

# Keys of a checkpoint -> names in minibert. `{}` stands for the layer's number; a trailing `[row]`
# takes one row of a matrix.
KEY_TABLE: dict[str, str] = {
    "bert.embeddings.word_embeddings.weight": "bert.embeddings.word.weight",
    "bert.embeddings.position_embeddings.weight": "bert.embeddings.position.weight",
    "bert.embeddings.token_type_embeddings.weight": "bert.embeddings.token_type.weight",
    "bert.embeddings.LayerNorm.weight": "bert.embeddings.norm.weight",
    "bert.embeddings.LayerNorm.bias": "bert.embeddings.norm.bias",
    "bert.encoder.layer.{}.attention.self.query.weight": "bert.layers.{}.attention.query.weight",
    "bert.encoder.layer.{}.attention.self.query.bias": "bert.layers.{}.attention.query.bias",
    "bert.encoder.layer.{}.attention.self.key.weight": "bert.layers.{}.attention.key.weight",
    "bert.encoder.layer.{}.attention.self.key.bias": "bert.layers.{}.attention.key.bias",
    "bert.encoder.layer.{}.attention.self.value.weight": "bert.layers.{}.attention.value.weight",
    "bert.encoder.layer.{}.attention.self.value.bias": "bert.layers.{}.attention.value.bias",
    "bert.encoder.layer.{}.attention.output.dense.weight": "bert.layers.{}.attention.output.weight",
    "bert.encoder.layer.{}.attention.output.dense.bias": "bert.layers.{}.attention.output.bias",
    "bert.encoder.layer.{}.attention.output.LayerNorm.weight": "bert.layers.{}.attention_norm.weight",  # noqa: E501
    "bert.encoder.layer.{}.attention.output.LayerNorm.bias": "bert.layers.{}.attention_norm.bias",
    "bert.encoder.layer.{}.intermediate.dense.weight": "bert.layers.{}.feed_forward.expand.weight",
    "bert.encoder.layer.{}.intermediate.dense.bias": "bert.layers.{}.feed_forward.expand.bias",
    "bert.encoder.layer.{}.output.dense.weight": "bert.layers.{}.feed_forward.contract.weight",
    "bert.encoder.layer.{}.output.dense.bias": "bert.layers.{}.feed_forward.contract.bias",
    "bert.encoder.layer.{}.output.LayerNorm.weight": "bert.layers.{}.feed_forward_norm.weight",
    "bert.encoder.layer.{}.output.LayerNorm.bias": "bert.layers.{}.feed_forward_norm.bias",
    "qa_outputs.weight[0]": "head.S",
    "qa_outputs.weight[1]": "head.E",
    "qa_outputs.bias": "head.bias",
}

# Prefixes of checkpoint keys that minibert ignores, each with the reason.
IGNORED: dict[str, str] = {
    "bert.pooler.": "reads [CLS] only; a span head reads every token",
    "cls.": "a head of pretraining (masked words, next sentence)",
    "classifier.": "a head of another task",
    "bert.embeddings.position_ids": "a constant: 0, 1, 2, ...",
}
