"""Run notebooks from top to bottom in a clean kernel, and save them with a digest of their code.

A small copy of each notebook's last picture goes to `images/`, for the README.

python notebooks/run.py [notebook ...]      without an argument: all notebooks
"""

import base64
import hashlib
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
HANG = 600  # seconds for one cell: ten times the slowest cell on a slow machine


def digest(notebook: nbformat.NotebookNode) -> str:
    """A digest of the code. It shows when a notebook was edited and not run again."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def execute(notebook: nbformat.NotebookNode) -> None:
    """Run all cells. An error in a cell is raised here."""
    resources = {"metadata": {"path": str(HERE)}}
    NotebookClient(notebook, timeout=HANG, kernel_name="python3", resources=resources).execute()


def thumbnail(notebook: nbformat.NotebookNode) -> Image.Image:
    """The last picture of the notebook, 160 pixels high."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    image = Image.open(io.BytesIO(base64.b64decode(pictures[-1]))).convert("RGB")
    return image.resize((160 * image.width // image.height, 160), Image.Resampling.LANCZOS)


def main() -> None:
    for path in map(Path, sys.argv[1:] or sorted(HERE.glob("*.ipynb"))):
        notebook = nbformat.read(path, as_version=4)
        execute(notebook)
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times, which change in every run
        notebook.metadata["minibert"] = {"executed": digest(notebook)}
        nbformat.write(notebook, path)
        (HERE / "images").mkdir(exist_ok=True)
        thumbnail(notebook).save(HERE / "images" / f"{path.stem}.png", optimize=True)
        print(path.name)


if __name__ == "__main__":
    main()
