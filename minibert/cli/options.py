"""Options of commands, made from the fields of settings: names, defaults and help exist once."""

from collections.abc import Callable, Collection
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints

from typer import Option

from ..config import Attention
from ..fast.processor import Precision
from ..reader import BUNDLED, QuestionAnswerer
from ..settings import setting
from ..training.config import TrainingConfig

Command = Callable[..., None]

# Fields whose options have other names. One idea has one name in all commands.
NAMES = {
    "init": "--model",
    "train_file": "--data",
    "dev_file": "--dev-data",
    "output_dir": "--output",
    "teachers": "--teacher",
}
# Types that typer 0.15 does not know -> types that it knows. The settings check the values.
TYPES: dict[Any, Any] = {Precision: str, Attention | None: str | None, tuple[str, ...]: list[str]}


def with_settings(leave_out: Collection[str] = (), **defaults: Any) -> Callable[[Command], Command]:
    """Replace each parameter of a command whose type is a dataclass by an option for each field.

    The command gets the finished object. Fields in `leave_out` have no option. `defaults` replace
    the defaults of fields in this command.
    """

    def decorate(function: Command) -> Command:
        parameters: list[Parameter] = []
        groups: dict[str, tuple[Any, list[str]]] = {}
        for parameter in signature(function).parameters.values():
            kind: Any = parameter.annotation
            if not is_dataclass(kind):
                parameters.append(parameter)
                continue
            hints = get_type_hints(kind)
            chosen = {f.name: f for f in fields(kind) if f.name not in leave_out}
            groups[parameter.name] = kind, list(chosen)
            for name, field in chosen.items():
                default = option(field, defaults.get(name, field.default))
                hint = TYPES.get(hints[name], hints[name])
                parameters.append(parameter.replace(name=name, default=default, annotation=hint))

        @wraps(function)
        def command(**values: Any) -> None:
            for parameter, (kind, names) in groups.items():
                given = {name: values.pop(name) for name in names}
                lists = {name: tuple(v) for name, v in given.items() if isinstance(v, list)}
                values[parameter] = kind(**given | lists)
            function(**values)

        # typer reads both of these
        vars(command)["__signature__"] = Signature(parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def option(field: "Field[Any]", default: Any) -> Any:
    """The option for a field, as typer wants it.

    A help text that ends with "; by default ..." says there what the default None means.
    """
    text, _, meaning = field.metadata["help"].removesuffix(".").partition("; by default ")
    names = [NAMES[field.name]] if field.name in NAMES else []
    if default is False:  # otherwise typer adds the opposite, --no-NAME
        names = [f"--{field.name.replace('_', '-')}"]
    if isinstance(default, tuple):
        text, default = f"{text}. May be repeated", list(default)
    shown: bool | str = "the bundled model" if default == str(BUNDLED) else True
    shown = meaning if meaning and default is None else shown
    default = ... if default is MISSING else default
    return Option(default, *names, help=f"{text}.", show_default=shown)


@dataclass(frozen=True)
class ReaderOptions:
    """Which model answers, how it cuts texts into windows, and how it computes."""

    model: str = setting(str(BUNDLED), "Folder or hub id of the model.")
    revision: str | None = setting(
        None, "Branch, tag or commit of the model's hub id; by default the newest."
    )
    max_length: int | None = setting(
        None, "Tokens (words and parts of words) that a window has; by default at most 384."
    )
    doc_stride: int | None = setting(
        None, "Tokens that two neighbouring windows share; by default at most 128."
    )
    batch_size: int | None = setting(
        None, "How many full windows the model reads at a time; by default 4 on a CPU, 32 on a GPU."
    )
    precision: Precision = setting(
        "auto",
        "Numbers to compute with: fp32, bf16, fp16 (only on a GPU), int8 (only on a CPU), or auto, "
        "which is the fastest of them with nearly the same answers.",
    )
    device: str = setting(
        "auto",
        "Where to compute: cpu, cuda, cuda:1, mps, ..., or auto, which is a GPU if there is one.",
    )

    def load(self) -> QuestionAnswerer:
        """The model as a reader. Raises a `MinibertError`."""
        settings = asdict(self)
        return QuestionAnswerer.from_pretrained(settings.pop("model"), **settings)


# Single options, for commands that take only some fields
READER = {field.name: option(field, field.default) for field in fields(ReaderOptions)}
TRAINING = {field.name: option(field, field.default) for field in fields(TrainingConfig)}
DATA = Option(..., help="A data file, a folder of files, or a hub id; - is standard input.")
SPLIT = Option("validation", help="Which part of a folder or a hub data set: train or validation.")
