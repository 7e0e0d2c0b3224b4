"""The shape of the house: text flows one way, and importing it does nothing."""

import ast
import platform
import re
import subprocess
import sys
from pathlib import Path

import minibert

PACKAGE = Path(minibert.__file__).parent


def stated_order() -> list[str]:
    """The modules as `minibert/__init__.py` lists them for readers, in its indented lines."""
    lines = [line.strip() for line in minibert.__doc__.splitlines() if line.startswith("    ")]
    named = [re.split(r"\s{2,}", line)[0] for line in lines]
    return [name.strip() for names in named for name in names.split(",")]


ORDER = stated_order()


def files() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    paths = [p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py")]
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in paths}


def imports(path: Path) -> set[str]:
    """The minibert modules, and the top-level names of others, that a file imports anywhere."""
    package = path.relative_to(PACKAGE).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)]
            if node.module:
                names.add(".".join((*base, *node.module.split("."))))
            else:
                names |= {".".join((*base, alias.name)) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
    return names


# `qa.explain` is a method of the reader, and what explains stands after it: imported when called
AHEAD = {"reader": {"explain.explanation"}}


def test_a_module_imports_only_those_above_it():
    assert sorted(files()) == sorted(ORDER)
    for place, name in enumerate(ORDER):
        ours = imports(files()[name]) & set(ORDER) - AHEAD.get(name, set())
        assert ours <= set(ORDER[:place]), name


def test_no_function_is_longer_than_80_lines():
    """A command's table of arguments is not counted: its options are read one by one."""
    for name, path in files().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.body[0].lineno + 1
                assert length <= 80, f"{name}.{node.name}: {length} lines"


def test_the_model_begins_with_its_embeddings():
    """The file that people come to read: nothing about speed or files stands before it."""
    tree = ast.parse((PACKAGE / "model.py").read_text(encoding="utf-8"))
    first = next(node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef))
    assert first.name == "Embeddings" and first.lineno <= 40


def test_the_package_imports_the_reference_only_to_time_it():
    for name, path in files().items():
        assert "transformers" not in imports(path) or name.startswith("bench.")


def test_freed_memory_is_kept_where_the_c_library_can():
    """In a process of its own: it holds until that ends."""
    code = "from minibert.fast.memory import keep_freed_memory; print(keep_freed_memory())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == str(platform.libc_ver()[0] == "glibc"), result.stderr


def test_importing_is_light_and_changes_nothing():
    code = (
        "import sys, torch; before = torch.get_num_threads(), torch.initial_seed();"
        "import minibert; assert before == (torch.get_num_threads(), torch.initial_seed());"
        "heavy = {'transformers', 'datasets', 'matplotlib', 'huggingface_hub', 'starlette',"
        " 'uvicorn', 'minibert.explain'} & set(sys.modules);"
        "print(heavy); sys.exit(bool(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
