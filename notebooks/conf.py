"""The site: the README, guides, notebooks and the reference, as one book.

    sphinx-build -c notebooks . OUTPUT

The pages are the files of the repository where they are, so their links hold in both places.
"""

import os
import shutil
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

project, author = "minibert", "the minibert authors"
version = release = version_of("minibert-qa")
repository = os.environ.get("REPOSITORY", "")  # https://github.com/OWNER/NAME: pages.yml sets it

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    ".github/CONTRIBUTING.md",
    ".github/SECURITY.md",
    "notebooks/*.md",
    "notebooks/*.ipynb",
    "notebooks/reference/*",
    "minibert/bench/README.md",
    "minibert/checkpoints/**",
    "tests/README.md",
]

# --- pages and notebooks
nb_execution_mode = "off"  # the notebooks are committed with their results
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 4  # as on GitHub, a link can name each heading
suppress_warnings = ["myst.header"]

# --- the reference
default_role = "code"  # the docstrings have `single` backticks
autodoc_typehints = "none"  # the signature has the types
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autoclass_content = "both"  # the class and its constructor
autosummary_generate = True  # the pages of notebooks/reference
templates_path = ["templates"]

# --- the look
html_theme = "furo"
html_title = f"minibert {version}"
html_theme_options = {"source_repository": repository, "source_branch": "main"}
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"

CONTENTS = """

```{toctree}
:hidden:
:caption: Use

notebooks/from-transformers
notebooks/answering
notebooks/training
notebooks/data-formats
notebooks/models
notebooks/explaining
notebooks/many-machines
notebooks/serving
notebooks/integrations
notebooks/exporting
notebooks/commands
```

```{toctree}
:hidden:
:caption: Learn

notebooks/README
notebooks/01_text_to_pieces
notebooks/02_three_embeddings
notebooks/03_attention_by_hand
notebooks/04_proving_it_is_bert
notebooks/05_two_vectors_find_an_answer
notebooks/06_from_scores_to_a_span
notebooks/07_when_the_document_is_too_long
notebooks/08_fine_tuning
notebooks/09_did_it_work
notebooks/10_the_family
notebooks/11_why_this_answer
```

```{toctree}
:hidden:
:caption: Look up

notebooks/reference
notebooks/checks
minibert/bench/README
minibert/checkpoints/minilm-squad/README
minibert/checkpoints/README
tests/README
CHANGELOG
.github/CONTRIBUTING
.github/SECURITY
```
"""


TRY = """

```{{toctree}}
:hidden:
:caption: Try

Ask the model in your browser <https://{owner}.github.io/{name}/try/>
```
"""


def add_contents(app: Any, docname: str, source: list[str]) -> None:
    """GitHub would show a table of contents as code, so the README has none."""
    if docname == root_doc:
        if repository:  # pages.yml puts the page there
            owner, name = repository.split("/")[-2:]
            source[0] += TRY.format(owner=owner, name=name)
        source[0] += CONTENTS


def make_index(app: Any, error: Exception | None) -> None:
    """The README is the first page, and browsers ask for index.html."""
    if error is None and app.builder.name == "html":
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Any) -> None:
    app.connect("source-read", add_contents)
    app.connect("build-finished", make_index)
