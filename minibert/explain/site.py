"""The page with the model inside: a model -> a folder for any static server, or one file.

Both hold the page of `page.py`, and an engine in plain JavaScript that reads the same weights. The
engine has the files of `ENGINE`, in `minibert/web`. Each is the twin of a Python module.
"""

import base64
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..config import BertConfig
from ..errors import PretrainedError
from ..files import complete_files
from ..hub import pinned
from ..identity import installed_version
from ..pretrained import prefix_errors, read_config
from ..reader import BUNDLED, QuestionAnswerer
from .eight_bit import eight_bit, eight_bit_file
from .explanation import Explanation
from .page import CONTEXT, QUESTION, asset, linked, one_file, scripts, security_policy, to_json

# The engine has the tokenizer of these families. The others have no WordPieces.
FAMILIES = ("bert", "distilbert", "electra")
# The engine's files, in this order, because each file uses names of the files before it.
ENGINE = (
    *("wordpiece.js", "features.js", "product.js", "kernel.js", "nn.js", "pretrained.js"),
    *("bert.js", "spans.js", "inside.js", "explanation.js", "worker.js", "reader.js"),
)
MODEL_TEXTS = ("config.json", "tokenizer.json", "tokenizer_config.json")
TRANSPORT = ("worker.js", "site.js")  # the page's own scripts that load and ask the engine

# What the page may do in addition: start workers from its own text, and compile their WebAssembly.
ALLOWED = {"script-src": "'wasm-unsafe-eval'", "worker-src": "blob:"}


def load(source: str | Path = BUNDLED, revision: str | None = None) -> QuestionAnswerer:
    """The model of a folder or hub id, for the page. It computes in float32, as the page does.

    Raises `PretrainedError` for a model that the page cannot read.
    """
    revision = pinned(source, revision)
    with prefix_errors(source):
        kind = BertConfig.from_dict(read_config(source, revision)).model_type
        if kind not in FAMILIES:
            names = ", ".join(FAMILIES)
            raise PretrainedError(f"config: model_type={kind!r}; the page reads {names}")
    return QuestionAnswerer.from_pretrained(
        source, revision=revision, precision="fp32", device="cpu"
    )


def rounded(qa: QuestionAnswerer, stored: Callable[[Tensor], Tensor]) -> QuestionAnswerer:
    """The same model with the weights that the page will have: `stored` rounds a weight.

    So the example has the scores that the page computes. Raises `PretrainedError` for a weight that
    becomes infinite.
    """
    for name, weights in qa.model.state_dict().items():
        weights.copy_(stored(weights))
        if not weights.isfinite().all():
            raise PretrainedError(f"{name} has numbers that are too large for float16")
    return qa


def in_eight_bit(weights: Tensor) -> Tensor:
    """The weights as `eight_bit_file` stores them: only matrices are rounded."""
    if weights.ndim < 2:
        return weights
    rows, scale = eight_bit(weights)
    return rows * scale[:, None]


def example(qa: QuestionAnswerer) -> Explanation:
    """The explanation that the page shows first, before its model is loaded."""
    return qa.explain(QUESTION, CONTEXT, attribution=False)


def write_folder(folder: str | Path, qa: QuestionAnswerer) -> None:
    """Write the page, its scripts, and the model in float16 to a new folder.

    `folder/model` is an ordinary model folder, which `QuestionAnswerer` can read too. The weights
    of `qa` are rounded to float16. Raises `InputError` if the folder cannot be written.
    """
    names = scripts(*TRANSPORT)
    sources = {"script-src": "'self'", "style-src": "'self'", "connect-src": "'self'"}
    own = inert(qa, dict.fromkeys(ENGINE), None)
    data = example(rounded(qa, Tensor.half)).to_dict()
    page = linked(data, names, security_policy(sources, ALLOWED), own)
    with complete_files(folder) as draft:
        (draft / "index.html").write_text(page, encoding="utf-8")
        for name in {"page.css", *names, *ENGINE}:
            (draft / name).write_text(asset(name), encoding="utf-8")
        qa.save_pretrained(draft / "model", torch.float16)


def write_file(path: str | Path, qa: QuestionAnswerer) -> None:
    """Write the page, its scripts, and the model in 8-bit integers to one file.

    The weights of `qa` are rounded to 8 bits. Raises `InputError` if the file cannot be written.
    """
    path = Path(path)
    weights = base64.b64encode(eight_bit_file(qa.model)).decode()
    data = example(rounded(qa, in_eight_bit)).to_dict()
    with tempfile.TemporaryDirectory() as folder:
        qa.save_pretrained(folder, torch.float16)
        files = {name: (Path(folder) / name).read_text(encoding="utf-8") for name in MODEL_TEXTS}
    own = inert(qa, {name: asset(name) for name in ENGINE}, files)
    more = f'{own}\n<script type="text/plain" id="weights">{weights}</script>'
    page = one_file(data, scripts(*TRANSPORT), ALLOWED, more)
    with complete_files(path.parent) as draft:
        (draft / path.name).write_text(page, encoding="utf-8")


def inert(
    qa: QuestionAnswerer, codes: Mapping[str, str | None], files: Mapping[str, str] | None
) -> str:
    """The element with what site.js needs to know; None is for what lies next to the page."""
    made = {"model": qa.name, "version": installed_version()}
    site = to_json({**made, "scripts": codes, "files": files})
    return f'<script type="application/json" id="site">{site}</script>'
