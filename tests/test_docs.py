"""The site: every public name has a page and an example, and every page has a place."""

import inspect
import re
from pathlib import Path

import pytest

import minibert

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "notebooks" / "reference.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", minibert.__all__)
def test_every_public_name_has_a_page_and_an_example(name):
    """The doctests run the examples."""
    assert re.findall(rf"^   {name}$", REFERENCE, re.M) == [f"   {name}"]
    assert ">>>" in (inspect.getdoc(getattr(minibert, name)) or "")


def test_the_reference_has_no_other_names():
    listed = re.findall(r"^   ([A-Za-z_]+)$", REFERENCE, re.M)
    assert sorted(listed) == sorted(minibert.__all__)


def test_every_guide_and_notebook_is_in_the_table_of_contents():
    contents = (ROOT / "notebooks" / "conf.py").read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").iterdir()):
        if path.suffix in (".md", ".ipynb"):
            assert f"\nnotebooks/{path.stem}\n" in contents, path.name
