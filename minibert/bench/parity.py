"""Parity: a folder of weights in, the largest difference from `transformers` at each layer out."""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..batches import collate
from ..data.examples import Example
from ..errors import InputError, PretrainedError
from ..features import prepare_features
from ..model import Bert
from ..pretrained import prefix_errors, read_tensors
from ..qa import BertForQuestionAnswering
from ..tokenization import Tokenizer
from .engines import NAMES

# float32 has seven digits and states reach about 10; on the same processor the difference is 0
TOLERANCE = 1e-5
LOGITS = ("start_logits", "end_logits")
# Texts of different lengths, so that the batch has padding.
PAIRS = [
    ("Who lit the lamp?", "At dusk the keeper, Ada, lit the lamp."),
    ("Why is the light seen so far?", "A lens gathers it, and throws it to the horizon. " * 4),
    ("What?", "Tides."),
]


def parity(source: str | Path, revision: str | None = None) -> dict[str, float]:
    """The largest difference of the states after each layer, and of the logits, at real tokens.

    Both sides read the same `revision`, and compute in float32 with the written-out attention.
    Raises `PretrainedError` for a model that one side cannot load, and `InputError` if
    `transformers` is not installed.
    """
    has_head = any(name.startswith("qa_outputs.") for name in read_tensors(source, revision))
    theirs = computed(source, has_head, revision)
    ours = BertForQuestionAnswering if has_head else Bert
    model = ours.from_pretrained(source, "eager", revision=revision)
    with torch.inference_mode():
        out = model(*(theirs[name] for name in NAMES))
    states = {f"hidden_states.{k}": state for k, state in enumerate(out.hidden_states)}
    if has_head:
        states |= {name: getattr(out, name) for name in LOGITS}
    real = theirs["attention_mask"].bool()  # (B, T)
    return {name: (state - theirs[name])[real].abs().max().item() for name, state in states.items()}


def computed(source: str | Path, has_head: bool, revision: str | None = None) -> dict[str, Tensor]:
    """The model's input for `PAIRS`, and what `transformers` computes from it, by name."""
    try:
        import transformers
    except ImportError as error:
        raise InputError("nothing to compare with: install transformers") from error
    quiet: Any = transformers.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    kind = transformers.AutoModelForQuestionAnswering if has_head else transformers.AutoModel
    tokenizer = Tokenizer.from_pretrained(source, revision)
    features = prepare_features([Example("", *pair) for pair in PAIRS], tokenizer, 128)
    batch = collate(features, tokenizer.pad_id)
    inputs = {name: getattr(batch, name) for name in NAMES}
    with prefix_errors(source):
        try:
            options = {"attn_implementation": "eager", "dtype": torch.float32}
            model = kind.from_pretrained(source, revision=revision or "main", **options).eval()
        except Exception as error:  # transformers raises errors of many types
            raise PretrainedError(f"transformers cannot load it: {error}") from error
    takes = inspect.signature(model.forward).parameters  # some families have no segments
    with torch.inference_mode():
        out = model(**{k: v for k, v in inputs.items() if k in takes}, output_hidden_states=True)
    states = {f"hidden_states.{k}": state for k, state in enumerate(out.hidden_states)}
    return inputs | states | ({name: out[name] for name in LOGITS} if has_head else {})
