"""Why this span: an explanation is plain data first, then a page, then the same page live."""

from .attribution import Attribution, Gradients, Occlusion
from .explanation import (
    Candidate,
    Decoded,
    Explanation,
    Layer,
    Window,
    attribute,
    explain,
    integrate,
)

__all__ = [
    "Attribution",
    "Candidate",
    "Decoded",
    "Explanation",
    "Gradients",
    "Layer",
    "Occlusion",
    "Window",
    "attribute",
    "explain",
    "integrate",
]
