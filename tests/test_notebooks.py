"""The notebooks run, their outputs belong to their code, and their exercises can be solved."""

import ast
import importlib.util
import inspect
import re
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import minibert

nbformat = pytest.importorskip("nbformat", reason="notebooks: pip install -e '.[test]'")
pytest.importorskip("matplotlib", reason="notebooks: pip install -e '.[test]'")

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]
FOREIGN_PICTURE = re.compile(r"!\[[^\]]*\]\(|<img", re.IGNORECASE)  # not computed by a cell


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run", FOLDER / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = load_script()


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook: Any, tag: str) -> Any:
    (cell,) = [c for c in code_cells(notebook) if tag in c.metadata.get("tags", [])]
    return cell


def test_there_are_eleven():
    assert [name[:2] for name in NAMES] == [f"{k:02}" for k in range(1, 12)]
    assert sum((FOLDER / f"{name}.ipynb").stat().st_size for name in NAMES) <= 6 * 2**20
    assert sorted(path.stem for path in (FOLDER / "solutions").glob("*.py")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_its_exercise_can_be_solved(name, monkeypatch):
    """Run it in a clean kernel, offline; then run the solution, and the check again."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = read(name)
    solution = (FOLDER / "solutions" / f"{name}.py").read_text(encoding="utf-8")
    check = tagged(notebook, "check").source
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in (solution, check)]
    run.execute(notebook)
    printed = "".join(o.get("text", "") for o in notebook.cells[-1].outputs)
    assert "right" in printed.splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_committed_as_it_was_run(name):
    notebook = read(name)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.metadata["minibert"]["executed"] == run.digest(notebook), "edited, not run"
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "right" not in "".join(o.get("text", "") for o in tagged(notebook, "check").outputs)


@pytest.mark.parametrize("name", NAMES)
def test_it_reads_as_a_lesson(name):
    """Text before each cell, short cells, asserts, a hint with each check, no foreign picture."""
    notebook = read(name)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == kinds[-1] == "markdown"
    exercise = {id(tagged(notebook, tag)) for tag in ("exercise", "check")}
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown" or id(cell) in exercise, cell.source
            assert len(cell.source.splitlines()) <= 25, cell.source
            assert "http" not in cell.source, cell.source
        else:
            assert not FOREIGN_PICTURE.search(cell.source), cell.source
    asserts = [c for c in code_cells(notebook) if "assert " in c.source and id(c) not in exercise]
    checks = [
        node
        for node in ast.walk(ast.parse(tagged(notebook, "check").source))
        if isinstance(node, ast.Assert)
    ]
    assert asserts and checks and all(check.msg for check in checks)


def test_each_ends_with_a_link_to_the_next():
    for name, following in pairwise(NAMES):
        assert f"({following}.ipynb)" in read(name).cells[-1].source


# the names that a notebook teaches by writing them: only these may also be in the package
TAUGHT = {"08": {"schedule", "label"}, "09": {"f1", "exact_match", "normalize_answer"}}


@pytest.mark.parametrize("name", NAMES)
def test_it_defines_nothing_that_the_package_has(name):
    has = {
        member
        for module in vars(minibert).values()
        if inspect.ismodule(module)
        for member, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__.startswith("minibert")
    }
    tree = ast.parse("\n".join(cell.source for cell in code_cells(read(name))))
    defined = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
    }
    assert "Bert" in has and not (defined & has) - TAUGHT.get(name[:2], set())


def test_the_digest_is_of_the_code():
    edited = read(NAMES[0])
    before = run.digest(edited)
    edited.cells[0].source += " (a word more)"
    assert run.digest(edited) == before
    code_cells(edited)[0].source += "\n"
    assert run.digest(edited) != before
