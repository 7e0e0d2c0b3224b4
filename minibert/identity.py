"""Digests of models and data, minibert's version, and the differences between two jobs."""

import hashlib
import warnings
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from .data.examples import Example
from .features import Feature


def features_digest(features: Sequence[Feature]) -> str:
    """A digest of windows and their labels. It depends on their order."""
    sha256 = hashlib.sha256()
    for f in features:
        fields = (f.example_id, f.prefix, f.token_start, f.token_end)
        sha256.update(repr((*fields, f.start_position, f.end_position)).encode())
        sha256.update(f.context.ids.tobytes())
    return sha256.hexdigest()


def examples_digest(examples: Sequence[Example]) -> str:
    """A digest of questions and their answers. It depends on their order."""
    sha256 = hashlib.sha256()
    for example in examples:
        sha256.update(repr(example).encode())
    return sha256.hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """A digest of tensors, of their names, and of an additional text."""
    sha256 = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous()
        sha256.update(plain.view(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def installed_version() -> str:
    """The version of the installed package, or "(not installed)" for the source alone."""
    try:
        return version("minibert-qa")
    except PackageNotFoundError:
        return "(not installed)"


def warn_of_namesake() -> None:
    """Warn if the package `minibert` is installed too: it has the import name of `minibert-qa`."""
    try:
        other = version("minibert")
    except PackageNotFoundError:
        return
    warnings.warn(
        f"another package, minibert {other}, has files in the same folder as minibert-qa: run `pip "
        "uninstall minibert`, then `pip install --force-reinstall --no-deps minibert-qa`",
        stacklevel=3,
    )


def differences(
    was: Mapping[str, Any], now: Mapping[str, Any], ignored: Collection[str] = ()
) -> dict[str, str]:
    """The settings that have changed, each with a phrase that names both values.

    >>> differences({"seed": 1, "epochs": 2}, {"seed": 3, "epochs": 2})
    {'seed': 'seed was 1, is 3'}
    """
    return {
        name: f"{name} was {was.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(was.keys() | now.keys())
        if name not in ignored and was.get(name) != now.get(name)
    }
