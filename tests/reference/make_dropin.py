"""Make `dropin_calls.json`: the shapes that transformers 5.2.0 gives to the calls of
`tests/dropin_calls.py`, with the tiny checkpoint.

    PYTHONPATH=tests python tests/reference/make_dropin.py
"""

import json
from pathlib import Path

import transformers
from dropin_calls import STORED, ask_reference, calls, shape


def main() -> None:
    tiny = str(Path(__file__).parent / "tiny")
    pipe = transformers.pipeline("question-answering", model=tiny, tokenizer=tiny, device=-1)
    shapes = {name: shape(ask_reference(pipe, call)) for name, call in calls().items()}
    lines = (f"{json.dumps(name)}: {json.dumps(found)}" for name, found in shapes.items())
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
