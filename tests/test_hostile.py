"""Files by strangers: each bad one is one line that names it, exit code 2, and nothing else."""

import gzip
import io
import json
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import minibert
from minibert.cli import main, program
from minibert.data.examples import load_squad

HERE = Path(__file__).parent
WEIGHTS, CONFIG, VOCAB = "model.safetensors", "config.json", "vocab.txt"
CANARY = "a-file-that-only-executed-code-would-make"


class Code:
    """A pickle of it makes a file when loaded without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (CANARY,))


def write(name: str, content: bytes | str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)

    return spoil


def configured(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | changes))

    return spoil


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        try:
            save_file(found, folder / WEIGHTS, metadata={"format": "pt"})
        except KeyError as error:  # of complex numbers, before safetensors 0.7
            pytest.skip(f"this safetensors cannot write {error}")

    return spoil


def bytes_of_weights(change: Callable[[bytearray], bytes | bytearray]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / WEIGHTS
        path.write_bytes(bytes(change(bytearray(path.read_bytes()))))

    return spoil


def flipped(content: bytearray, place: int) -> bytearray:
    content[place] ^= 0xFF
    return content


def instead_of_weights(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(content)

    return spoil


def index(weight_map: Any) -> Callable[[Path], None]:
    return instead_of_weights(
        "model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode()
    )


def vocabulary(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        words = (folder / VOCAB).read_text(encoding="utf-8").splitlines()
        (folder / VOCAB).write_text("\n".join(change(words)) + "\n", encoding="utf-8")

    return spoil


def torch_file(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def put(found: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
    found[name] = value


def beyond_all() -> str:
    """A tokenizer whose last word has an id of a billion."""
    ids = {word: k for k, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))}
    model = {"type": "WordPiece", "vocab": ids | {"lamp": 10**9}, "unk_token": "[UNK]"}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model})


KEY = "bert.encoder.layer.1.output.dense.bias"
BIN = "pytorch_model.bin"
FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    # weights
    "pickle that runs code": (instead_of_weights(BIN, pickle.dumps(Code())), BIN),
    "torch file that runs code": (instead_of_weights(BIN, torch_file({"a": Code()})), BIN),
    "torch file of a list": (instead_of_weights(BIN, torch_file([1])), "a dict of tensors"),
    "torch file of no tensors": (
        instead_of_weights(BIN, torch_file({"a": 1})),
        "a dict of tensors",
    ),
    "torch file of numbered tensors": (
        instead_of_weights(BIN, torch_file({1: torch.ones(1)})),
        "a dict of tensors",
    ),
    "torch file of sparse tensors": (
        instead_of_weights(BIN, torch_file({KEY: torch.ones(16).to_sparse()})),
        "a dict of tensors",
    ),
    "torch file without the numbers": (
        instead_of_weights(BIN, torch_file({KEY: torch.ones(16, device="meta")})),
        "a dict of tensors",
    ),
    "torch file cut": (instead_of_weights(BIN, torch_file({"a": torch.ones(9)})[:200]), BIN),
    "empty torch file": (instead_of_weights(BIN, b""), BIN),
    "empty weights": (write(WEIGHTS, b""), WEIGHTS),
    "weights cut in the header": (bytes_of_weights(lambda b: b[:100]), WEIGHTS),
    "weights cut in the data": (bytes_of_weights(lambda b: b[:-1]), WEIGHTS),
    "weights with a tail": (bytes_of_weights(lambda b: b + b"tail"), WEIGHTS),
    "header length flipped": (bytes_of_weights(lambda b: flipped(b, 1)), WEIGHTS),
    "header flipped": (bytes_of_weights(lambda b: flipped(b, 20)), WEIGHTS),
    "header of 2^63 bytes": (bytes_of_weights(lambda b: struct.pack("<Q", 2**63) + b[8:]), WEIGHTS),
    "header that is no object": (write(WEIGHTS, struct.pack("<Q", 2) + b"[]"), WEIGHTS),
    "offsets outside": (
        write(
            WEIGHTS,
            struct.pack("<Q", 58) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}   ',
        ),
        WEIGHTS,
    ),
    "web page": (write(WEIGHTS, "<!DOCTYPE html><html>Sign in</html>"), WEIGHTS),
    "pointer": (
        write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        WEIGHTS,
    ),
    "a tensor of another shape": (tensors(lambda t: put(t, KEY, torch.ones(17))), KEY),
    "a tensor without a dimension": (tensors(lambda t: put(t, KEY, torch.tensor(1.0))), KEY),
    "whole numbers": (tensors(lambda t: put(t, KEY, torch.ones(16, dtype=torch.int64))), KEY),
    "truth values": (tensors(lambda t: put(t, KEY, torch.ones(16, dtype=torch.bool))), KEY),
    "complex numbers": (tensors(lambda t: put(t, KEY, torch.ones(16) + 0j)), KEY),
    "NaN": (tensors(lambda t: put(t, KEY, torch.full((16,), torch.nan))), KEY),
    "infinity": (tensors(lambda t: put(t, KEY, torch.full((16,), -torch.inf))), KEY),
    "one weight lost": (tensors(lambda t: put(t, "x", t.pop(KEY))), "lack bert.layers.1"),
    "all weights lost": (tensors(lambda t: t.clear()), "lack"),
    "another name": (tensors(lambda t: put(t, "bert.surplus", torch.ones(1))), "bert.surplus"),
    "a shard above": (index({"a": f"../{WEIGHTS}"}), "not a plain file name"),
    "a shard at the root": (index({"a": "/etc/passwd"}), "not a plain file name"),
    "a shard that is missing": (index({"a": "b.safetensors"}), "no b.safetensors"),
    "a shard that is no name": (index({"a": 7}), "no 7"),
    "an index of nothing": (index({}), "no weight_map"),
    "an index that is a list": (index([WEIGHTS]), "no weight_map"),
    # configuration
    "fewer layers configured": (configured(num_hidden_layers=2), "bert.encoder.layer.2"),
    "more layers configured": (configured(num_hidden_layers=4), "lack bert.layers.3"),
    "a billion layers": (configured(num_hidden_layers=10**9), "num_hidden_layers=1000000000"),
    "absurd width": (configured(hidden_size=2**40, intermediate_size=1), "parameters"),
    "absurd vocabulary": (configured(vocab_size=10**15), "parameters"),
    "a negative size": (configured(hidden_size=-16), "hidden_size=-16"),
    "a size that is text": (configured(hidden_size="16"), "hidden_size='16'"),
    "a size that is true": (configured(num_hidden_layers=True), "num_hidden_layers=True"),
    "a size that is a list": (configured(vocab_size=[1]), "vocab_size=[1]"),
    "a size that is null": (configured(hidden_size=None), "hidden_size=None"),
    "NaN in the configuration": (configured(layer_norm_eps=float("nan")), "layer_norm_eps=nan"),
    "heads that don't divide": (configured(num_attention_heads=3), "num_attention_heads=3"),
    "dropout of 1": (configured(hidden_dropout_prob=1), "hidden_dropout_prob=1"),
    "another model": (
        configured(model_type="roberta"),
        "model_type 'roberta', but the weights have the names of 'bert'",
    ),
    "another activation": (configured(hidden_act="gelu_new"), "hidden_act='gelu_new'"),
    "one segment": (configured(type_vocab_size=1), "bert.embeddings.token_type"),
    "configuration of bytes": (write(CONFIG, b"\xff\xfe\x00"), CONFIG),
    "configuration cut": (write(CONFIG, '{"hidden_size":'), CONFIG),
    "configuration nested too deep": (write(CONFIG, "[" * 100_000), CONFIG),
    "configuration a web page": (write(CONFIG, "<html></html>"), CONFIG),
    # vocabulary
    "no [CLS]": (vocabulary(lambda v: [w for w in v if w != "[CLS]"]), "no [CLS]"),
    "no [UNK]": (vocabulary(lambda v: [w for w in v if w != "[UNK]"]), "no [UNK]"),
    "more words than embeddings": (vocabulary(lambda v: [*v, "surplus"]), "1190 tokens"),
    "a word twice": (vocabulary(lambda v: [*v, v[-1]]), "1190 tokens"),
    "an id beyond all": (write("tokenizer.json", beyond_all()), "too large"),
    "empty vocabulary": (write(VOCAB, ""), VOCAB),
    "vocabulary of bytes": (write(VOCAB, b"\xff\xfe\x00"), VOCAB),
    "tokenizer.json cut": (write("tokenizer.json", '{"version": "1.0"'), "tokenizer.json"),
    "tokenizer.json of another kind": (
        write("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE"}}'),
        "tokenizer.json",
    ),
    "settings that are no object": (write("tokenizer_config.json", "[]"), "tokenizer_config.json"),
    "a setting of another type": (
        write("tokenizer_config.json", '{"do_lower_case": "yes"}'),
        "do_lower_case='yes'",
    ),
}


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    for file in tiny.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "model"


def one_line(
    arguments: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr(program, "keep_freed_memory", lambda: None)
    monkeypatch.setattr("sys.argv", ["minibert", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("name", FOLDERS)
def test_a_bad_folder_is_one_line(folder, tmp_path, monkeypatch, capsys, name):
    spoil, named = FOLDERS[name]
    spoil(folder)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    asked = ["answer", "--model", folder, "--question", "Who?", "--context", "a lamp"]
    said = one_line(asked, monkeypatch, capsys)
    assert str(folder) in said and named in said
    # nothing executed, nothing written
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../model", "a b", "a/b/c", "", "\x00", "http://host/model"])
def test_what_is_neither_a_folder_nor_an_id_is_one_line(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    asked = ["answer", "--model", name, "--question", "Who?", "--context", "a lamp"]
    assert "error: " in one_line(asked, monkeypatch, capsys)


def squad(**question: Any) -> str:
    good = {"id": "q", "question": "What?", "answers": [{"text": "lamp", "answer_start": 2}]}
    paragraph = {"context": "a lamp", "qas": [good | question]}
    return json.dumps({"data": [{"paragraphs": [paragraph]}]})


LINE = '{"question": "Who?", "context": "a lamp", "answer": "lamp"}'
CSV = "question,context,answer,answer_start\n"
NUL = "row 1" if sys.version_info >= (3, 11) else "line contains NUL"  # csv reads it, or not

FILES: dict[str, tuple[str, bytes | str, str]] = {
    "empty file": ("d.json", "", "not readable as JSON"),
    "broken JSON, with the place": ("d.json", '{"data":\n [}', "line 2 column 3"),
    "bytes": ("d.json", b"\xff\xfe\x00", "not readable as JSON"),
    "a web page": ("d.json", "<html></html>", "not readable as JSON"),
    "nested too deep": ("d.json", "[" * 100_000, "not readable as JSON"),
    "not gzip": ("d.json.gz", squad(), "not readable as JSON"),
    "gzip cut": (
        "d.json.gz",
        gzip.compress(squad().encode(), mtime=0)[:-9],
        "not readable as JSON",
    ),
    "a number": ("d.json", "7", "expected an object"),
    "a list": ("d.json", "[]", "holds no question"),
    "no data": ("d.json", "{}", "no 'context'; the fields are: none"),
    "data of another type": ("d.json", '{"data": {}}', "the fields are: 'data'"),
    "no question": ("d.json", '{"data": []}', "holds no question"),
    "an article that is null": ("d.json", '{"data": [null]}', "row 1: expected an object"),
    "no paragraphs": ("d.json", '{"data": [{}]}', "row 1: no 'context'"),
    "no context": ("d.json", '{"data": [{"paragraphs": [{}]}]}', "paragraph 0: no 'context'"),
    "an id that is a list": ("d.json", squad(id=[7]), "'id' is list"),
    "an id that is true": ("d.json", squad(id=True), "'id' is bool"),
    "a question that is a list": ("d.json", squad(question=[]), "'question' is list"),
    "answers that are text": ("d.json", squad(answers="lamp"), "(q): 'answers' is str"),
    "an answer that is text": ("d.json", squad(answers=["lamp"]), "expected an object"),
    "an answer without a start": (
        "d.json",
        squad(answers=[{"text": "lamp"}]).replace("a lamp", "a lamp, a lamp"),
        "has 'lamp' more than once",
    ),
    "a start that is text": (
        "d.json",
        squad(answers=[{"text": "lamp", "answer_start": "two"}]),
        "'answer_start' is not a whole number: 'two'",
    ),
    "a start that is true": (
        "d.json",
        squad(answers=[{"text": "lamp", "answer_start": True}]),
        "'answer_start' is not a whole number: True",
    ),
    "a start before the text": (
        "d.json",
        squad(answers=[{"text": "lamp", "answer_start": -4}]),
        "not at answer_start=-4",
    ),
    "a start beyond": (
        "d.json",
        squad(answers=[{"text": "lamp", "answer_start": 10**30}]),
        "not at answer_start=1000",
    ),
    "possible, without": ("d.json", squad(is_impossible=False, answers=[]), "is_impossible=False"),
    "CSV of bytes": ("d.csv", b"\xff\xfe\x00", "not readable as csv"),
    "CSV without a header": ("d.csv", "Who?,a lamp,lamp,2\nWho?,a lamp,lamp,2\n", "no 'context'"),
    "CSV with too few fields": ("d.csv", CSV + "Who?\n", "the context is empty"),
    "CSV with a quote left open": ("d.csv", CSV + 'Who?,"a lamp', "not readable as csv"),
    "CSV with NUL": ("d.csv", CSV + "Who?,a lamp\0,lamp,3\n", NUL),
    "CSV with too many fields": ("d.csv", CSV + "Who?,a lamp,lamp,2,3,4\n", "row 1: more fields"),
    "CSV with a start below 0": ("d.csv", CSV + "Who?,a lamp,lamp,-1\n", "answer_start=-1"),
    "CSV with half a start": ("d.csv", CSV + "Who?,a lamp,lamp,2.5\n", "not a whole number"),
    "CSV with a start of 5,000 digits": (
        "d.csv",
        CSV + f"a,b,b,{'9' * 5000}\n",
        "not a whole number",
    ),
    "JSON lines that are not": ("d.jsonl", "a\nb\n", "row 1: not readable as JSON"),
    "a JSON line too deep": ("d.jsonl", "[" * 100_000, "row 1: not readable as JSON"),
    "JSON lines with one bad": ("d.jsonl", LINE + "\n{\n" + LINE, "row 2: not readable as JSON"),
    "JSON lines of lists": ("d.jsonl", "[1]\n", "row 1: expected an object"),
    "JSON lines of lists for text": (
        "d.jsonl",
        '{"context": [1], "question": 1}\n',
        "'context' is list",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_data_file_is_one_line(tmp_path, monkeypatch, capsys, name):
    file, content, named = FILES[name]
    write(file, content)(tmp_path)
    assert named in one_line(["show", tmp_path / file], monkeypatch, capsys)


FIELDS = ["data", "paragraphs", "context", "qas", "id", "question"]
FIELDS += ["answers", "text", "answer_start", "is_impossible"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)
    ),
    max_leaves=30,
)
QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUIET
@given(JSON, st.integers(0, 3))
def test_no_json_breaks_the_reader(tmp_path, value, wrapped):
    """Random values, also where a paragraph, an article or a question is expected."""
    for shell in ("qas", "paragraphs", "data")[3 - wrapped :]:
        value = {shell: [value], "context": "a lamp"}
    for name, content in (("d.json", json.dumps(value)), ("d.jsonl", json.dumps(value) + "\n")):
        (tmp_path / name).write_text(content, encoding="utf-8")
        try:
            examples = load_squad(tmp_path / name, skipped=[])
        except minibert.DataError:
            continue
        for example in examples:
            for answer in example.answers:
                assert example.context[answer.char_start : answer.char_end] == answer.text


@QUIET
@given(
    st.binary(max_size=200),
    st.sampled_from(["d.json", "d.json.gz", "d.csv", "d.tsv", "d.jsonl", "d.csv.gz"]),
)
def test_no_bytes_break_the_reader(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(minibert.DataError):
        load_squad(tmp_path / name)
