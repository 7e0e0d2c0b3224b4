"""Pretrained weights: folder or hub id -> configuration, tensors under our names, report; and back.

The format is Hugging Face's: `config.json` beside `model.safetensors` or `pytorch_model.bin`, or
the shards of one with their index. `families.py` holds, as data, which tensor is which and which
are not read. This module knows no model class: it is told which names and shapes are expected, and
accounts for every key of both sides.
"""

import json
import re
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
from .errors import PretrainedError, first_of
from .families import FAMILIES, Family
from .files import complete_files

Model = TypeVar("Model", bound=nn.Module)


# The first torch whose `torch.load(..., weights_only=True)` has no known way around it: see
# CVE-2025-32434 (before 2.6) and CVE-2026-24747 (before 2.10).
PICKLES_ARE_SAFE = "2.10"

# What a program that wraps a model puts before every name: torch's data parallelism, its compiler,
# and classes of one's own
WRAPPERS = ("module.", "_orig_mod.", "model.")

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class LoadingReport:
    """Where every key of a checkpoint went, and where every expected tensor came from."""

    mapped: dict[str, str]  # checkpoint key -> our name; a row of a matrix stands as "key[row]"
    ignored: dict[str, str]  # checkpoint key -> the reason
    missing: tuple[str, ...]  # our names that the model has and the checkpoint lacks
    unexpected: tuple[str, ...]  # checkpoint keys that the model has no place for
    wrapper: str = ""  # what every checkpoint key began with, of `WRAPPERS`

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


def find_file(source: str | Path, name: str, revision: str | None = None) -> Path | None:
    """The path of one file of a folder or hub repository; None when there is no such file.

    `revision` is the hub id's branch, tag or commit; None is its newest. Files from the hub are
    downloaded into its cache. Raises `PretrainedError` when `source` is neither a folder nor shaped
    like a hub id, when a folder is given a revision, and when the hub refuses or can't be reached.
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise PretrainedError(f"{source}: a folder; revision={revision!r} is for a hub id")
        return folder / name if (folder / name).is_file() else None
    if folder.exists():
        raise PretrainedError(f"{source}: a file; expected a folder or a hub id")
    if not HUB_ID.fullmatch(str(source)):
        raise PretrainedError(f"{source}: neither a folder nor a hub id such as 'owner/name'")
    return _find_on_hub(str(source), name, revision)


def _find_on_hub(hub_id: str, name: str, revision: str | None) -> Path | None:
    # Imported here: a local folder needs no network library.
    from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, name, revision=revision))
    except Exception as error:  # no such repository, no access, no network: the client's many types
        absent = isinstance(error, EntryNotFoundError)
        if isinstance(error, LocalEntryNotFoundError):
            # Not in the cache, and not asked: absent when the user wants no network or the hub
            # has said so before. A hub that couldn't be reached has not said that.
            cached = try_to_load_from_cache(hub_id, name, revision=revision)
            known = cached is _CACHED_NO_EXIST
            absent = known or constants.HF_HUB_OFFLINE
        if absent:
            return None
        reason = str(error).strip().partition("\n")[0]
        raise PretrainedError(
            f"{with_revision(hub_id, revision)}: no folder of this name, and the hub gives "
            f"no {name}: {reason}"
        ) from error


def with_revision(source: str | Path, revision: str | None) -> str:
    return str(source) if revision is None else f"{source}, revision {revision}"


def require_file(source: str | Path, name: str, revision: str | None = None) -> Path:
    """`find_file`, but raises `PretrainedError` when there is no such file."""
    path = find_file(source, name, revision)
    if path is None:
        where = "in this folder" if Path(source).is_dir() else "on the hub, or in its cache"
        raise PretrainedError(f"{with_revision(source, revision)}: no {name} {where}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `PretrainedError` when the file holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PretrainedError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise PretrainedError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


def read_config(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """The `config.json` of a folder or hub id, as it stands there."""
    return read_json(require_file(source, "config.json", revision))


def standard_key(key: str, family: Family) -> str:
    """Undo the two spellings that old checkpoints have.

    >>> standard_key("encoder.layer.0.output.LayerNorm.gamma", FAMILIES["bert"])
    'bert.encoder.layer.0.output.LayerNorm.weight'
    """
    part = f"{family.prefix}.{key.partition('.')[0]}."
    if any(name.startswith(part) for name in (*family.keys, *family.ignored)):
        key = f"{family.prefix}.{key}"  # saved from a bare encoder
    # TensorFlow's names for the scale and shift of a LayerNorm
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def split_layer(name: str) -> tuple[str, str]:
    """A checkpoint key, or a name of ours, as a template of a table and the layer's number.

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
    """Where a checkpoint's tensor goes: each (its key, our name, row of the tensor or None).

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
    """The tensors without what a wrapper put before every name, and what that was.

    Raises `PretrainedError` where some names have it and others don't.

    >>> unwrapped({"module.model.a": torch.ones(1), "module.model.b": torch.ones(1)})[1]
    'module.model.'
    """
    wrapper = ""
    while added := next(
        (w for w in WRAPPERS if any(key.startswith(wrapper + w) for key in tensors)), None
    ):
        wrapper += added
        if other := {key for key in tensors if not key.startswith(wrapper)}:
            raise PretrainedError(f"some weights begin with {wrapper!r}, but not {first_of(other)}")
    return {key.removeprefix(wrapper): tensor for key, tensor in tensors.items()}, wrapper


@contextmanager
def prefix_errors(source: str | Path) -> Iterator[None]:
    """Put the folder or hub id in front of a `PretrainedError` that does not name it yet."""
    try:
        yield
    except PretrainedError as error:
        if str(error).startswith(str(source)):
            raise
        raise PretrainedError(f"{source}: {error}") from error


def read_tensors(source: str | Path, revision: str | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint under the names that its file gives them.

    Reads `model.safetensors`, else its shards (`model.safetensors.index.json`), else
    `pytorch_model.bin` with `weights_only=True`, else its shards: nothing in a checkpoint is ever
    executed. That promise is torch's to keep: before 2.10 it did not, and such a file is refused.
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
                if Path(shard).name != shard:  # it may point at the files beside it, nowhere else
                    raise PretrainedError(f"{index}: shard {shard!r} is not a plain file name")
                tensors |= read(require_file(source, shard, revision))
            if lost := set(weight_map) - set(tensors):
                raise PretrainedError(f"{index}: no shard holds {first_of(lost)}")
            return tensors
    raise PretrainedError(
        f"{with_revision(source, revision)}: no weights (model.safetensors, pytorch_model.bin, "
        "or the index of either)"
    )


def refuse_pointer(path: Path) -> None:
    """Raise `PretrainedError` for what Git leaves in place of a large file that it didn't fetch."""
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs.github.com/spec"):
            raise PretrainedError(f"{path}: a Git LFS pointer, not the file: git lfs pull gets it")


def _read_bin(path: Path) -> dict[str, torch.Tensor]:
    refuse_pointer(path)
    if torch.__version__ < PICKLES_ARE_SAFE:
        raise PretrainedError(
            f"{path}: a pickle, which can execute code under torch {torch.__version__}: update "
            f"torch to {PICKLES_ARE_SAFE}, or save the weights as model.safetensors"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle's protocol: the error says enough
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or hostile pickle provokes
        reason = str(error).strip().partition("\n")[0]
        raise PretrainedError(f"{path}: not readable as PyTorch weights: {reason}") from error
    if not isinstance(tensors, dict) or not all(_is_plain(*item) for item in tensors.items()):
        raise PretrainedError(f"{path}: expected a dict of tensors")
    return tensors


def _is_plain(name: object, tensor: object) -> bool:
    """Whether a pickle's entry is a named array: not sparse, nested, or without its numbers."""
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
    theirs: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Size],
    model_type: str = "bert",
) -> tuple[dict[str, torch.Tensor], LoadingReport]:
    """Tensors under a checkpoint's keys -> float32 tensors under our names, and the report.

    `expected` gives the shape of every tensor that the model has. Raises `PretrainedError` for a
    tensor of another shape, of a type that is not floating point, not finite, or given twice.
    Missing and unexpected names don't raise here: they stand in the report.
    """
    family = FAMILIES[model_type]
    theirs, wrapper = unwrapped(theirs)
    ours: dict[str, torch.Tensor] = {}
    mapped: dict[str, str] = {}
    ignored: dict[str, str] = {}
    unexpected: list[str] = []
    for original, tensor in theirs.items():
        key = standard_key(original, family)
        because = next(
            (why for start, why in family.ignored.items() if key.startswith(start)), None
        )
        if because is not None:
            ignored[original] = because
            continue
        targets = [target for target in targets_of(key, family.keys) if target[1] in expected]
        if not targets:
            unexpected.append(original)
        for name, our_name, row in targets:
            if our_name in ours:
                raise PretrainedError(f"{original}: {our_name} was already given by another key")
            if not tensor.is_floating_point():
                raise PretrainedError(f"{original}: expected real numbers, found {tensor.dtype}")
            wanted = expected[our_name] if row is None else torch.Size((2, *expected[our_name]))
            if tensor.shape != wanted:
                raise PretrainedError(
                    f"{original}: shape {tuple(tensor.shape)}, but the configuration "
                    f"asks for {tuple(wanted)}"
                )
            part = (tensor if row is None else tensor[row].clone()).to(torch.float32)
            if not part.isfinite().all():
                raise PretrainedError(f"{original}: holds numbers that are NaN or infinite")
            ours[our_name] = part
            mapped[name] = our_name
    missing = tuple(name for name in expected if name not in ours)
    return ours, LoadingReport(mapped, ignored, missing, tuple(unexpected), wrapper)


def load_tensors(
    source: str | Path,
    expected: Mapping[str, torch.Size],
    model_type: str,
    may_lack: str | None = None,
    may_hold: str | None = None,
    revision: str | None = None,
) -> tuple[dict[str, torch.Tensor], LoadingReport]:
    """`read_tensors`, then `map_tensors`; and every key must be accounted for.

    Names of ours that begin with `may_lack` may be missing (a head that is about to be trained).
    Checkpoint keys that begin with `may_hold` may stay unread (the head of a checkpoint whose
    encoder alone is wanted). Raises `PretrainedError` for any other missing name, and for a part of
    the encoder or of the span head that has no place here. What is part of neither, such as a head
    of another task, stays unread with a warning.
    """
    with prefix_errors(source):
        tensors, report = map_tensors(read_tensors(source, revision), expected, model_type)
    missing = {n for n in report.missing if may_lack is None or not n.startswith(may_lack)}
    if missing:
        stems = {key.partition(".")[0] for key in report.unexpected}
        others = [repr(name) for name, family in FAMILIES.items() if family.prefix in stems]
        if others and not any(name.startswith("bert.") for name in tensors):
            raise PretrainedError(
                f"{source}: config.json says model_type {model_type!r}, but the weights are named "
                f"as those of {' and '.join(others)}"
            )
        raise PretrainedError(f"{source}: these weights lack {first_of(missing)}")
    unexpected = {n for n in report.unexpected if may_hold is None or not n.startswith(may_hold)}
    family = FAMILIES[model_type]
    parts = (f"{family.prefix}.", "qa_outputs.")
    if inside := {n for n in unexpected if standard_key(n, family).startswith(parts)}:
        raise PretrainedError(
            f"{source}: the configuration has no place for the weights {first_of(inside)}"
        )
    if unexpected:
        warnings.warn(
            f"{source}: not read, because neither an encoder nor a span head has them: "
            f"{first_of(unexpected)}",
            stacklevel=3,
        )
    return tensors, report


def save_folder(
    folder: str | Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write `config.json` and `model.safetensors` under Hugging Face's names.

    `tensors` are under our names, whole: `transformers` then loads the folder with nothing missing.
    Either both files appear or nothing changes; raises `InputError` where they cannot be written.
    """
    theirs: dict[str, torch.Tensor] = {}
    rows: dict[str, dict[str, torch.Tensor]] = {}
    family = FAMILIES[config["model_type"]]
    templates = {ours: template for template, ours in family.keys.items()}
    for name, tensor in tensors.items():
        template, layer = split_layer(name)
        key = templates[template].format(layer)
        stem, bracket, row = key.partition("[")
        if bracket:
            rows.setdefault(stem, {})[row] = tensor
        else:
            theirs[key] = tensor.contiguous()
    for stem, parts in rows.items():
        theirs[stem] = torch.stack([parts[row] for row in sorted(parts)])

    text = json.dumps(dict(config), indent=2, sort_keys=True)
    with complete_files(folder) as draft:
        (draft / "config.json").write_text(text + "\n", encoding="utf-8")
        # transformers refuses a safetensors file that does not say which framework wrote it
        safetensors.torch.save_file(theirs, draft / "model.safetensors", metadata={"format": "pt"})


def empty_model(
    kind: Callable[[BertConfig, Attention], Model],
    source: str | Path,
    attention: Attention,
    revision: str | None = None,
) -> tuple[Model, dict[str, torch.Size]]:
    """A model with the sizes of a folder's or hub id's configuration, and its weights' shapes.

    `kind` makes the model. It is on torch's "meta" device, where weights have no memory: they are
    loaded afterwards. Raises `PretrainedError`.
    """
    with prefix_errors(source):
        config = BertConfig.from_dict(read_config(source, revision))
    with torch.device("meta"), SkipInit():
        model = kind(config, attention)
    return model, {name: tensor.shape for name, tensor in model.state_dict().items()}


class SkipInit(TorchFunctionMode):
    """Skip the random initialization of weights, which loading replaces at once.

    On the "meta" device these calls draw nothing, yet torch imports its compiler for them, which
    takes as long as importing the rest of torch.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
