"""The command `export`, which writes a model for other programs."""

from pathlib import Path

from typer import Option, echo

from ..export.folder import write_folder
from ..files import make_folder
from .lines import require_new
from .options import READER


def export(
    model: str = READER["model"],
    revision: str | None = READER["revision"],
    output: Path = Option(..., help="The new folder."),
    for_argmax: bool = Option(
        False,
        "--for-argmax",
        help="For programs that give only ids and mask, and take the argmax of each output.",
    ),
    int8: bool = Option(
        False, "--int8", help="Store and multiply matrices in 8-bit integers: a fourth of the size."
    ),
) -> None:
    """Write a model as ONNX, for programs that do not use Python or torch.

    The folder has model.onnx, config.json, the tokenizer, and a README that says what stays outside
    of the model. The name of the model can be given without --model.
    """
    require_new(output)  # these two lines come before the long work
    make_folder(output.parent)
    write_folder(output, model, revision, for_argmax, int8)
    echo(f"the model is {output.resolve()}", err=True)
