"""Layer by layer beside the reference: a folder of weights in, the largest difference of each out.

The reference is `transformers`, where it is installed, or a file with what it once computed: the
tensors `input_ids`, `attention_mask`, `token_type_ids`, `hidden_states.0` to `.L` and, of a model
with a span head, `start_logits` and `end_logits`, as `tests/reference/make_bundled.py` writes them.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
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


def parity(source: str | Path, reference: str | Path | None = None) -> dict[str, float]:
    """The largest difference of the states after each layer, and of the logits, at real tokens.

    In float32 with the written-out attention. Without a `reference` file `transformers` computes.
    Raises `PretrainedError` for a model that either cannot load, and `InputError` where there is
    nothing to compare with.
    """
    has_head = any(name.startswith("qa_outputs.") for name in read_tensors(source))
    theirs = stored(reference) if reference else computed(source, has_head)
    ours = BertForQuestionAnswering if has_head else Bert
    model = ours.from_pretrained(source, "eager")
    with torch.inference_mode():
        out = model(*(theirs[k] for k in ("input_ids", "attention_mask", "token_type_ids")))
    states = {f"hidden_states.{k}": state for k, state in enumerate(out.hidden_states)}
    if has_head:
        states |= {name: getattr(out, name) for name in LOGITS}
    real = theirs["attention_mask"].bool()  # (B, T)
    differences = {}
    for name, state in states.items():
        if name not in theirs or theirs[name].shape != state.shape:
            shape = tuple(theirs[name].shape) if name in theirs else "missing"
            raise InputError(f"{reference}: {name} is {shape}; expected {tuple(state.shape)}")
        differences[name] = (state - theirs[name])[real].abs().max().item()
    return differences


def first_divergence(differences: Mapping[str, float]) -> str | None:
    """The first name whose difference is larger than `TOLERANCE` or not a number."""
    return next((name for name, value in differences.items() if not value <= TOLERANCE), None)


def stored(path: str | Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not readable as a safetensors file: {error}") from error
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        if name not in tensors:
            raise InputError(f"{path}: has no {name}; see what the reference holds in its module")
    return tensors


def computed(source: str | Path, has_head: bool) -> dict[str, Tensor]:
    """What `transformers` computes for `PAIRS`."""
    try:
        import transformers
    except ImportError as error:
        raise InputError("nothing to compare with: install transformers, or --reference") from error
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
