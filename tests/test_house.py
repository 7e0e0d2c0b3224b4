"""The shape of the house: text flows one way, each idea has one place, importing does nothing."""

import ast
import platform
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import minibert

PACKAGE = Path(minibert.__file__).parent
HERE = Path(__file__).parent
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


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


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files().items()}


def imports(name: str, tree: ast.AST) -> set[str]:
    """The minibert modules, and the top-level names of others, that a piece of a module imports."""
    package = name.split(".")[:-1]
    names = set()
    for node in ast.walk(tree):
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


def functions(tree: ast.AST) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of a module with its name, after the name of its class."""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, FUNCTIONS):
                outer = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                yield f"{outer}{child.name}", child


def test_a_module_imports_only_those_above_it():
    assert sorted(files()) == sorted(ORDER)
    for place, name in enumerate(ORDER):
        ours = imports(name, TREES[name]) & set(ORDER)
        assert ours <= set(ORDER[:place]), name


def test_no_function_imports_a_module_of_ours():
    """Such an import would hide a circle. Commands may: they load what only one of them needs."""
    for name, tree in TREES.items():
        for function, node in functions(tree):
            ours = imports(name, node) & set(ORDER)
            assert not ours or name.startswith("cli."), f"{name}.{function}: {ours}"


def test_no_function_is_longer_than_80_lines():
    """A command's table of arguments is not counted: its options are read one by one."""
    for name, tree in TREES.items():
        for function, node in functions(tree):
            length = node.end_lineno - node.body[0].lineno + 1
            assert length <= 80, f"{name}.{function}: {length} lines"


def test_no_class_is_longer_than_250_lines():
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 250, f"{name}.{node.name}: {length} lines"


def is_entry(name: str, function: str) -> bool:
    """Whether users call it by keyword: a public name or its methods, a constructor, a command."""
    public = function.partition(".")[0] in minibert.__all__
    made = function.endswith(".__init__")
    return public or made or name == "dropin" or name.startswith("cli.")


def test_at_most_six_parameters():
    """More of them belong together: see `settings.py`. (`self` and `cls` don't count.)"""
    for name, tree in TREES.items():
        for function, node in functions(tree):
            given = node.args
            names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            count = len(names) - (names[:1] in (["self"], ["cls"]))
            assert count <= 6 or is_entry(name, function), f"{name}.{function}: {names}"


def test_one_loop_over_epochs():
    """Span training and masked language modelling share the loop; each has its own step."""
    loops = [
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.For)
        and "epoch" in ast.unparse(node.target)
        and any(isinstance(inner, ast.For) for inner in ast.walk(node) if inner is not node)
    ]
    assert loops == ["training.loop"]


def test_one_forward_pass_for_reading():
    """Everything that reads calls the engine. The places below need more than logits."""
    passes = {
        f"{name}.{function}"
        for name, tree in TREES.items()
        for function, node in functions(tree)
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and re.fullmatch(r"(self\.|\w+\.)?(model|teacher|bert)", ast.unparse(call.func))
    }
    other = {
        "explain.attribution.WordVectors.read",  # its gradients
        "qa.BertForQuestionAnswering.forward",  # the model itself
    }
    outside = {p for p in passes if not p.startswith(("training.", "bench."))}
    assert outside - other == {"engine.Engine._forward"}


def test_the_model_begins_with_its_embeddings():
    """The file that people come to read: nothing about speed or files stands before it."""
    first = next(
        node for node in TREES["model"].body if isinstance(node, ast.ClassDef | ast.FunctionDef)
    )
    assert first.name == "Embeddings" and first.lineno <= 40


def test_the_package_imports_the_reference_only_to_time_it():
    for name, tree in TREES.items():
        assert "transformers" not in imports(name, tree) or name.startswith("bench.")


def test_an_adapter_is_short_and_only_its_user_imports_it():
    """It needs a package that others do not have."""
    adapters = {name for name in ORDER if name.startswith("integrations.")}
    assert len(adapters) >= 3
    for name, tree in TREES.items():
        assert not imports(name, tree) & adapters, name
    for name in adapters:
        assert len(files()[name].read_text(encoding="utf-8").splitlines()) <= 60, name


def test_freed_memory_is_kept_where_the_c_library_can():
    """In a process of its own: it holds until that ends."""
    code = "from minibert.fast.memory import keep_freed_memory; print(keep_freed_memory())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == str(platform.libc_ver()[0] == "glibc"), result.stderr


def test_the_version_is_the_same_everywhere():
    root = PACKAGE.parent
    [version] = re.findall(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(), re.M)
    assert f"\nversion: {version}\n" in (root / "CITATION.cff").read_text(encoding="utf-8")
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## ([\d.]+)", changes, re.M)[0] == version


def test_a_package_with_the_same_import_name_is_noticed(tmp_path):
    """The index has another package `minibert`; pip lets both write into one folder."""
    other = tmp_path / "minibert-0.2.2.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: minibert\nVersion: 0.2.2\n")
    program = f"""
import sys, warnings
import minibert.identity
assert minibert.__version__ == minibert.identity.installed_version()
warnings.simplefilter("error")
minibert.identity.warn_of_namesake()  # there is no such package
sys.path.append({str(tmp_path)!r})
try:
    minibert.identity.warn_of_namesake()
except UserWarning as warning:
    print(warning)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "minibert 0.2.2" in run.stdout and "pip uninstall minibert" in run.stdout
    assert run.stdout.count("\n") == 1


def test_importing_is_light_and_changes_nothing():
    code = (
        "import sys, torch; before = torch.get_num_threads(), torch.initial_seed();"
        "import minibert; assert before == (torch.get_num_threads(), torch.initial_seed());"
        "heavy = {'transformers', 'datasets', 'matplotlib', 'huggingface_hub', 'starlette',"
        " 'uvicorn'} & set(sys.modules);"
        "print(heavy); sys.exit(bool(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_everything_is_importable_without_posix(monkeypatch):
    """Other systems have no `os.geteuid`, and no module `resource`, `fcntl`, `pwd` or `grp`."""
    monkeypatch.delattr("os.geteuid", raising=False)
    tests = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in HERE.glob("*.py")}
    for name, tree in {**TREES, **tests}.items():
        outside = [node for node in tree.body if not isinstance(node, (*FUNCTIONS, ast.ClassDef))]
        top = ast.Module(outside, [])
        assert not imports(name, top) & {"resource", "fcntl", "pwd", "grp"}, name
        calls = {ast.unparse(node.func) for node in ast.walk(top) if isinstance(node, ast.Call)}
        assert not calls & {"os.geteuid", "os.getuid", "os.fork", "os.uname"}, name
    assert runpy.run_path(str(HERE / "machine.py"))["needs_permissions"]
