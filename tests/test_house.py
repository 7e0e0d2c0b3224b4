"""The shape of the house: text flows one way, and importing it does nothing."""

import ast
import platform
import subprocess
import sys
from pathlib import Path

import minibert

PACKAGE = Path(minibert.__file__).parent

# In the order in which text flows: a module imports those above it alone.
ORDER = [
    "errors",
    "tuning",
    "pretrained",
    "tokenization",
    "squad",
    "features",
    "model",
    "qa",
    "fused",
    "spans",
    "reader",
    "dropin",
    "evaluate",
    "checkpoint",
    "parallel",
    "train",
    "viz",
    "bench",
    "bench_engines",
    "bench_answer",
    "cli",
]


def imports(path: Path) -> set[str]:
    """The minibert modules, and the top-level names of others, that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
    return found


def test_a_module_imports_only_those_above_it():
    assert {p.stem for p in PACKAGE.glob("*.py")} == {*ORDER, "__init__", "__main__"}
    for place, name in enumerate(ORDER):
        ours = imports(PACKAGE / f"{name}.py") & set(ORDER)
        assert ours <= set(ORDER[:place]), name


def test_the_package_imports_the_reference_only_to_time_it():
    for path in PACKAGE.glob("*.py"):
        assert "transformers" not in imports(path) or path.name.startswith("bench")


def test_freed_memory_is_kept_where_the_c_library_can():
    """In a process of its own: it holds until that ends."""
    code = "from minibert.tuning import keep_freed_memory; print(keep_freed_memory())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == str(platform.libc_ver()[0] == "glibc"), result.stderr


def test_importing_is_light_and_changes_nothing():
    code = (
        "import sys, torch; before = torch.get_num_threads(), torch.initial_seed();"
        "import minibert; assert before == (torch.get_num_threads(), torch.initial_seed());"
        "heavy = {'transformers', 'datasets', 'matplotlib', 'huggingface_hub'} & set(sys.modules);"
        "print(heavy); sys.exit(bool(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
