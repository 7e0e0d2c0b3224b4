"""Parity: a folder of weights in, the largest difference from `transformers` at each layer out."""

import inspect
from collections.abc import Mapping
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

# float32 has seven digits and states reach about 10; on the same processor the difference is 0
TOLERANCE = 1e-5
LOGITS = ("start_logits", "end_logits")
# Texts of different lengths, so that the batch has padding.
PAIRS = [
    ("Who lit the lamp?", "At dusk the keeper, Ada, lit the lamp."),
    ("Why is the light seen so far?", "A lens gathers it, and throws it to the horizon. " * 4),
    ("What?", "Tides."),
]


def parity(source: str | Path) -> dict[str, float]:
    """The largest difference of the states after each layer, and of the logits, at real tokens.

    Both compute in float32 with the written-out attention. Raises `PretrainedError` for a model
    that either cannot load, and `InputError` if `transformers` is not installed.
    """
    has_head = any(name.startswith("qa_outputs.") for name in read_tensors(source))
    theirs = computed(source, has_head)
    ours = BertForQuestionAnswering if has_head else Bert
    model = ours.from_pretrained(source, "eager")
    with torch.inference_mode():
        out = model(*(theirs[k] for k in ("input_ids", "attention_mask", "token_type_ids")))
    states = {f"hidden_states.{k}": state for k, state in enumerate(out.hidden_states)}
    if has_head:
        states |= {name: getattr(out, name) for name in LOGITS}
    real = theirs["attention_mask"].bool()  # (B, T)
    return {name: (state - theirs[name])[real].abs().max().item() for name, state in states.items()}


def first_divergence(differences: Mapping[str, float]) -> str | None:
    """The first name whose difference is larger than `TOLERANCE` or not a number."""
    return next((name for name, value in differences.items() if not value <= TOLERANCE), None)


def computed(source: str | Path, has_head: bool) -> dict[str, Tensor]:
    """What `transformers` computes for `PAIRS`."""
    try:
        import transformers
    except ImportError as error:
        raise InputError("nothing to compare with: install transformers") from error
    quiet: Any = transformers.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    kind = transformers.AutoModelForQuestionAnswering if has_head else transformers.AutoModel
    tokenizer = Tokenizer.from_pretrained(source)
    features = prepare_features([Example("", *pair) for pair in PAIRS], tokenizer, 128)
    batch = collate(features, tokenizer.pad_id)
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "token_type_ids": batch.token_type_ids,
    }
    with prefix_errors(source):
        try:
            model = kind.from_pretrained(
                source, attn_implementation="eager", dtype=torch.float32
            ).eval()
        except Exception as error:  # transformers raises errors of many types
            raise PretrainedError(f"transformers cannot load it: {error}") from error
    takes = inspect.signature(model.forward).parameters  # some families have no segments
    with torch.inference_mode():
        out = model(**{k: v for k, v in inputs.items() if k in takes}, output_hidden_states=True)
    states = {f"hidden_states.{k}": state for k, state in enumerate(out.hidden_states)}
    return inputs | states | ({name: out[name] for name in LOGITS} if has_head else {})
