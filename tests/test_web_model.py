"""The model in JavaScript (`minibert/web`), in a real browser, compared with Python's float32."""

import base64
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import minibert
from minibert.bench.web import served, write_engine
from minibert.config import BertConfig
from minibert.errors import PretrainedError
from minibert.explain.eight_bit import eight_bit, eight_bit_file
from minibert.explain.explanation import cut_to_context
from minibert.explain.page import FOLDER
from minibert.explain.site import ENGINE
from minibert.families import FAMILIES
from minibert.features import Feature
from minibert.qa import BertForQuestionAnswering
from minibert.reader import BUNDLED
from minibert.spans import best_spans

REFERENCE = Path(__file__).parent / "reference"
FAMILY_MODELS = ("tiny", "distilbert", "electra")
KERNELS = pytest.mark.parametrize("plain", [False, True], ids=["WebAssembly", "plain loop"])

# Helpers of the tests in the page. Large arrays are returned as text, which is much faster.
HELPERS = """
const plainArrays = (_, value) => ArrayBuffer.isView(value) ? Array.from(value) : value;
const asText = (value) => JSON.stringify(value, plainArrays);
const bytesOf = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer;
async function open(folder, options, workers = 1) {
  const file = (name) => fetch(`${folder}/${name}`);
  const config = await (await file("config.json")).json();
  const weights = await (await file("model.safetensors")).arrayBuffer();
  window.engine?.stop();
  window.engine = await startEngine({config, weights, ...options}, workers);
}
"""


class Web:
    """A page with the engine's scripts, from a server."""

    def __init__(self, page: Any, root: Path) -> None:
        self.page, self.root = page, root

    def model(self, folder: Path) -> str:
        """Put a model's folder on the server; returns its path there."""
        target = self.root / f"model{len(list(self.root.iterdir()))}"
        target.symlink_to(folder.resolve())
        return target.name

    def open(self, folder: Path, workers: int = 1, **options: Any) -> None:
        self.page.evaluate(
            "([folder, options, workers]) => open(folder, options, workers)",
            [self.model(folder), options, workers],
        )

    def call(self, code: str, *values: Any) -> Any:
        """What a JavaScript expression gives; `values` is the array of its inputs."""
        return json.loads(
            self.page.evaluate(f"async (values) => asText(await ({code}))", list(values))
        )

    def read(self, features: Sequence[Feature]) -> Any:
        """[layer][window] -> {start, end}"""
        return self.call("engine.read(values[0])", [given(feature) for feature in features])


def given(feature: Feature) -> dict[str, list[int]]:
    return {"inputIds": feature.input_ids, "tokenTypeIds": feature.token_type_ids}


@pytest.fixture(scope="module")
def web(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    root = tmp_path_factory.mktemp("site")
    write_engine(root)
    context = browser.new_context()
    with served(root) as address:
        page = context.new_page()
        page.goto(address)
        page.add_script_tag(content=HELPERS)
        yield Web(page, root)
    context.close()


def windows(folder: Path, count: int, max_length: int = 96) -> list[Feature]:
    """Windows of different lengths, from the project's own paragraphs."""
    examples = minibert.load_squad(Path(__file__).parent / "data" / "field_notes.json")
    tokenizer = minibert.Tokenizer.from_pretrained(folder)
    features = minibert.prepare_features(examples, tokenizer, max_length, 20)
    return random.Random(0).sample(features, count)


@torch.inference_mode()
def in_python(model: BertForQuestionAnswering, feature: Feature) -> Any:
    """The output for one window, and [layer] -> start and end logits, (L + 1, 2, T)."""
    ids, segments = (torch.tensor([row]) for row in given(feature).values())
    output = model(ids, None, segments, output_attentions=True)
    logits = [torch.cat(model.head(states)) for states in output.hidden_states]
    return output, torch.stack(logits).numpy()


def assert_logits(model: Any, features: Sequence[Feature], read: Any) -> None:
    assert len(read) == model.config.num_hidden_layers + 1
    for window, feature in enumerate(features):
        _, logits = in_python(model, feature)
        sides = [[layer[window]["start"], layer[window]["end"]] for layer in read]
        assert np.abs(np.array(sides) - logits).max() < 1e-3


def assert_equal(web: Web, model: BertForQuestionAnswering, features: Sequence[Feature]) -> None:
    """Every number that the engine can give, for these windows."""
    assert_logits(model, features, web.read(features))
    feature = features[0]
    output, _ = in_python(model, feature)
    states = web.call("engine.hiddenStates(values[0])", given(feature))
    wanted = torch.stack(output.hidden_states)[:, 0].flatten(1).numpy()
    assert np.abs(np.array(states) - wanted).max() < 1e-3
    rows = [0, 3, len(feature) - 1]
    attentions = web.call("engine.attentions(values[0], values[1])", given(feature), rows)
    wanted = torch.stack(output.attentions)[:, 0, :, rows].flatten(2).numpy()  # (L, N, R * T)
    assert np.abs(np.array(attentions) - wanted).max() < 1e-4


# --- the same numbers


@KERNELS
@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_every_number_equals_python_s(web, name, plain):
    folder = REFERENCE / name
    web.open(folder, plain=plain)
    assert web.call("engine.kernel") == ("JavaScript" if plain else "WebAssembly")
    assert_equal(web, BertForQuestionAnswering.from_pretrained(folder), windows(folder, 6))


@KERNELS
def test_the_bundled_model_s_numbers_equal_python_s(web, plain):
    web.open(BUNDLED, plain=plain)
    model = BertForQuestionAnswering.from_pretrained(BUNDLED)
    assert_equal(web, model, windows(BUNDLED, 1 if plain else 3))


@pytest.mark.slow
def test_a_hundred_windows_of_the_bundled_model(web, squad):
    """The logits of every layer; the states of four windows; ten windows also in the plain loop."""
    model = BertForQuestionAnswering.from_pretrained(BUNDLED)
    examples = random.Random(0).sample(minibert.load_squad(squad, "validation"), 100)
    tokenizer = minibert.Tokenizer.from_pretrained(BUNDLED)
    features = minibert.prepare_features(examples, tokenizer)[:100]
    assert max(map(len, features)) == 384
    web.open(BUNDLED, workers=2)
    assert_logits(model, features, web.read(features))
    for feature in features[:4]:
        states = web.call("engine.hiddenStates(values[0])", given(feature))
        wanted = torch.stack(in_python(model, feature)[0].hidden_states)[:, 0].flatten(1).numpy()
        assert np.abs(np.array(states) - wanted).max() < 1e-3
    web.open(BUNDLED, workers=2, plain=True)
    assert_logits(model, features[:10], web.read(features[:10]))


@KERNELS
@pytest.mark.parametrize("narrow", [None, 5])
def test_widths_that_are_no_multiples_of_8(web, tmp_path, plain, narrow):
    """The product computes 8 columns at once, so other widths need padding."""
    kind = "bert" if narrow is None else "electra"
    config = BertConfig(
        kind, vocab_size=600, hidden_size=21, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=30, max_position_embeddings=99, embedding_size=narrow,
        initializer_range=0.3,
    )  # fmt: skip
    BertForQuestionAnswering(config).save_pretrained(tmp_path)
    model = BertForQuestionAnswering.from_pretrained(tmp_path)
    web.open(tmp_path, plain=plain)
    assert_equal(web, model, windows(REFERENCE / "electra", 4, max_length=99))


@pytest.mark.parametrize("kernel", ["kernelModule(true)", "kernelModule(false)", "null"])
def test_the_product_alone(web, kernel):
    """The kernel with and without fused steps, and the plain loop (`null`)."""
    code = """
      const [T, K, N, bytes] = values, memory = new Memory(1e5, !bytes);
      if (bytes) {
        const shared = new WebAssembly.Memory({initial: 7});
        const imports = {page: {memory: shared}};
        const instance = new WebAssembly.Instance(new WebAssembly.Module(bytes), imports);
        memory.floats = new Float32Array(shared.buffer);
        memory.multiply = instance.exports.product;
      }
      const fill = (array, step) => array.forEach((_, i) => { array[i] = Math.sin(step * i); });
      const x = memory.take(16 * 24), w = new Float32Array(N * K), b = new Float32Array(N);
      fill(x, 1); fill(w, 2); fill(b, 3);
      const weights = pack(memory.take(packedSize(N, K)), w, N, K, K, 1, b);
      const out = memory.take(16 * padded(N));
      memory.product(x, padded(K), T, weights, out);
      return {x, w, b, out};
    """
    for T, K, N in ((1, 3, 2), (4, 8, 8), (9, 24, 17), (16, 17, 33)):
        inputs = f"[{T}, {K}, {N}, {kernel}]"
        out = web.call(f"(() => {{ const values = {inputs}; {code} }})()")
        width = -(-K // 8) * 8
        x = np.array(out["x"])[: T * width].reshape(T, width)[:, :K]
        wanted = x @ np.array(out["w"]).reshape(N, K).T + np.array(out["b"])
        got = np.array(out["out"]).reshape(16, -1)[:T, :N]
        assert np.abs(got - wanted).max() < 1e-5


def test_gelu_and_softmax_equal_torch_s(web):
    x = torch.cat([torch.linspace(-12, 12, 2001), torch.tensor([0.0, -0.0, 1e-30, -80, 80])])
    ours = web.call("gelu(Float32Array.from(values[0]))", x.tolist())
    assert np.abs(np.array(ours) - torch.nn.functional.gelu(x).numpy()).max() < 1e-6
    scores = 30 * torch.randn(5, 5)
    padded = torch.nn.functional.pad(scores, (0, 3)).flatten().tolist()
    ours = web.call("softmax(Float32Array.from(values[0]), 5, 0.5)", padded)
    wanted = (scores / 2).softmax(-1).numpy()
    assert np.abs(np.array(ours).reshape(5, 8)[:, :5] - wanted).max() < 1e-6


def test_the_parts_of_an_embedding(web):
    for name in FAMILY_MODELS:
        folder = REFERENCE / name
        web.open(folder)
        (feature,) = windows(folder, 1)
        parts = web.call("engine.embeddingParts(values[0])", given(feature))
        model = BertForQuestionAnswering.from_pretrained(folder)
        embeddings = model.bert.embeddings
        ids, segments = map(torch.tensor, given(feature).values())
        assert parts["word"] == embeddings.word.weight[ids].flatten().tolist()
        assert parts["position"] == embeddings.position.weight[: len(feature)].flatten().tolist()
        if name == "distilbert":
            assert parts["segment"] is None
        else:
            assert parts["segment"] == embeddings.token_type.weight[segments].flatten().tolist()


# --- the files


def test_the_tables_are_python_s(web):
    families = web.call("FAMILIES")
    assert list(families) == ["bert", "distilbert", "electra"]
    for name, table in families.items():
        family = FAMILIES[name]
        assert table["keys"] == family.keys and table["prefix"] == family.prefix
        assert table["defaults"] == family.defaults
        names = {ours: theirs for ours, theirs in family.names.items() if theirs is not None}
        assert table["names"] == {n: t for n, t in names.items() if "dropout" not in n}
        for file in ({}, json.loads((REFERENCE / "tiny" / "config.json").read_text())):
            ours = web.call("readConfig(values[0])", {**file, "model_type": name})
            theirs = asdict(BertConfig.from_dict({**file, "model_type": name}))
            assert ours == {key: theirs[key] for key in ours} and len(ours) == 11
        with torch.device("meta"):
            config = BertConfig.from_dict({"model_type": name, "n_layers": 2})
            model = BertForQuestionAnswering(config)
        shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        assert web.call(f"shapesOf(readConfig({{model_type: '{name}', n_layers: 2}}))") == shapes


def copied(folder: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a model's folder with other tensors."""
    tensors = load_file(folder / "model.safetensors")
    shutil.copy(folder / "config.json", target)
    save_file(change(tensors) or tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_other_types(web, tmp_path, dtype):
    """Also the smallest float16 numbers, and both zeros, are read exactly."""
    special = torch.tensor([0.0, -0.0, 2**-24, -(2**-15), 6e-5, 1.5, -1.0, 3.0]).to(dtype)

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        changed = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        changed["bert.embeddings.word_embeddings.weight"][:, :8] = special
        return changed

    folder = copied(REFERENCE / "tiny", tmp_path, change)
    web.open(folder)
    features = windows(REFERENCE / "tiny", 1)
    word = web.call("engine.embeddingParts(values[0])", given(features[0]))["word"]
    assert word[:8] == special.float().tolist()
    assert_equal(web, BertForQuestionAnswering.from_pretrained(folder), features)


def test_weights_under_other_names(web, tmp_path):
    """TensorFlow's names of LayerNorm, a bare encoder, a wrapper, and what is ignored."""

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        old = {
            "module." + name.removeprefix("bert.").replace("Norm.weight", "Norm.gamma"): tensor
            for name, tensor in tensors.items()
        }
        return old | {
            "module.pooler.dense.weight": torch.ones(2, 2),
            "module.embeddings.position_ids": torch.arange(3),
        }

    folder = copied(REFERENCE / "tiny", tmp_path, change)
    web.open(folder)
    model = BertForQuestionAnswering.from_pretrained(REFERENCE / "tiny")
    assert_equal(web, model, windows(REFERENCE / "tiny", 2))


def message(web: Web, code: str, *values: Any) -> str:
    """The message of the error that the code throws: one sentence."""
    attempt = f"(async () => {{ {code} }})().then(() => '', (error) => error.message)"
    text: str = web.call(attempt, *values)
    assert text.endswith(".") and "\n" not in text and ". " not in text, text
    return text


def changed_file(change: Callable[[bytes], bytes]) -> str:
    data = (REFERENCE / "tiny" / "model.safetensors").read_bytes()
    return base64.b64encode(change(data)).decode()


BROKEN_FILES = {
    "is not a safetensors file": (
        lambda data: b"",
        lambda data: b"version https://git-lfs.github.com/spec/v1",
        lambda data: data[:8] + b"x" + data[9:],
        lambda data: b"\x02" + bytes(7) + b"[]",
    ),
    "is not complete: it has": (
        lambda data: data[:-1],
        lambda data: data[:50],
        lambda data: data[: len(data) // 2],
    ),
    "has a wrong header at": (
        lambda data: data.replace(b'"shape":[16]', b'"shape":[17]', 1),
        lambda data: data.replace(b'"shape":[16]', b'"shape":null', 1),
        lambda data: data.replace(b'"dtype":"F32"', b'"dtype":"F99"', 1),
    ),
}


@pytest.mark.parametrize("reason", BROKEN_FILES)
def test_a_broken_weights_file_gives_one_sentence(web, reason):
    for change in BROKEN_FILES[reason]:
        text = message(web, "readSafetensors(bytesOf(values[0]))", changed_file(change))
        assert text.startswith("model.safetensors ") and reason in text


def test_another_model_gives_one_sentence(web, tmp_path):
    assert 'model_type "roberta"' in message(web, "readConfig({model_type: 'roberta'})")
    for wrong in (
        {"hidden_size": 30}, {"num_hidden_layers": 0}, {"num_hidden_layers": 257},
        {"vocab_size": "many"},
        {"hidden_act": "gelu_new"}, {"position_embedding_type": "relative_key"},
        {"is_decoder": True}, {"layer_norm_eps": 1}, {"max_position_embeddings": 1.5},
    ):  # fmt: skip
        (name,) = wrong
        assert name in message(web, "readConfig(values[0])", wrong)
        with pytest.raises(PretrainedError, match=name):
            BertConfig.from_dict(wrong)
    assert "config.json" in message(web, "readConfig(null)")

    def fails(change: Callable[[dict[str, Any]], Any]) -> str:
        target = web.model(copied(REFERENCE / "tiny", tmp_path, change))
        return message(web, "await open(values[0], {})", target)

    key = "bert.encoder.layer.1.output.dense.bias"
    assert fails(lambda t: {k: t[k] for k in t if k != key}).endswith(
        "lacks bert.layers.1.feed_forward.contract.bias."
    )
    assert fails(lambda t: {"x": torch.ones(1)}).endswith(" and 55 more weights.")
    assert f'"{key}" with the shape 3' in fails(lambda t: t.update({key: torch.zeros(3)}))
    assert "not finite" in fails(lambda t: t.update({key: torch.full((16,), torch.inf)}))
    whole = torch.zeros(16, dtype=torch.int32)
    assert "type I32" in fails(lambda t: t.update({key: whole}))


# --- 8-bit weights


def eight_bit_folder(source: Path, target: Path) -> Path:
    shutil.copy(source / "config.json", target)
    model = BertForQuestionAnswering.from_pretrained(source)
    (target / "model.safetensors").write_bytes(eight_bit_file(model))
    return target


def rounded(model: BertForQuestionAnswering) -> BertForQuestionAnswering:
    """The model with its matrices rounded to 8 bits."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 2 and not name.startswith("head."):
                integers, scale = eight_bit(tensor)
                tensor.copy_(integers * scale[:, None])
    return model


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_8_bit_weights_are_read(web, tmp_path, name):
    source = REFERENCE / name
    web.open(eight_bit_folder(source, tmp_path))
    model = rounded(BertForQuestionAnswering.from_pretrained(source))
    assert_equal(web, model, windows(source, 3))


def test_8_bit_weights_are_half_as_large(tmp_path):
    size = (eight_bit_folder(BUNDLED, tmp_path) / "model.safetensors").stat().st_size
    assert size < 0.51 * (BUNDLED / "model.safetensors").stat().st_size
    assert size * 4 / 3 < 31e6  # as base64 in a page


@pytest.mark.slow
def test_answers_with_8_bit_weights(web, tmp_path, squad):
    """At least 97 % of the best spans equal those of float32. With 500 questions, 99.2 % did."""
    web.open(eight_bit_folder(BUNDLED, tmp_path), workers=2)
    model = BertForQuestionAnswering.from_pretrained(BUNDLED)
    tokenizer = minibert.Tokenizer.from_pretrained(BUNDLED)
    examples = random.Random(0).sample(minibert.load_squad(squad, "validation"), 100)
    features = [f for f in minibert.prepare_features(examples, tokenizer) if f.window_index == 0]
    last = web.read(features)[-1]
    same = 0
    for feature, sides in zip(features, last, strict=True):
        ours = [np.float32(sides["start"]), np.float32(sides["end"])]
        spans = [
            best_spans([cut_to_context(feature, *both)])[0]
            for both in (ours, in_python(model, feature)[1][-1])
        ]
        same += len({(span.token_start, span.token_end) for span in spans}) == 1
    assert same >= 0.97 * len(features)


# --- the workers


def test_windows_are_spread_over_workers(web):
    """In any order, but each result is in its place; the progress counts them."""
    folder = REFERENCE / "tiny"
    web.open(folder, workers=3)
    features = windows(folder, 12)
    code = """(async () => {
        const counts = [], logits = await engine.read(values[0], (...count) => counts.push(count));
        return [engine.workers, counts, logits];
    })()"""
    workers, counts, logits = web.call(code, [given(feature) for feature in features])
    assert workers == 3 and counts == [[done, 12] for done in range(13)]
    assert_logits(BertForQuestionAnswering.from_pretrained(folder), features, logits)
    sizes = web.call("[5e7, 1.5e8, 5e8].map((byteLength) => defaultWorkers({byteLength}))")
    assert sizes[1:] == [1, 1] and sizes[0] >= 1


def test_reading_can_be_stopped(web):
    folder = REFERENCE / "tiny"
    web.open(folder)
    features = [given(feature) for feature in windows(folder, 8)]
    code = """(async () => {
        const stop = new AbortController(), counts = [];
        const tell = (done) => { counts.push(done); if (done === 2) stop.abort("asked again"); };
        const reason = await engine.read(values[0], tell, stop.signal).catch((error) => error);
        return [reason, counts, (await engine.read([values[0][0]])).length];
    })()"""
    reason, counts, layers = web.call(code, features)
    assert reason == "asked again" and counts == [0, 1, 2] and layers == 4
    code = """(async () => {
        const reading = engine.read(values[0]).catch((error) => error.message);
        engine.stop();
        return reading;
    })()"""
    assert web.call(code, features) == "The model was replaced."


def test_a_model_that_is_too_large_gives_one_sentence(web):
    assert "needs 4000000 MB" in message(web, "new Memory(1e12)")


def test_too_many_tokens_give_one_sentence(web):
    web.open(REFERENCE / "tiny")
    feature = {"inputIds": [5] * 385, "tokenTypeIds": [0] * 385}
    text = message(web, "await engine.read([values[0]])", feature)
    assert text == "385 tokens, but this model has 384 positions."


@pytest.mark.parametrize("policy", ["'wasm-unsafe-eval'", ""])
def test_from_a_file_with_everything_inside(browser, tmp_path, policy):
    """Inline scripts, and a policy that forbids the rest. WebAssembly needs the policy's word."""
    folder = REFERENCE / "tiny"
    scripts = "".join(
        f"<script data-engine>{(FOLDER / name).read_text()}</script>" for name in ENGINE
    )
    (feature,) = windows(folder, 1)
    files = {
        "config": json.loads((folder / "config.json").read_text()),
        "weights": base64.b64encode((folder / "model.safetensors").read_bytes()).decode(),
        "feature": given(feature),
    }
    (tmp_path / "page.html").write_text(
        "<!doctype html><meta http-equiv=Content-Security-Policy content=\"default-src 'none'; "
        f"worker-src blob:; script-src 'unsafe-inline' {policy}\">"
        f"{scripts}<script>{HELPERS} const files = {json.dumps(files)};</script>"
    )
    context = browser.new_context()
    page = context.new_page()
    messages: list[str] = []
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())
    kernel, read = json.loads(
        page.evaluate("""async () => {
            const weights = bytesOf(files.weights);
            const engine = await startEngine({config: files.config, weights}, 2);
            return asText([engine.kernel, await engine.read([files.feature])]);
        }""")
    )
    context.close()
    assert messages == [] and kernel == ("WebAssembly" if policy else "JavaScript")
    assert_logits(BertForQuestionAnswering.from_pretrained(folder), [feature], read)


def test_a_browser_without_workers_gives_one_sentence(web):
    code = """
        const {Worker} = window;
        delete window.Worker;
        try { await startEngine({}, 1); } finally { window.Worker = Worker; }
    """
    assert "no workers" in message(web, code)
    assert "could not start" in message(web, "await startEngine({source: 'broken('}, 1)")


def test_the_scripts_do_not_share_names():
    """They have one scope in the worker, where a second function of a name replaces the first."""
    text = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in ENGINE)
    names = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", text, re.MULTILINE)
    assert len(names) == len(set(names)) > 30
