"""Pretrained weights: folder or hub id -> configuration, tensors under our names, and a report.

`save_folder` does the reverse.
The format is Hugging Face's: `config.json`, with `model.safetensors` or `pytorch_model.bin`, or
with the shards and the index of either. The tables in `families.py` say which tensor is which, and
which tensors are ignored. This module knows no model class. The caller says which names and shapes
it expects. The report says what happened to each of these names, and to each checkpoint key.
"""

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn
from torch.overrides import TorchFunctionMode

from .config import Attention, BertConfig
from .errors import PretrainedError, first_line, first_of
from .families import FAMILIES, Family
from .files import complete_files
from .hub import find_file, read_json, refuse_pointer, require_file, with_revision

Model = TypeVar("Model", bound=nn.Module)

# The first torch in which no way around `torch.load(..., weights_only=True)` is known. See
# CVE-2025-32434 (before 2.6) and CVE-2026-24747 (before 2.10).
PICKLES_ARE_SAFE = "2.10"

# A class that wraps a model puts a prefix before every name: torch's data parallelism, torch's
# compiler, or a class of the user's own.
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.|model\.)+")


@dataclass(frozen=True)
class LoadingReport:
    """Where every key of a checkpoint went, and where every expected tensor came from."""

    mapped: dict[str, str]  # checkpoint key -> our name; one row of a matrix is "key[row]"
    ignored: dict[str, str]  # checkpoint key -> the reason
    missing: tuple[str, ...]  # our names that the model has and the checkpoint lacks
    unexpected: tuple[str, ...]  # checkpoint keys that have no place in the model
    wrapper: str = ""  # the prefix of every checkpoint key: see `WRAPPERS`

    def __str__(self) -> str:
        lines = [
            f"{len(self.mapped)} mapped, {len(self.ignored)} ignored, "
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected"
        ]
        lines += [f"  every key began with {self.wrapper!r}"] if self.wrapper else []
        lines += [f"  mapped      {theirs} -> {ours}" for theirs, ours in self.mapped.items()]
        lines += [f"  ignored     {theirs}: {why}" for theirs, why in self.ignored.items()]
        lines += [f"  missing     {ours}" for ours in self.missing]
        lines += [f"  unexpected  {theirs}" for theirs in self.unexpected]
        return "\n".join(lines)


def read_config(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """The parsed `config.json` of a folder or hub id. Raises `PretrainedError`."""
    return read_json(require_file(source, "config.json", revision))


def standard_key(key: str, family: Family) -> str:
    """The key, with a missing prefix added and TensorFlow's names of LayerNorm replaced.

    >>> standard_key("encoder.layer.0.output.LayerNorm.gamma", FAMILIES["bert"])
    'bert.encoder.layer.0.output.LayerNorm.weight'
    """
    part = f"{family.prefix}.{key.partition('.')[0]}."
    if any(name.startswith(part) for name in (*family.keys, *family.ignored)):
        key = f"{family.prefix}.{key}"  # the checkpoint of a bare encoder
    key = key.replace("LayerNorm.gamma", "LayerNorm.weight")
    return key.replace("LayerNorm.beta", "LayerNorm.bias")


def split_layer(name: str) -> tuple[str, str]:
    """A checkpoint key, or a name of ours -> its template in a table, and the number of the layer.

    >>> split_layer("bert.layers.7.attention.key.bias")
    ('bert.layers.{}.attention.key.bias', '7')
    >>> split_layer("head.S")
    ('head.S', '')
    """
    match = re.search(r"(?<=\.layer\.)\d+(?=\.)|(?<=\.layers\.)\d+(?=\.)", name)
    if match is None:
        return name, ""
    return f"{name[: match.start()]}{{}}{name[match.end() :]}", match[0]


def targets_of(key: str, table: Mapping[str, str]) -> Iterator[tuple[str, str, int | None]]:
    """Where a checkpoint's tensor goes: pairs of key and our name, with the row or None.

    >>> table = FAMILIES["roberta"].keys
    >>> list(targets_of("qa_outputs.weight", table))
    [('qa_outputs.weight[0]', 'head.S', 0), ('qa_outputs.weight[1]', 'head.E', 1)]
    >>> [ours for _, ours, _ in targets_of("roberta.encoder.layer.7.output.dense.bias", table)]
    ['bert.layers.7.feed_forward.contract.bias']
    """
    template, layer = split_layer(key)
    if template in table:
        yield key, table[template].format(layer), None
        return
    for row in (0, 1):
        if f"{template}[{row}]" in table:
            yield f"{key}[{row}]", table[f"{template}[{row}]"], row


def unwrapped(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors without the `WRAPPERS` before their names, and these wrappers as one string.

    Raises `PretrainedError` when only some of the names have a wrapper.

    >>> unwrapped({"module.model.a": torch.ones(1), "module.model.b": torch.ones(1)})[1]
    'module.model.'
    """
    wrapper = max((key.removesuffix(WRAPPERS.sub("", key)) for key in tensors), key=len, default="")
    if other := {key for key in tensors if not key.startswith(wrapper)}:
        raise PretrainedError(f"some weights begin with {wrapper!r}, but not {first_of(other)}")
    return {key.removeprefix(wrapper): tensor for key, tensor in tensors.items()}, wrapper


@contextmanager
def prefix_errors(source: str | Path) -> Iterator[None]:
    """Add the folder or hub id to the front of a `PretrainedError` that does not name it yet."""
    try:
        yield
    except PretrainedError as error:
        if str(error).startswith(str(source)):
            raise
        raise PretrainedError(f"{source}: {error}") from error


def read_tensors(source: str | Path, revision: str | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, under the names in its files. Raises `PretrainedError`.

    Reads `model.safetensors`, else its shards (`model.safetensors.index.json`), else
    `pytorch_model.bin` with `weights_only=True`, else its shards. Code in a checkpoint is never
    executed. For a `.bin` file this depends on torch, so torch before 2.10 is an error.
    """
    for name, read in (("model.safetensors", _read_safetensors), ("pytorch_model.bin", _read_bin)):
        if path := find_file(source, name, revision):
            return read(path)
        if index := find_file(source, f"{name}.index.json", revision):
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise PretrainedError(f"{index}: no weight_map in this index")
            tensors: dict[str, torch.Tensor] = {}
            for shard in sorted({str(shard) for shard in weight_map.values()}):
                if Path(shard).name != shard:  # a shard must be in the same folder
                    raise PretrainedError(f"{index}: shard {shard!r} is not a plain file name")
                tensors |= read(require_file(source, shard, revision))
            if lost := set(weight_map) - set(tensors):
                raise PretrainedError(f"{index}: no shard holds {first_of(lost)}")
            return tensors
    raise PretrainedError(
        f"{with_revision(source, revision)}: no weights (model.safetensors or pytorch_model.bin)"
    )


def _read_bin(path: Path) -> dict[str, torch.Tensor]:
    refuse_pointer(path)
    if torch.__version__ < PICKLES_ARE_SAFE:
        raise PretrainedError(
            f"{path}: a pickle, which can execute code under torch {torch.__version__}: update "
            f"torch to {PICKLES_ARE_SAFE}, or save the weights as model.safetensors"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol; the error is enough
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile pickle can raise anything
        reason = f"not readable as PyTorch weights: {first_line(error)}"
        raise PretrainedError(f"{path}: {reason}") from error
    if not isinstance(tensors, dict) or not all(_is_plain(*item) for item in tensors.items()):
        raise PretrainedError(f"{path}: expected a dict of tensors")
    return tensors


def _is_plain(name: object, tensor: object) -> bool:
    """Whether a pickle's entry is a named, dense tensor on the CPU."""
    return (
        isinstance(name, str)
        and isinstance(tensor, torch.Tensor)
        and tensor.layout == torch.strided
        and not tensor.is_nested
        and tensor.device.type == "cpu"
    )


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    refuse_pointer(path)
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise PretrainedError(f"{path}: not readable as safetensors: {error}") from error


def map_tensors(
    theirs: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size], model_type: str = "bert"
) -> tuple[dict[str, torch.Tensor], LoadingReport]:
    """Tensors under a checkpoint's keys -> float32 tensors under our names, and the report.

    `expected` gives the shape of every tensor of the model. Raises `PretrainedError` for a tensor
    that has another shape, is not floating point, is not finite, or is given twice. Missing and
    unexpected names raise no error here, but the report lists them.
    """
    family = FAMILIES[model_type]
    theirs, wrapper = unwrapped(theirs)
    ours: dict[str, torch.Tensor] = {}
    mapped: dict[str, str] = {}
    ignored: dict[str, str] = {}
    unexpected: list[str] = []
    for original, tensor in theirs.items():
        key = standard_key(original, family)
        reasons = [why for start, why in family.ignored.items() if key.startswith(start)]
        if reasons:
            ignored[original] = reasons[0]
            continue
        targets = [target for target in targets_of(key, family.keys) if target[1] in expected]
        if not targets:
            unexpected.append(original)
        for name, our_name, row in targets:
            if our_name in ours:
                raise PretrainedError(f"{original}: {our_name} was already given by another key")
            if not tensor.is_floating_point():
                raise PretrainedError(f"{original}: expected real numbers, got {tensor.dtype}")
            wanted = expected[our_name] if row is None else torch.Size((2, *expected[our_name]))
            if tensor.shape != wanted:
                raise PretrainedError(
                    f"{original}: shape {tuple(tensor.shape)}, but the model needs {tuple(wanted)}"
                )
            part = (tensor if row is None else tensor[row].clone()).to(torch.float32)
            if not part.isfinite().all():
                raise PretrainedError(f"{original}: contains NaN or infinite numbers")
            ours[our_name] = part
            mapped[name] = our_name
    missing = tuple(name for name in expected if name not in ours)
    return ours, LoadingReport(mapped, ignored, missing, tuple(unexpected), wrapper)


def load_tensors(
    source: str | Path,
    expected: Mapping[str, torch.Size],
    model_type: str,
    may_lack: str | tuple[str, ...] = (),
    may_hold: str | tuple[str, ...] = (),
    revision: str | None = None,
) -> tuple[dict[str, torch.Tensor], LoadingReport]:
    """`read_tensors`, then `known_tensors`."""
    with prefix_errors(source):
        theirs = read_tensors(source, revision)
        return known_tensors(source, theirs, expected, model_type, may_lack, may_hold)


def known_tensors(
    source: str | Path,
    theirs: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Size],
    model_type: str,
    may_lack: str | tuple[str, ...] = (),
    may_hold: str | tuple[str, ...] = (),
) -> tuple[dict[str, torch.Tensor], LoadingReport]:
    """`map_tensors`. Raises `PretrainedError` for keys without a counterpart.

    Our names that begin with `may_lack` may be missing, for example a head that will be trained.
    Checkpoint keys that begin with `may_hold` may stay unread, for example an unwanted head. Any
    other missing name raises an error, and so does an unexpected key of the encoder or of the span
    head. Other unexpected keys, such as another task's head, stay unread with a warning. `source`
    is the name of the weights in messages.
    """
    family = FAMILIES[model_type]
    with prefix_errors(source):
        tensors, report = map_tensors(theirs, expected, model_type)
        missing = {name for name in report.missing if not name.startswith(may_lack)}
        if missing:
            stems = {key.partition(".")[0] for key in report.unexpected}
            others = [repr(name) for name, other in FAMILIES.items() if other.prefix in stems]
            if others and not any(name.startswith("bert.") for name in tensors):
                raise PretrainedError(
                    f"config.json says model_type {model_type!r}, but the weights have the names "
                    f"of {' and '.join(others)}"
                )
            raise PretrainedError(f"these weights lack {first_of(missing)}")
        unexpected = {key for key in report.unexpected if not key.startswith(may_hold)}
        parts = (f"{family.prefix}.", "qa_outputs.")
        if inside := {key for key in unexpected if standard_key(key, family).startswith(parts)}:
            raise PretrainedError(f"config.json has no place for the weights {first_of(inside)}")
    if unexpected:
        warnings.warn(
            f"{source}: not read, because these are in neither the encoder nor the span head: "
            f"{first_of(unexpected)}",
            stacklevel=4,
        )
    return tensors, report


def their_tensors(model_type: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All tensors of a model under our names -> the same under Hugging Face's names."""
    theirs: dict[str, torch.Tensor] = {}
    templates = {ours: template for template, ours in FAMILIES[model_type].keys.items()}
    for name, tensor in tensors.items():
        template, layer = split_layer(name)
        theirs[templates[template].format(layer)] = tensor.contiguous()
    for stem in {key.removesuffix("[0]") for key in theirs if key.endswith("[0]")}:
        theirs[stem] = torch.stack([theirs.pop(f"{stem}[{row}]") for row in (0, 1)])
    return theirs


def save_folder(
    folder: str | Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write `config.json` and `model.safetensors` under Hugging Face's names.

    `tensors` holds all tensors of a model under our names, so `transformers` misses none. Neither
    file changes until both are complete. Raises `InputError` when they cannot be written.
    """
    theirs = their_tensors(config["model_type"], tensors)
    text = json.dumps(dict(config), indent=2, sort_keys=True)
    with complete_files(folder) as draft:
        (draft / "config.json").write_text(text + "\n", encoding="utf-8")
        # transformers refuses a safetensors file that does not say which framework wrote it
        safetensors.torch.save_file(theirs, draft / "model.safetensors", metadata={"format": "pt"})
        # the library lets only the owner read its file, but a web server may be another user
        shutil.copymode(draft / "config.json", draft / "model.safetensors")


def empty_model(
    kind: Callable[[BertConfig, Attention], Model],
    source: str | Path,
    attention: Attention,
    revision: str | None = None,
) -> tuple[Model, dict[str, torch.Size]]:
    """`model_on_meta`, as a folder's or hub id's configuration describes it."""
    with prefix_errors(source):
        return model_on_meta(kind, read_config(source, revision), attention)


def model_on_meta(
    kind: Callable[[BertConfig, Attention], Model], config: Mapping[str, Any], attention: Attention
) -> tuple[Model, dict[str, torch.Size]]:
    """A model as a parsed `config.json` describes it, and the shapes of its weights.

    `kind` makes the model. Its weights are on torch's "meta" device, where they use no memory. The
    caller loads them afterwards. Raises `PretrainedError`.
    """
    parsed = BertConfig.from_dict(config)
    with torch.device("meta"), SkipInit():
        model = kind(parsed, attention)
    return model, {name: tensor.shape for name, tensor in model.state_dict().items()}


class SkipInit(TorchFunctionMode):
    """Skip the random initialisation of weights that loading replaces anyway.

    On the "meta" device these calls draw no numbers. But torch would import its compiler for them,
    and this takes as long as importing the rest of torch.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
