"""The page that shows an explanation: plain data -> one HTML file that needs no other file."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "web"
# In this order, because each file uses names of the files before it.
SCRIPTS = (
    *("draw.js", "page.js", "views.js", "pieces.js", "grid.js"),
    *("embeddings.js", "layers.js", "attention.js", "strike.js", "pins.js", "keep.js", "ask.js"),
)


# A live page has this question in its form.
QUESTION = "When were the boats home?"
CONTEXT = (
    "The lighthouse stands on the north cliff. At dusk the keeper, Ada, lit the lamp. Her brother "
    "Bo rang the fog bell until the boats were home at half past nine."
)


def asset(name: str) -> str:
    """The text of a file in `minibert/web`."""
    return (FOLDER / name).read_text(encoding="utf-8")


def scripts(*transport: str) -> tuple[str, ...]:
    """The page's scripts in their order. `transport` names the scripts that answer a question."""
    first, *others = SCRIPTS
    return first, *transport, *others


def to_json(data: Any) -> str:
    """JSON for an HTML script element: no text in it can end the element or open a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page(data: Mapping[str, Any]) -> str:
    """`Explanation.to_dict()` -> the page. Its own security policy forbids every request.

    The page also says on which day it was written.
    """
    return one_file({**data, "day": date.today().isoformat()}, scripts())


def one_file(
    data: Mapping[str, Any], names: Sequence[str], allowed: Mapping[str, str] = {}, inert: str = ""
) -> str:
    """The page in one file: `data`, and the scripts of these names.

    `allowed` has what the security policy allows in addition, for example {"worker-src": "blob:"}.
    `inert` comes after the scripts: elements that hold more data.
    """
    style, codes = asset("page.css"), [asset(name) for name in names]
    sources = {"style-src": source(style), "script-src": " ".join(map(source, codes))}
    return fill(
        policy=security_policy(sources, allowed),
        style=f"<style>{style}</style>",
        script="\n".join([*map(element, names, codes), inert]),
        data=to_json(data),
        plain=plain(data),
    )


def linked(
    data: Mapping[str, Any] | None, names: Sequence[str], policy: str = "", inert: str = ""
) -> str:
    """The page for a server: its style and scripts are files of their own. None: an empty page."""
    return fill(
        policy=policy,
        style='<link rel="stylesheet" href="page.css">',
        script="\n".join([*map(element, names), inert]),
        data=to_json(data),
        plain=plain(data) if data else "",
        question=html.escape(QUESTION),
        passage=html.escape(CONTEXT),
    )


def element(name: str, code: str | None = None) -> str:
    """A script element: with the script's code, or (None) for a file next to the page.

    `data-page` marks the scripts that show an explanation, for a copy of the page (keep.js).
    """
    attributes = (" data-page" if name in SCRIPTS else "") + ("" if code else f' src="{name}"')
    return f"<script{attributes}>{code or ''}</script>"


def plain(data: Mapping[str, Any]) -> str:
    """Question and answer as HTML, for a browser that runs no scripts."""
    best = data["answers"][0]
    score = "more than 99.9" if best["score"] > 0.9995 else f"{100 * best['score']:.1f}"
    question, answer = (html.escape(t) for t in (data["question"], best["answer"] or "no answer"))
    return f"{question}<br><b>{answer}</b> ({score} %)<br>"


def security_policy(*allowed: Mapping[str, str]) -> str:
    """The element with the page's Content-Security-Policy: nothing is allowed but `allowed`."""
    sources: dict[str, str] = {"default-src": "'none'", "img-src": "data:"}
    for more in allowed:
        for name, value in more.items():
            sources[name] = f"{sources.get(name, '')} {value}".strip()
    sources |= {"base-uri": "'none'", "form-action": "'none'"}
    content = "; ".join(f"{name} {value}" for name, value in sources.items())
    return f'<meta http-equiv="Content-Security-Policy" content="{content}">'


def fill(**parts: str) -> str:
    """`page.html` with its placeholders filled: policy, style, script, data, plain, question and
    passage. The last two are "" by default.
    """
    parts = {"question": "", "passage": "", **parts}
    # The template is split once. With one replacement after another, text in the data that looks
    # like a placeholder would be replaced too.
    head, *rest = asset("page.html").split("<!-- put: ")
    return head + "".join(parts[name] + after for name, after in (r.split(" -->", 1) for r in rest))


def source(text: str) -> str:
    """The hash of an inline element, in the form that a Content-Security-Policy needs."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
