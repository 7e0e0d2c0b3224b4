"""The command line: `minibert` and its commands."""

from .answering import demo_passages
from .program import app, main

__all__ = ["app", "demo_passages", "main"]
