"""A command of the program: which options belong together, and the old names of options."""

from collections.abc import Callable, Mapping, Set
from copy import copy
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from ..errors import InputError

# A rule gets the options that the user gave, and the values of all parameters. It returns what is
# wrong, or "".
Rule = Callable[[Set[str], Mapping[str, Any]], str]


def one_of(*options: str) -> Rule:
    """The user must give exactly one of these options."""

    def rule(given: Set[str], _: Mapping[str, Any]) -> str:
        several = [option for option in options if option in given]
        expected = f"give one of {', '.join(options[:-1])} and {options[-1]}"
        if len(several) > 1:
            return f"{expected}, but got {' and '.join(several)}"
        return "" if several else expected

    return rule


def needs(option: str, *others: str) -> Rule:
    """The first option has no effect without one of the others."""

    def rule(given: Set[str], _: Mapping[str, Any]) -> str:
        missing = option in given and given.isdisjoint(others)
        return f"{option} needs {' or '.join(others)}" if missing else ""

    return rule


def excludes(option: str, other: str, why: str) -> Rule:
    """The second option has no effect together with the first one."""
    return lambda given, _: f"{option} excludes {other}: {why}" if {option, other} <= given else ""


def alone(option: str, other: str, why: str) -> Rule:
    """No option except the second one has an effect together with the first one."""

    def rule(given: Set[str], _: Mapping[str, Any]) -> str:
        more = sorted(given - {option, other})
        return f"{option} excludes {more[0]}: {why}" if option in given and more else ""

    return rule


def split_needs_a_folder(given: Set[str], values: Mapping[str, Any]) -> str:
    """A single file has no splits."""
    data = values["data"]
    if "--split" not in given or not (data == "-" or Path(data).is_file()):
        return ""
    return f"--split needs a folder or a hub id: {data} is one file"


def needs_files(given: Set[str], values: Mapping[str, Any]) -> str:
    """Training reads its data again when it continues, and in each process."""
    data = (values["train_file"], values.get("dev_file"))
    return "--data and --dev-data cannot be - in training: give a file" if "-" in data else ""


def browser_needs_the_page(given: Set[str], values: Mapping[str, Any]) -> str:
    """Without the page, there is nothing to open."""
    useless = "--browser" in given and not values["page"]
    return "--no-page excludes --browser and --no-browser" if useless else ""


# Every combination of options that would leave one of them without an effect. An option that is
# given must have an effect, or the command must refuse it.
RULES: dict[str, tuple[Rule, ...]] = {
    "answer": (
        alone("--join", "--output", "it only copies lines that have their answers"),
        one_of("--question", "--input", "--join"),
        one_of("--context", "--context-file", "--passages", "--input", "--join"),
        needs("--output", "--input", "--join"),
        needs("--resume", "--output"),
        needs("--shard", "--output"),
        needs("--join", "--output"),
        excludes("--input", "--json", "its output is always JSON lines"),
        excludes("--passages", "--no-answer", '"no answer" always competes there'),
        excludes("--passages", "--text-score", "passages have no such score"),
    ),
    "explain": (one_of("--context", "--context-file"),),
    "serve": (browser_needs_the_page,),
    "site": (one_of("--output", "--single"),),
    "show": (split_needs_a_folder,),
    "check-data": (
        split_needs_a_folder,
        needs("--seed", "--negatives"),
        needs("--misleading", "--negatives"),
    ),
    "train": (
        needs_files,
        needs("--max-answer-len", "--dev-data"),
        needs("--misleading", "--negatives"),
        needs("--allow-other-machine", "--resume"),
    ),
    "adapt": (needs_files, needs("--allow-other-machine", "--resume")),
    "evaluate": (
        split_needs_a_folder,
        needs("--null-threshold", "--no-answer"),
        needs("--tune-threshold", "--no-answer"),
        excludes("--tune-threshold", "--null-threshold", "it chooses the threshold itself"),
    ),
    "calibrate": (split_needs_a_folder,),
    "bench answer": (excludes("--questions", "--minutes", "it says how many there are"),),
}

# The old names of options. They still work, but no help shows them.
OLD_NAMES = {
    "--data": ("--train-file",),
    "--dev-data": ("--dev-file",),
    "--model": ("--init", "--tokenizer"),
    "--no-answer": ("--version-2",),
    "--top-k": ("--n-best",),
}
# In these commands, the value of one option may also be given without its name.
UNNAMED = {"show": "--data", "check-data": "--data", "inspect": "--model", "export": "--model"}
# In these commands, an option takes several values, such as the files of a shell's pattern.
SEVERAL = {"answer": "--join"}


def full_name(context: Any) -> str:
    """The command's name, such as "answer" or "bench answer"."""
    if context.parent is None:
        return ""  # the program itself
    return f"{full_name(context.parent)} {context.info_name}".strip()


class Command(TyperCommand):
    """A command that accepts old names, and refuses options that would have no effect."""

    def make_parser(self, ctx: Any) -> Any:
        parser = super().make_parser(ctx)
        options = {option.opts[0]: option for option in self.get_params(ctx)}
        for name, option in options.items():
            for old_name in OLD_NAMES.get(name, ()):
                renamed = copy(option)
                renamed.opts = [old_name]
                renamed.add_to_parser(parser, ctx)
        unnamed = options.get(UNNAMED.get(full_name(ctx), ""))
        several = options.get(SEVERAL.get(full_name(ctx), ""))
        parse = parser.parse_args

        def parse_args(args: list[str]) -> Any:
            values, rest, order = parse(args)
            if rest and unnamed is not None and unnamed.name not in values:
                values[unnamed.name] = rest.pop(0)
                order.append(unnamed)
            if several is not None and several.name in values:
                values[several.name] += rest
                rest = []
            return values, rest, order

        vars(parser)["parse_args"] = parse_args
        return parser

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises `InputError` if the options break one of `RULES`."""
        given = {
            option.opts[0]
            for option in self.get_params(ctx)
            if ctx.get_parameter_source(option.name).name == "COMMANDLINE"
        }
        for rule in RULES.get(full_name(ctx), ()):
            if problem := rule(given, ctx.params):
                raise InputError(problem)
        return super().invoke(ctx)
