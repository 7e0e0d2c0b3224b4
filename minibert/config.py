"""The sizes of a BERT or a sibling, checked: `config.json` -> `BertConfig`; and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .errors import PretrainedError
from .families import FAMILIES, REFUSED, Family

# How attention is computed: written out, or by torch's fused `scaled_dot_product_attention`.
Attention = Literal["eager", "sdpa"]

# BERT-large has 24 layers and a third of a billion parameters
MAX_LAYERS = 256
MAX_PARAMETERS = 10**10


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def family_of(model_type: Any) -> Family:
    """The entry of a `model_type`. Raises `PretrainedError` where there is none."""
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    reason = f": {REFUSED[model_type]}" if str(model_type) in REFUSED else ""
    raise PretrainedError(
        f"config: model_type={model_type!r}{reason}; minibert reads {', '.join(sorted(FAMILIES))}"
    )


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT; names and defaults (BERT-base, uncased) as in its `config.json`."""

    model_type: str = "bert"  # a key of `FAMILIES`
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    embedding_size: int | None = None  # None: hidden_size; another is projected to that
    type_vocab_size: int = 2  # segments; 0: no table of them
    pad_token_id: int = 0
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12  # not torch's 1e-5: the pretrained weights expect it
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        names = self.family.names
        for name, value in asdict(self).items():
            if name == "model_type":
                continue
            if name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
                good, wanted = _is_real(value) and 0 <= value < 1, "from 0 to below 1"
            elif name in ("layer_norm_eps", "initializer_range"):
                good, wanted = _is_real(value) and 0 < value < 1, "between 0 and 1"
            else:
                if name == "embedding_size" and value is None:
                    continue
                least = 0 if name in ("type_vocab_size", "pad_token_id") else 1
                good, wanted = type(value) is int and value >= least, f"a whole number from {least}"
            if not good:
                raise PretrainedError(
                    f"config: {names.get(name) or name}={value!r}; expected {wanted}"
                )
        for name in (name for name, json_name in names.items() if json_name is None):
            constant = self.family.defaults.get(name, self.__dataclass_fields__[name].default)
            if getattr(self, name) != constant:  # no config.json of this family could say so
                raise PretrainedError(
                    f"config: {name}={getattr(self, name)!r}; a {self.model_type} has {constant!r}"
                )
        if self.hidden_size % self.num_attention_heads:
            raise PretrainedError(
                f"config: {names.get('hidden_size', 'hidden_size')}={self.hidden_size} is not a "
                f"multiple of {names.get('num_attention_heads', 'num_attention_heads')}="
                f"{self.num_attention_heads}"
            )
        if self.max_length < 1:
            raise PretrainedError(
                f"config: max_position_embeddings={self.max_position_embeddings}, but the first "
                f"token has position {self.first_position}"
            )
        # a stranger's file must not make us build without end
        if self.num_hidden_layers > MAX_LAYERS:
            raise PretrainedError(
                f"config: num_hidden_layers={self.num_hidden_layers}; expected up to {MAX_LAYERS}"
            )
        tables = self.vocab_size + self.max_position_embeddings + self.type_vocab_size
        layers = self.num_hidden_layers * (4 * self.hidden_size + 2 * self.intermediate_size)
        # how many there are without biases and LayerNorms
        embeddings = (self.embedding_size or self.hidden_size) * (tables + self.hidden_size)
        parameters = embeddings + self.hidden_size * layers
        if parameters > MAX_PARAMETERS:
            raise PretrainedError(
                f"config: asks for more than {MAX_PARAMETERS:.0e} parameters: no BERT has so many"
            )

    @property
    def family(self) -> Family:
        """What this `model_type` calls things, and what it changed."""
        return family_of(self.model_type)

    @property
    def first_position(self) -> int:
        """The position of the first token of a text."""
        return self.pad_token_id + 1 if self.family.positions_after_padding else 0

    @property
    def max_length(self) -> int:
        """How many tokens the positions are enough for."""
        return self.max_position_embeddings - self.first_position

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "BertConfig":
        """From a parsed `config.json`. Raises `PretrainedError` for what is not this skeleton."""
        model_type = config.get("model_type", "bert")
        family = family_of(model_type)
        for name, ours in {
            "hidden_act": ("gelu", "gelu_python"),  # both the erf form; "gelu_new" is not
            "position_embedding_type": ("absolute",),
            "is_decoder": (False,),
            "add_cross_attention": (False,),
        }.items():
            name = family.names.get(name) or name
            if config.get(name, ours[0]) not in ours:
                raise PretrainedError(
                    f"config: {name}={config[name]!r}; minibert is the BERT with {name}={ours[0]!r}"
                )
        values: dict[str, Any] = {"model_type": model_type, **family.defaults}
        for name in cls.__dataclass_fields__:
            theirs = family.names.get(name, name)
            if theirs is None or (name == "pad_token_id" and config.get(name) is None):
                continue
            for key in (theirs, name):  # transformers too reads a value under BERT's name
                if key in config:
                    values[name] = config[key]
                    break
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that `transformers` reads, under the family's own names."""
        width = self.embedding_size or self.hidden_size
        named = {**asdict(self), "hidden_act": "gelu", "embedding_size": width}
        names = self.family.names
        theirs = {names.get(name, name): value for name, value in named.items()}
        return {
            # without the fields that the family's config.json does not have, and those left open
            **{name: value for name, value in theirs.items() if name and value is not None},
            "architectures": [self.family.architecture],
            "dtype": "float32",  # to compute in, whatever the weights are stored in
        }
