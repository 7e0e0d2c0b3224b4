"""The sizes of a BERT or a sibling: `config.json` -> a checked `BertConfig` -> `config.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .errors import PretrainedError
from .families import FAMILIES, REFUSED, Family

# How to compute attention: written out, or with torch's fused `scaled_dot_product_attention`.
Attention = Literal["eager", "sdpa"]

# Far above any BERT: BERT-large has 24 layers and a third of a billion parameters.
MAX_LAYERS = 256
MAX_PARAMETERS = 10**10


def family_of(model_type: Any) -> Family:
    """The entry of a `model_type`. Raises `PretrainedError` when there is none."""
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    reason = f": {REFUSED[model_type]}" if str(model_type) in REFUSED else ""
    raise PretrainedError(
        f"config: model_type={model_type!r}{reason}; minibert reads {', '.join(sorted(FAMILIES))}"
    )


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT. Names and defaults come from the `config.json` of BERT-base, uncased.

    Raises `PretrainedError` for a value that is out of range or does not fit the family.

    >>> import minibert
    >>> minibert.BertConfig(hidden_size=384, num_attention_heads=12).num_hidden_layers
    12
    """

    model_type: str = "bert"  # a key of `FAMILIES`
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    embedding_size: int | None = None  # None: hidden_size; any other size is projected
    type_vocab_size: int = 2  # number of segments; 0: no segments
    pad_token_id: int = 0
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12  # the pretrained weights expect this, not torch's 1e-5
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        names = self.family.names

        def require(good: bool, name: str, reason: str) -> None:
            if not good:
                theirs, value = names.get(name) or name, getattr(self, name)
                raise PretrainedError(f"config: {theirs}={value!r}; {reason}")

        for name, value in asdict(self).items():
            real = isinstance(value, int | float) and not isinstance(value, bool)
            if name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
                require(real and 0 <= value < 1, name, "expected from 0 to below 1")
            elif name in ("layer_norm_eps", "initializer_range"):
                require(real and 0 < value < 1, name, "expected between 0 and 1")
            elif name != "model_type" and not (name == "embedding_size" and value is None):
                least = 0 if name in ("type_vocab_size", "pad_token_id") else 1
                good = type(value) is int and value >= least
                require(good, name, f"expected a whole number from {least}")
        for name in (name for name, theirs in names.items() if theirs is None):
            # this family's config.json has no field for another value
            constant = self.family.defaults.get(name, self.__dataclass_fields__[name].default)
            good = getattr(self, name) == constant
            require(good, name, f"for {self.model_type} it is {constant!r}")
        heads, name = self.num_attention_heads, "num_attention_heads"
        good = self.hidden_size % heads == 0
        require(good, "hidden_size", f"expected a multiple of {names.get(name, name)}={heads}")
        reason = f"but the first token has position {self.first_position}"
        require(self.max_length >= 1, "max_position_embeddings", reason)
        # A file from an untrusted source must not make us build an arbitrarily large model.
        good = self.num_hidden_layers <= MAX_LAYERS
        require(good, "num_hidden_layers", f"expected up to {MAX_LAYERS}")
        tables = self.vocab_size + self.max_position_embeddings + self.type_vocab_size
        layers = self.num_hidden_layers * (4 * self.hidden_size + 2 * self.intermediate_size)
        # the count leaves out biases and LayerNorms
        embeddings = (self.embedding_size or self.hidden_size) * (tables + self.hidden_size)
        parameters = embeddings + self.hidden_size * layers
        if parameters > MAX_PARAMETERS:
            raise PretrainedError(
                f"config: more than {MAX_PARAMETERS:.0e} parameters: no BERT has so many"
            )

    @property
    def family(self) -> Family:
        """The family of this `model_type`: its names, and its differences from BERT."""
        return family_of(self.model_type)

    @property
    def first_position(self) -> int:
        """The position of the first token of a text."""
        return self.pad_token_id + 1 if self.family.positions_after_padding else 0

    @property
    def max_length(self) -> int:
        """The largest number of tokens in one input."""
        return self.max_position_embeddings - self.first_position

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "BertConfig":
        """From a parsed `config.json`. Raises `PretrainedError` for another architecture."""
        model_type = config.get("model_type", "bert")
        family = family_of(model_type)
        for name, ours in {
            "hidden_act": ("gelu", "gelu_python"),  # both are the erf form, "gelu_new" is not
            "position_embedding_type": ("absolute",),
            "is_decoder": (False,),
            "add_cross_attention": (False,),
        }.items():
            name = family.names.get(name) or name
            if config.get(name, ours[0]) not in ours:
                raise PretrainedError(f"config: {name}={config[name]!r}; expected {ours[0]!r}")
        values: dict[str, Any] = {"model_type": model_type, **family.defaults}
        for name in cls.__dataclass_fields__:
            theirs = family.names.get(name, name)
            if theirs is None or (name == "pad_token_id" and config.get(name) is None):
                continue
            for key in (theirs, name):  # as in transformers, BERT's own name is also accepted
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
            # only fields that this family's config.json has, and that have a value
            **{name: value for name, value in theirs.items() if name and value is not None},
            "architectures": [self.family.architecture],
            "dtype": "float32",  # to compute in; the stored weights may have another
        }
