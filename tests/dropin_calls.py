"""Calls of a question-answering pipeline: the ways to pass inputs, arguments, and `top_k`.

`calls()` builds them anew each time, since a generator is used up by one call.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import torch

Call = tuple[tuple[Any, ...], dict[str, Any]]

STORED = Path(__file__).parent / "reference" / "dropin_calls.json"

LAMP = {"question": "Who lit the lamp?", "context": "Ada lit the lamp. Ada slept."}
BELL = {"question": "Who rang the bell?", "context": "Bo rang it at dawn, then Cy rang it again."}
BOTH = {key: [LAMP[key], BELL[key]] for key in LAMP}
LONG = LAMP | {"context": LAMP["context"] * 6}  # several windows of 24 tokens

ARGUMENTS: dict[str, dict[str, Any]] = {
    "no argument": {},
    "align_to_words=False": {"align_to_words": False},
    "handle_impossible_answer=True": {"handle_impossible_answer": True},
    "max_answer_len=1": {"max_answer_len": 1},
    "max_answer_len=100": {"max_answer_len": 100},
    "max_seq_len=24": {"max_seq_len": 24},
    "max_seq_len=24, doc_stride=4": {"max_seq_len": 24, "doc_stride": 4},
    "doc_stride=0": {"max_seq_len": 24, "doc_stride": 0},
    "max_question_len=64": {"max_question_len": 64},
    "batch_size=2": {"batch_size": 2},
    "padding='max_length'": {"padding": "max_length"},
    "num_workers=0": {"num_workers": 0},
    "None": dict.fromkeys(
        ("doc_stride", "max_answer_len", "max_seq_len", "max_question_len", "align_to_words")
    ),
}


def squad_example(pair: dict[str, str]) -> Any:
    """A `SquadExample` of transformers; where that isn't installed, one that looks like it."""
    try:
        from transformers.data import SquadExample
    except ImportError:
        return SimpleNamespace(question_text=pair["question"], context_text=pair["context"])
    return SquadExample(None, pair["question"], pair["context"], None, None, None)


class TorchDataset(torch.utils.data.Dataset[dict[str, str]]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, str]:
        return (LAMP, BELL)[index]  # never asked beyond its length


def inputs() -> dict[str, Call]:
    """Every way to pass questions and contexts."""
    table = datasets.Dataset.from_list([LAMP, BELL])
    return {
        "strings": ((), LAMP),
        "lists": ((), BOTH),
        "lists of one": ((), {key: [LAMP[key]] for key in LAMP}),
        "questions, one context": ((), BOTH | {"context": LAMP["context"]}),
        "columns of a data set as lists": ((), {key: list(table[key]) for key in LAMP}),
        "two strings by position": ((LAMP["question"], LAMP["context"]), {}),
        "a dict": ((LAMP,), {}),
        "two dicts": ((LAMP, BELL), {}),
        "three dicts": ((LAMP, BELL, LAMP), {}),
        "a list of one dict": (([LAMP],), {}),
        "a list of dicts": (([LAMP, BELL],), {}),
        "a tuple of dicts": (((LAMP, BELL),), {}),
        "a dict of lists": ((BOTH,), {}),
        "a dict of lists of one": (({key: [LAMP[key]] for key in LAMP},), {}),
        "a list of one SquadExample": (([squad_example(LAMP)],), {}),
        "a list of SquadExamples": (([squad_example(LAMP), squad_example(BELL)],), {}),
        "a data set": ((table,), {}),
        "a data set of one": ((table.select([0]),), {}),
        "an iterable data set": ((table.to_iterable_dataset(),), {}),
        "a data set of torch": ((TorchDataset(),), {}),
        "a generator": (((pair for pair in (LAMP, BELL)),), {}),
        "a generator of one": (((pair for pair in (LAMP,)),), {}),
    }


def calls() -> dict[str, Call]:
    """All of them, by name: inputs and arguments, each with several `top_k`."""
    named: dict[str, Call] = {}
    for k in (1, 2, 3):
        for name, (args, kwargs) in inputs().items():
            named[f"{name}; top_k={k}"] = (args, kwargs | {"top_k": k})
        for name, arguments in ARGUMENTS.items():
            named[f"a long context; {name}; top_k={k}"] = ((), LONG | arguments | {"top_k": k})
            named[f"lists; {name}; top_k={k}"] = ((), BOTH | arguments | {"top_k": k})
        one_word = LAMP | {"context": "Ada"}
        named[f"one word; top_k={k}"] = ((), one_word | {"top_k": k})
        # transformers ignores an argument that it doesn't know
        blank = LAMP | {"context": " ", "allow_blank": True, "top_k": k}
        named[f"blank; top_k={k}"] = ((), blank)
        named[f"blank, may be impossible; top_k={k}"] = (
            (),
            blank | {"handle_impossible_answer": True},
        )
        named[f"one blank of two; top_k={k}"] = (
            (),
            BOTH | {"context": [" ", BELL["context"]], "allow_blank": True, "top_k": k},
        )
    return named


def shape(result: Any) -> Any:
    """A result without its figures: "answer", a list of shapes, or {"stream": such a list}."""
    if isinstance(result, dict):
        types = {"score": float, "start": int, "end": int, "answer": str}
        assert {key: type(value) for key, value in result.items()} == types
        return "answer"
    if isinstance(result, list):
        return [shape(one) for one in result]
    assert isinstance(result, Iterator) or hasattr(result, "__next__")
    return {"stream": [shape(one) for one in result]}


def ask_reference(pipe: Any, call: Call) -> Any:
    """What transformers' pipeline gives. 5.2.0 takes keywords only, but still has what read inputs
    by position up to 4.57: then as that release's `__call__` did."""
    args, kwargs = call
    if not args:
        return pipe(**kwargs)
    examples = pipe._args_parser(*args)
    if isinstance(examples, list | tuple) and len(examples) == 1:
        (examples,) = examples
    return super(type(pipe), pipe).__call__(examples, **kwargs)


def stored_shapes() -> dict[str, Any]:
    return dict(json.loads(STORED.read_text(encoding="utf-8")))
