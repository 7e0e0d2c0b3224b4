"""What differs from machine to machine, said once for all tests."""

import os
import sys
from pathlib import Path

import pytest

# Seconds after which a process is taken for hung: ten times what the slowest of them takes on a
# slow machine. It says nothing about speed; what is fast is for `minibert bench`.
HANG = 600.0

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="looks into a process through Linux's /proc"
)
needs_signals = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows ends a process without asking it"
)
needs_permissions = pytest.mark.skipif(
    getattr(os, "geteuid", int)() == 0,  # without this function, there are no such permissions
    reason="this system has no such permissions, or root needs none",
)
