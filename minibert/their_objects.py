"""Loaded objects of `transformers` -> our model and our tokenizer, which are copies.

Also the reverse for one object: our tokenizer under the names of `transformers`. Old code reads
these names from a pipeline. The package `transformers` itself is not imported.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import nn

from .config import Attention
from .errors import InputError, PretrainedError, first_line
from .pretrained import known_tensors, model_on_meta, prefix_errors
from .qa import BertForQuestionAnswering
from .tokenization import Tokenizer


def is_their_model(value: object) -> bool:
    """Whether a value is a loaded PyTorch model of `transformers`, of any class."""
    return isinstance(value, nn.Module) and hasattr(getattr(value, "config", None), "to_diff_dict")


def is_their_tokenizer(value: object) -> bool:
    """Whether a value is a loaded "fast" tokenizer of `transformers`."""
    return isinstance(getattr(value, "backend_tokenizer", None), tokenizers.Tokenizer)


def loaded_name(value: object) -> str:
    """How messages name a loaded object."""
    return f"the loaded {type(value).__name__}"


def their_config(model: nn.Module) -> dict[str, Any]:
    """A loaded model's configuration, as in its `config.json`. Raises `InputError`."""
    if not is_their_model(model):
        raise InputError(f"{loaded_name(model)} is not a model of transformers")
    config: Any = model.config
    values: dict[str, Any] = config.to_dict()
    return values


def model_of(
    theirs: nn.Module, config: Mapping[str, Any], attention: Attention
) -> BertForQuestionAnswering:
    """Our model with copies of a loaded model's weights, in eval mode and float32, on the CPU.

    `config` is `their_config(theirs)`. Raises `PretrainedError` as `load_tensors` does.
    """
    name = loaded_name(theirs)
    with prefix_errors(name):
        model, expected = model_on_meta(BertForQuestionAnswering, config, attention)
    kind = model.config.model_type
    tensors, _ = known_tensors(name, theirs.state_dict(), expected, kind)
    # This copies the numbers: if their model is trained later, ours stays the same.
    model.to_empty(device="cpu").load_state_dict(tensors)
    return model.eval()


def tokenizer_of(theirs: Any) -> Tokenizer:
    """Our tokenizer, from a copy of a loaded fast tokenizer. Raises `PretrainedError`."""
    roles = theirs.special_tokens_map.items()
    settings = {role: token for role, token in roles if isinstance(token, str)}
    settings["model_max_length"] = theirs.model_max_length
    try:
        # a copy, because `Tokenizer` changes the library's tokenizer
        backend = tokenizers.Tokenizer.from_str(theirs.backend_tokenizer.to_str())
        return Tokenizer(backend, settings)
    except Exception as error:  # the library raises `Exception` itself
        reason = f"not usable as a tokenizer: {first_line(error)}"
        raise PretrainedError(f"{loaded_name(theirs)}: {reason}") from error


@dataclass(frozen=True)
class PipelineTokenizer:
    """A `Tokenizer` under the names of `transformers`, as far as code reads them from a pipeline.

    It gives what a model needs for one question and one context, or for one text. Everything else
    is in `transformers.AutoTokenizer`, which can load the folder of `save_pretrained`.
    """

    tokenizer: Tokenizer
    model_max_length: int  # tokens that the model can read at once

    def __call__(
        self,
        text: str,
        text_pair: str | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
    ) -> dict[str, Any]:
        """The `input_ids`, `attention_mask` and, if the family has segments, `token_type_ids`.

        These are lists, or with `return_tensors="pt"` tensors (1, T), as the model takes them. They
        have no padding and are not cut. Raises `InputError` for anything but one or two texts.
        """
        texts = [text] if text_pair is None else [text, text_pair]
        for one in texts:
            if not isinstance(one, str):
                raise InputError(f"expected one or two texts, got a {type(one).__name__}")
        if return_tensors not in (None, "pt"):
            raise InputError(f"return_tensors={return_tensors!r}: expected None or 'pt'")
        ours = self.tokenizer
        parts = [pieces.ids.tolist() for pieces in ours.encode_batch(texts)]
        if add_special_tokens:
            parts[0] = [ours.cls_id, *parts[0], ours.sep_id]
            between = [ours.sep_id] * (ours.separators - 1)
            parts[1:] = [[*between, *part, ours.sep_id] for part in parts[1:]]
        ids = [k for part in parts for k in part]
        row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if ours.context_segment:
            row["token_type_ids"] = [0] * len(parts[0]) + [1] * (len(ids) - len(parts[0]))
        if return_tensors is None:
            return row
        return {name: torch.tensor([numbers]) for name, numbers in row.items()}

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """The strings of the vocabulary for these ids."""
        return self.tokenizer.tokens(ids)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of some tokens. It is not always the original text: see `Answer` for that."""
        text: str = self.tokenizer.backend.decoder.decode(tokens)
        return text

    def save_pretrained(self, save_directory: str | Path) -> None:
        """See `Tokenizer.save_pretrained`."""
        self.tokenizer.save_pretrained(save_directory)
