"""The page with the model inside: a model -> a folder for any static server, or one file.

Both hold the page of `page.py`, and an engine in plain JavaScript that reads the same weights. The
engine has the files of `ENGINE`, in `minibert/web`. Each is the twin of a Python module.
"""

from pathlib import Path
from typing import Any

import torch

from ..config import BertConfig
from ..errors import PretrainedError
from ..files import complete_files
from ..hub import pinned
from ..pretrained import prefix_errors, read_config
from ..reader import BUNDLED, QuestionAnswerer
from .explanation import Explanation
from .page import CONTEXT, QUESTION, asset, linked, scripts, security_policy, to_json

# The engine has the tokenizer of these families. The others have no WordPieces.
FAMILIES = ("bert", "distilbert", "electra")
# The engine's files, in this order, because each file uses names of the files before it.
ENGINE = (
    *("wordpiece.js", "features.js", "product.js", "kernel.js", "nn.js", "pretrained.js"),
    *("bert.js", "spans.js", "explanation.js", "worker.js", "reader.js"),
)
MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")

# What the page may do in addition: start workers from its own text, and compile their WebAssembly.
ALLOWED = {"script-src": "'wasm-unsafe-eval'", "worker-src": "blob:"}


def load(source: str | Path = BUNDLED, revision: str | None = None) -> QuestionAnswerer:
    """The model of a folder or hub id, as the page will have it: its weights rounded to float16.

    Raises `PretrainedError` for a model that the page cannot read.
    """
    revision = pinned(source, revision)
    with prefix_errors(source):
        kind = BertConfig.from_dict(read_config(source, revision)).model_type
        if kind not in FAMILIES:
            names = ", ".join(FAMILIES)
            raise PretrainedError(f"config: model_type={kind!r}; the page reads {names}")
    qa = QuestionAnswerer.from_pretrained(source, revision=revision, precision="fp32", device="cpu")
    for name, weights in qa.model.state_dict().items():
        weights.copy_(weights.half())
        if not weights.isfinite().all():
            raise PretrainedError(f"{source}: {name} has numbers that are too large for float16")
    return qa


def example(qa: QuestionAnswerer) -> Explanation:
    """The explanation that the page shows first, before its model is loaded."""
    return qa.explain(QUESTION, CONTEXT, attribution=False)


def write_folder(folder: str | Path, qa: QuestionAnswerer) -> None:
    """Write the page, its scripts, and the model in float16 to a new folder.

    `folder/model` is an ordinary model folder, which `QuestionAnswerer` can read too. Raises
    `InputError` if the folder cannot be written.
    """
    names = scripts("worker.js", "site.js")
    allowed = ALLOWED | {"connect-src": "'self'"}
    policy = security_policy({"script-src": "'self'", "style-src": "'self'"}, allowed)
    own = inert({"scripts": dict.fromkeys(ENGINE), "files": None})
    page = linked(example(qa).to_dict(), names, policy, own)
    with complete_files(folder) as draft:
        (draft / "index.html").write_text(page, encoding="utf-8")
        for name in {"page.css", *names, *ENGINE}:
            (draft / name).write_text(asset(name), encoding="utf-8")
        qa.save_pretrained(draft / "model", torch.float16)


def write_file(path: str | Path, qa: QuestionAnswerer) -> None:
    """Write the page, its scripts and the model in 8-bit integers to one file.

    Raises `InputError` if the file cannot be written.
    """
    raise NotImplementedError


def inert(site: Any) -> str:
    """The element with what site.js needs to know."""
    return f'<script type="application/json" id="site">{to_json(site)}</script>'
