"""The sizes of a BERT, checked: `config.json` -> `BertConfig`; and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .errors import PretrainedError

# How attention is computed: written out, or by torch's fused `scaled_dot_product_attention`.
Attention = Literal["eager", "sdpa"]

# BERT-large has 24 layers and a third of a billion parameters
MAX_LAYERS = 256
MAX_PARAMETERS = 10**10


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT; names and defaults (BERT-base, uncased) as in its `config.json`."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12  # not torch's 1e-5: the pretrained weights expect it
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
                good, wanted = _is_real(value) and 0 <= value < 1, "from 0 to below 1"
            elif name in ("layer_norm_eps", "initializer_range"):
                good, wanted = _is_real(value) and 0 < value < 1, "between 0 and 1"
            else:
                good, wanted = type(value) is int and value >= 1, "a whole number from 1"
            if not good:
                raise PretrainedError(f"config: {name}={value!r}; expected {wanted}")
        if self.hidden_size % self.num_attention_heads:
            raise PretrainedError(
                f"config: hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        # a stranger's file must not make us build without end
        if self.num_hidden_layers > MAX_LAYERS:
            raise PretrainedError(
                f"config: num_hidden_layers={self.num_hidden_layers}; expected up to {MAX_LAYERS}"
            )
        tables = self.vocab_size + self.max_position_embeddings + self.type_vocab_size
        layers = self.num_hidden_layers * (4 * self.hidden_size + 2 * self.intermediate_size)
        parameters = self.hidden_size * (tables + layers)  # but for biases and LayerNorms
        if parameters > MAX_PARAMETERS:
            raise PretrainedError(
                f"config: asks for more than {MAX_PARAMETERS:.0e} parameters: no BERT has so many"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "BertConfig":
        """From a parsed `config.json`. Raises `PretrainedError` for what is not this BERT."""
        for name, ours in {
            "model_type": ("bert",),
            "hidden_act": ("gelu", "gelu_python"),  # both the erf form; "gelu_new" is not
            "position_embedding_type": ("absolute",),
            "is_decoder": (False,),
            "add_cross_attention": (False,),
        }.items():
            if config.get(name, ours[0]) not in ours:
                raise PretrainedError(
                    f"config: {name}={config[name]!r}; minibert is the BERT with {name}={ours[0]!r}"
                )
        return cls(**{k: v for k, v in config.items() if k in cls.__dataclass_fields__})

    def to_dict(self, architecture: str) -> dict[str, Any]:
        """The `config.json` that `transformers` reads, for one of its classes by name."""
        return {
            **asdict(self),
            "model_type": "bert",
            "hidden_act": "gelu",
            "architectures": [architecture],
            "dtype": "float32",  # to compute in, whatever the weights are stored in
        }
