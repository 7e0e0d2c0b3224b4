"""The command line: `minibert` and its commands."""

from .commands import app, demo_passages, main

__all__ = ["app", "demo_passages", "main"]
