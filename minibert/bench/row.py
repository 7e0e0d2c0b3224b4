"""A report of `minibert bench answer` -> one row of the table of kinds of processor, in Markdown.

`README.md` has this table.
"""

import importlib.metadata
import os
import re
import subprocess
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch

from ..errors import counted
from ..fast.processor import device_name, processor_flags
from ..identity import installed_version

ENGINES = {
    "minibert": "minibert", "transformers": "transformers", "openvino": "OpenVINO",
    "onnxruntime": "onnxruntime",
}  # fmt: skip
HEADER = f"| processor | {' | '.join(ENGINES.values())} |"
# Variables with which a user switches instructions off. `README.md` says which engines obey.
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "OV_CPU_MAX_ISA")


def row_of(report: dict[str, Any]) -> str:
    """The header of the table and one row, for the C library's default way of keeping memory.

    A cell has a line for each precision of an engine: questions/s, short pairs/s, milliseconds for
    one question at a time, and EM / F1 of the questions.
    """
    engines = report["untuned"]["engines"]
    cells = [", ".join(about(report))]
    for library in ENGINES:
        lines = []
        for name, figures in engines.items():
            first, _, precision = name.partition(", ")
            if first == library:
                lines.append(
                    f"{precision}: {figures['questions_per_second']:.1f}, "
                    f"{figures['pairs_per_second']:.0f}, {figures['one_ms']:.1f} ms; "
                    f"{figures['exact_match']:.1f} / {figures['f1']:.1f}"
                )
        cells.append("<br>".join(lines) or "not installed")
    return "\n".join([HEADER, "|---" * len(cells) + "|", f"| {' | '.join(cells)} |"])


def about(report: dict[str, Any]) -> Iterator[str]:
    """What the figures depend on: the machine, the versions and the date."""
    yield f"{report['machine']} with {', '.join(report['instructions']) or 'no others of interest'}"
    yield counted(report["threads"], "thread", "threads")
    yield from (f"{name}={value}" for name, value in report["limits"].items())
    yield from (f"{name} {version}" for name, version in report["versions"].items())
    questions = counted(report["questions"], "question", "questions")
    yield f"{questions} in {counted(report['turns'], 'turn', 'turns')}"
    yield report["date"]


def circumstances(device: torch.device) -> dict[str, Any]:
    """What every figure of an answering report depends on, except for the settings."""
    return {
        "machine": device_name(device),
        "instructions": instructions() if device.type == "cpu" else [],
        "threads": torch.get_num_threads(),
        "limits": {name: os.environ[name] for name in LIMITS if name in os.environ},
        "versions": versions(),
        "date": str(date.today()),
    }


def instructions() -> list[str]:
    """The processor's instructions for bfloat16, int8 and matrices. Torch may not use them all."""
    return sorted(flag for flag in processor_flags() if re.search("bf16|vnni|amx", flag))


def versions() -> dict[str, str]:
    """The versions of minibert, with its commit, and of the libraries that are installed."""
    told = {"minibert": f"{installed_version()}{commit()}", "torch": torch.__version__}
    for package in ("transformers", "openvino", "nncf", "onnxruntime"):
        try:
            told[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return told


def commit() -> str:
    """The last commit that changed the package, as " (commit abc)"; "" outside of a repository."""
    folder = Path(__file__).parent.parent
    command = ["git", "-C", str(folder), "log", "-1", "--format=%h", "--", "."]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" (commit {run.stdout.strip()})" if run.stdout.strip() else ""
