"""A model -> a folder for other programs: model.onnx, config.json, the tokenizer and a README."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from ..files import complete_files
from ..hub import pinned
from ..identity import installed_version
from ..pretrained import prefix_errors, read_config
from ..qa import BertForQuestionAnswering
from ..reader import BUNDLED, stored_calibration
from ..tokenization import Tokenizer
from ..tokenizer_files import TOKENIZER_FILES
from .decoder import argmax_graph
from .graph import OUTPUTS, Graph, model_graph, onnx_library, save_graph

# The inputs: what they mean, and their names in the result of `tokenizers`
INPUTS = {
    "input_ids": ("the question and the text, as `tokenizer.json` joins a pair", "ids"),
    "attention_mask": ("1 for a token, 0 for padding", "attention_mask"),
    "token_type_ids": ("0 for the question, 1 for the text", "type_ids"),
}
README = """# {name} as ONNX

`minibert export` {version} wrote this folder. `model.onnx` finds the answer to a question in a
text. It is a model of the family {family} with {layers} layers. Its large matrices are {numbers}.
The versions 1.15 and 1.32 of onnxruntime read it.

| tensor | type | meaning |
|---|---|---|
{tensors}

All tensors are (batch, tokens), and both sizes are free. A row has at most {limit} tokens.

## What your program must do

- **Windows.** A longer row is an error. minibert cuts a long text into windows of 384 tokens that
  overlap by 128, and compares the spans of all windows.
- **Characters.** The model knows only tokens. Use the tokenizer's offsets to cut the answer from
  your text: joined tokens can lack capital letters and have other spaces.
{duties}

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

question, text = "Who lit the lamp?", "At dusk the keeper, Ada, lit the lamp."
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
pair = Tokenizer.from_file("tokenizer.json").encode(question, text)
inputs = {{
{inputs}
}}
start_logits, end_logits = (rows[0] for rows in session.run(None, inputs))
{search}
print(text[pair.offsets[i][0] : pair.offsets[j][1]])
```
"""
PLAIN = """\
- **Search.** The answer is the span from token i to token j with the largest sum
  `start_logits[i] + end_logits[j]`. Both tokens must be in the text, and j must be from i to
  i + 29. An argmax of each output alone can give an end before the start, or a place in the
  question. `minibert export --for-argmax` writes a model with this search inside.
- **Scores.** The probability of a span is the softmax of its sum over all legal spans of all
  windows. Before the softmax, minibert divides the sums by the temperature in `config.json`."""
PLAIN_SEARCH = """\
places = [k for k, part in enumerate(pair.sequence_ids) if part == 1]
spans = [(i, j) for i in places for j in places if i <= j < i + 30]
i, j = max(spans, key=lambda span: start_logits[span[0]] + end_logits[span[1]])"""
SEARCHED = """\
- **No search.** The model makes the segments itself and searches the best span. The argmax of
  `start_logits` is its first token, and the argmax of `end_logits` is its last token. The span is
  inside the text and has at most 30 tokens. If the text has no token, both are 0, the place of the
  first special token. This model never says "no answer".
- **Scores.** Take a softmax over each output. The product of the two values is near the
  probability of this span among all legal spans of the row. A place that cannot be chosen has the
  logit -10000."""
SEARCHED_SEARCH = "i, j = start_logits.argmax(), end_logits.argmax()"


def write_folder(
    folder: str | Path,
    source: str | Path = BUNDLED,
    revision: str | None = None,
    for_argmax: bool = False,
    int8: bool = False,
) -> None:
    """Write the model of a folder or hub id for other programs.

    `for_argmax` adds the search (see `argmax_graph`), and `int8` makes a file of about a quarter
    of the size. No file appears before all are complete. Raises `PretrainedError`, and `InputError`
    if the folder cannot be written or `onnx` is missing.
    """
    onnx_library()  # an error before the long work
    revision = pinned(source, revision)
    with prefix_errors(source):
        calibration = stored_calibration(read_config(source, revision))
    model = BertForQuestionAnswering.from_pretrained(source, revision=revision)
    tokenizer = Tokenizer.from_pretrained(source, revision)
    config = model.config
    # other programs cut texts at this length
    limit = min(config.max_length, tokenizer.max_length or config.max_length)
    tokenizer.settings["model_max_length"] = limit
    with torch.inference_mode():
        graph = argmax_graph(model, tokenizer, int8) if for_argmax else model_graph(model, int8)
        with complete_files(folder, TOKENIZER_FILES) as draft:
            tokenizer.save_pretrained(draft)
            settings = {**config.to_dict(), "minibert": asdict(calibration)}
            text = json.dumps(settings, indent=2, sort_keys=True)
            (draft / "config.json").write_text(text + "\n", encoding="utf-8")
            text = readme(graph, model, Path(source).name, limit, for_argmax)
            (draft / "README.md").write_text(text, encoding="utf-8")
            save_graph(graph, draft / "model.onnx")


def readme(
    graph: Graph, model: BertForQuestionAnswering, name: str, limit: int, for_argmax: bool
) -> str:
    """The README of a folder: the tensors, what stays outside of the model, and an example."""
    rows = [f"| `{name}` | int64 | {INPUTS[name][0]} |" for name in graph.inputs]
    for output, token in zip(OUTPUTS, ("first", "last"), strict=True):
        rows.append(f"| `{output}` | float32 | how well a token fits as the {token} one |")
    given = (f'    "{name}": np.array([pair.{INPUTS[name][1]}]),' for name in graph.inputs)
    return README.format(
        name=name,
        version=installed_version(),
        family=model.config.model_type,
        layers=model.config.num_hidden_layers,
        numbers="8-bit integers" if graph.int8 else "float32",
        tensors="\n".join(rows),
        limit=limit,
        duties=SEARCHED if for_argmax else PLAIN,
        inputs="\n".join(given),
        search=SEARCHED_SEARCH if for_argmax else PLAIN_SEARCH,
    )
