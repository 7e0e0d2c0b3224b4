"""README and the guides: the examples run, the commands exist, and the links lead to something."""

import re
import shlex
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from minibert.cli import app

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUIDES = [README, *sorted((ROOT / "notebooks").glob("*.md"))]
PAGES = [
    *GUIDES,
    *sorted((ROOT / "minibert").rglob("*.md")),
    ROOT / "tests/README.md",
    ROOT / ".github/CONTRIBUTING.md",
]
PACKAGE = ROOT / "minibert"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def package_of(block: str) -> str:
    """The other package that an example needs. Its first line says how to install it."""
    match = re.match(r"# pip install (\S+)\n", block)
    return match[1] if match else ""


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_the_python_examples_run_and_print_what_they_say(page, tmp_path, monkeypatch, capsys):
    """The comment after a `print`, and the lines of comments after a loop, say what it prints.

    Numbers may differ by 0.02, because another processor computes in another precision.
    """
    shutil.copytree(ROOT / "tests/data", tmp_path / "tests/data")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in code_blocks(page, "python"):
        if not package_of(block):
            assert_it_prints_what_it_says(block, names, capsys)


@pytest.mark.others
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=f"{name_of(page)}-{package_of(block)}")
        for page in GUIDES
        for block in code_blocks(page, "python")
        if package_of(block)
    ],
)
def test_an_example_with_another_package_does_so_too(block, tmp_path, monkeypatch, capsys):
    try:
        metadata.version(package_of(block))
    except metadata.PackageNotFoundError:
        pytest.skip(f"pip install {package_of(block)}")
    monkeypatch.chdir(tmp_path)
    assert_it_prints_what_it_says(block.partition("\n")[2], {"__name__": "page"}, capsys)


def assert_it_prints_what_it_says(block: str, names: dict[str, Any], capsys: Any) -> None:
    capsys.readouterr()
    exec(compile(block, "page", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    if printed:
        assert_same(printed, re.findall(r"(?:^print\(.*\)  |^)# (.*)$", block, re.MULTILINE))


def assert_same(printed: list[str], stated: list[str]) -> None:
    pairs = zip(" \n ".join(printed).split(" "), " \n ".join(stated).split(" "), strict=True)
    for word, stated_word in pairs:
        if re.fullmatch(r"\d+\.\d+", word):
            assert float(word) == pytest.approx(float(stated_word), abs=0.02), (printed, stated)
        else:
            assert word == stated_word, (printed, stated)


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `minibert` command in a page, in its blocks and in its text."""
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(code_blocks(page, "bash")).replace("\\\n", " ")
    shell = re.sub(r"<<'END'\n.*?\nEND$", "", shell, flags=re.DOTALL | re.MULTILINE)
    lines = re.findall(r"\bminibert ([a-z].*)$", shell, re.MULTILINE)
    lines += re.findall(r"`minibert ([a-z][^`]*)`", text)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_exist_with_their_options(page):
    for arguments in commands(page):
        # After all options are parsed, --help ends the command.
        place = 2 if arguments[0] == "bench" else 1
        arguments[place:place] = ["--help"]
        result = CliRunner().invoke(app, arguments)
        unfinished = "requires an argument" in result.output  # an option that the text mentions
        assert result.exit_code == 0 or unfinished, (arguments, result.output)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)|(?:src|href)=\"([^\"]+)\"", text):
        path, _, anchor = "".join(target).partition("#")
        if "://" not in path:
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


def test_the_readme_is_short_and_has_its_two_commands():
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) <= 1600
    for mark, command in (("do the main job", "minibert demo"), ("pass the tests", "-m pytest")):
        [line] = re.findall(rf"^# {mark}\n(.*)$", text, re.MULTILINE)
        assert line.startswith("python3 -m venv .venv && ") and line.endswith(command)


def test_one_idea_one_place_names_what_exists():
    table = (ROOT / "notebooks/README.md").read_text(encoding="utf-8").split("## One idea")[1]
    rows = [line.split("|")[1:4] for line in table.splitlines() if line.startswith("| ")][1:]
    tests = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/test_*.py"))
    assert len(rows) > 30
    for idea, place, proof in rows:
        file, *names = re.findall(r"`([^`]+)`", place)
        code = (PACKAGE / file).read_text(encoding="utf-8")
        for name in names:
            assert re.search(rf"^(?:def |class )?{name}\b", code, re.MULTILINE), (idea, file, name)
        for name in re.findall(r"`([^`]+)`", proof):
            exists = (ROOT / "tests" / name).exists() or f"def {name}(" in tests
            assert exists, (idea, name)
