"""`minibert export`: the ONNX file computes what the model computes, and its search is exact."""

import itertools
import json
import random
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import siblings
import tokenizers
import torch

import minibert
from minibert import BertForQuestionAnswering, QuestionAnswerer, Tokenizer
from minibert.batches import collate
from minibert.bench.engines import onnx_answerer, onnx_session
from minibert.cli import main
from minibert.errors import InputError
from minibert.export import folder, graph
from minibert.export.decoder import ILLEGAL, search
from minibert.export.folder import write_folder
from minibert.export.graph import Graph, save_graph
from minibert.features import prepare_features
from minibert.reader import BUNDLED

onnx = pytest.importorskip("onnx", reason="export needs: pip install onnx")
pytest.importorskip("onnxruntime", reason="reads the file: pip install onnxruntime")

NAMES = ("input_ids", "attention_mask", "token_type_ids")


def run(path, *tensors):
    session = onnx_session(path)
    names = [given.name for given in session.get_inputs()]
    return session.run(None, dict(zip(names, map(np.asarray, tensors), strict=False)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The bundled model in its four forms: (for_argmax, int8) -> folder."""
    home = tmp_path_factory.mktemp("exported")
    forms = {form: home / f"{form}" for form in itertools.product((False, True), repeat=2)}
    for (for_argmax, int8), path in forms.items():
        write_folder(path, BUNDLED, None, for_argmax, int8)
    return forms


def batch_of(tokenizer, sizes):
    contexts = ["At dusk the keeper, Ada, lit the lamp. " * size for size in sizes]
    asked = [minibert.Example(c, "Who lit the lamp?", c) for c in contexts]
    return collate(prepare_features(asked, tokenizer), tokenizer.pad_id)


@pytest.mark.parametrize("model_type", siblings.FAMILIES)
def test_the_file_gives_the_logits_of_every_family(transformers, tmp_path, model_type):
    """With the inputs of the family; batch and length are free."""
    siblings.checkpoint(transformers, model_type, tmp_path / "model")
    for for_argmax in (False, True):
        write_folder(tmp_path / f"{for_argmax}", tmp_path / "model", None, for_argmax)
    plain, searched = (tmp_path / f"{form}" / "model.onnx" for form in (False, True))
    model = BertForQuestionAnswering.from_pretrained(tmp_path / "model")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "False")
    names = [given.name for given in onnx_session(plain).get_inputs()]
    assert names == list(NAMES[: 2 + tokenizer.context_segment])
    assert [given.name for given in onnx_session(searched).get_inputs()] == list(NAMES[:2])
    for sizes in ((1,), (1, 4, 2), (6, 5)):
        ids, mask, segments, *_ = batch_of(tokenizer, sizes)
        with torch.inference_mode():
            out = model(ids, mask, segments)
        real = mask.numpy() == 1
        expected = [logits.numpy() for logits in (out.start_logits, out.end_logits)]
        for ours, theirs in zip(expected, run(plain, ids, mask, segments), strict=True):
            assert theirs.shape == ours.shape
            assert np.abs(theirs - ours)[real].max() < 1e-4
        # the search finds the context by its separators, and chooses as `best_spans` does
        for row, (start, end) in enumerate(zip(*run(searched, ids, mask), strict=True)):
            place = segments[row] == 1 if tokenizer.context_segment else after(ids[row], tokenizer)
            legal = (place & (mask[row] == 1) & (ids[row] != tokenizer.sep_id)).numpy()
            best = brute_force(*(logits[row] for logits in expected), legal, 30)
            assert (start.argmax(), end.argmax()) == best
            assert (start[~legal] == ILLEGAL).all() and (end[~legal] == ILLEGAL).all()


def after(ids, tokenizer):
    """The tokens after the last separator between question and context."""
    places = (ids == tokenizer.sep_id).nonzero().flatten()
    return torch.arange(len(ids)) > places[tokenizer.separators - 1]


def brute_force(start, end, legal, longest):
    """The best legal span: the highest sum, then the earliest start, then the shortest."""
    places = np.flatnonzero(legal).tolist()
    spans = [(i, j) for i in places for j in places if i <= j < i + longest]
    return max(spans, key=lambda s: (start[s[0]] + end[s[1]], -s[0], -s[1]), default=(0, 0))


@pytest.mark.parametrize("longest", [1, 5, 30])
def test_two_argmaxes_give_the_best_legal_span(tmp_path, longest):
    """Compared with all spans. Whole numbers as logits make many ties; some rows have no text."""
    one = Graph(("start", "end", "legal"))
    legal = one.add("Greater", "legal", one.constant(0))
    numbers = [one.add("Cast", name, to=graph.FLOAT) for name in ("start", "end")]
    illegal = one.constant(ILLEGAL)
    search(one, legal, *(one.add("Where", legal, n, illegal) for n in numbers), longest)
    save_graph(one, tmp_path / "search.onnx")
    generator = np.random.default_rng(0)
    start, end = generator.integers(-3, 4, (2, 300, 23))
    share = np.linspace(0, 1, 300)[:, None]  # none of the first row, all of the last one
    legal = (generator.random((300, 23)) < share).astype(np.int64)
    ties = 0
    outputs = run(tmp_path / "search.onnx", start, end, legal)
    for k, (starts, ends) in enumerate(zip(*outputs, strict=True)):
        best = brute_force(start[k], end[k], legal[k] > 0, longest)
        assert (starts.argmax(), ends.argmax()) == best
        assert (starts > ILLEGAL).any() == (legal[k] > 0).any()
        ties += (start[k] + end[k] == start[k][best[0]] + end[k][best[1]]).sum() > 1
    assert ties > 20


@pytest.mark.parametrize("int8", [False, True])
def test_texts_without_tokens_and_padding_change_nothing(exported, int8):
    """Padding and the other texts of a batch change only the last bits, which rarely move a number
    to the next integer. Without a text, the answer is the place of [CLS]."""
    tokenizer = Tokenizer.from_pretrained(exported[True, False])
    ids, mask, *_ = batch_of(tokenizer, (2, 9))
    path = exported[True, int8] / "model.onnx"
    length = int(mask[0].sum())
    alone = run(path, ids[:1, :length], mask[:1, :length])
    for padded, short in zip(run(path, ids, mask), alone, strict=True):
        assert np.abs(padded[0, :length] - short[0]).max() < (0.05 if int8 else 1e-4)
        assert (padded[0, length:] == ILLEGAL).all()
    for empty in ([101, 2040, 102, 102], [101, 102]):
        start, end = run(path, [empty], [[1] * len(empty)])
        assert start.argmax() == end.argmax() == 0


def test_a_softmax_of_the_outputs_is_near_the_score(exported):
    """The README of the folder says so."""
    qa = QuestionAnswerer.from_pretrained(precision="fp32")
    qa.calibration = minibert.Calibration()
    tokenizer = Tokenizer.from_pretrained(exported[True, False])
    ids, mask, *_ = batch_of(tokenizer, (1,))
    sides = run(exported[True, False] / "model.onnx", ids, mask)
    start, end = (np.exp(side[0]) / np.exp(side[0]).sum() for side in sides)
    answer = qa("Who lit the lamp?", "At dusk the keeper, Ada, lit the lamp. ")
    assert start.max() * end.max() == pytest.approx(answer.score, abs=0.05)


def test_a_folder_has_all_that_other_programs_read(exported, monkeypatch, capsys):
    """The file follows the format's rules, and the README's example prints the answer."""
    for (for_argmax, int8), path in exported.items():
        assert {file.name for file in path.iterdir()} == {
            *("model.onnx", "config.json", "README.md"),
            *("tokenizer.json", "tokenizer_config.json", "vocab.txt"),
        }
        onnx.checker.check_model(path / "model.onnx", full_check=True)
        model = onnx.load(path / "model.onnx")
        assert (model.ir_version, model.opset_import[0].version) == (8, 17)
        assert [o.name for o in model.graph.output] == ["start_logits", "end_logits"]
        settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert settings["model_max_length"] == 512
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        assert config["model_type"] == "bert" and config["minibert"]["temperature"] > 1
        text = (path / "README.md").read_text(encoding="utf-8")
        assert ("8-bit integers" in text) == int8 and ("token_type_ids" in text) != for_argmax
        [example] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        monkeypatch.chdir(path)
        exec(compile(example, "README.md", "exec"), {})
        assert capsys.readouterr().out == "Ada\n"


def test_integers_make_the_file_a_quarter_as_large(exported):
    sizes = {form: (path / "model.onnx").stat().st_size for form, path in exported.items()}
    assert sizes[False, True] < 0.27 * sizes[False, False]
    ids, mask, segments, *_ = batch_of(Tokenizer.from_pretrained(exported[False, True]), (3,))
    exact, near = (run(exported[False, i] / "model.onnx", ids, mask, segments) for i in (0, 1))
    for one, other in zip(exact, near, strict=True):
        assert 0.01 < np.abs(one - other).max() < 3


def test_constants_that_are_too_large_for_one_file_are_in_a_second(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "LARGEST_FILE", 1000)
    write_folder(tmp_path / "large", tiny)
    monkeypatch.undo()
    write_folder(tmp_path / "small", tiny)
    large, small = (tmp_path / name / "model.onnx" for name in ("large", "small"))
    assert large.with_name("model.onnx_data").stat().st_size > large.stat().st_size
    assert small.stat().st_size > 50_000 and not small.with_name("model.onnx_data").exists()
    batch = batch_of(Tokenizer.from_pretrained(tiny), (2,))[:3]
    for one, other in zip(run(large, *batch), run(small, *batch), strict=True):
        assert np.array_equal(one, other)


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["minibert", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code, capsys.readouterr().err


def test_the_command(monkeypatch, capsys, tiny, tmp_path):
    new = tmp_path / "deep" / "new"
    code, err = command(monkeypatch, capsys, tiny, "--output", new, "--for-argmax", "--int8")
    assert (code, err) == (0, f"the model is {new}\n")
    assert len(onnx_session(new / "model.onnx").get_inputs()) == 2
    for arguments, message in (
        ((tiny, "--output", new), "exists already"),
        ((tmp_path, "--output", tmp_path / "b"), "no config.json in this folder"),
        ((tiny, "--output", new / "README.md" / "b"), "cannot be a folder"),
    ):
        code, err = command(monkeypatch, capsys, *arguments)
        assert code == 2 and err.count("\n") == 1 and message in err
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, err = command(monkeypatch, capsys, tiny, "--output", tmp_path / "c")
    assert code == 2 and err.endswith("export needs: pip install 'minibert-qa[export]'\n")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_a_failed_export_leaves_nothing(monkeypatch, tiny, tmp_path):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "save_graph", fail)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        write_folder(tmp_path / "new", tiny)
    assert not list(tmp_path.iterdir())


def f1(predictions, examples):
    return minibert.squad_metrics(predictions, examples)["f1"]


@pytest.mark.slow
def test_f1_on_500_questions(squad, exported):
    """Through minibert's windows and search F1 is equal. With ids and mask alone, a program that
    takes two argmaxes reaches 82. 8-bit integers cost at most 0.3.
    """
    examples = random.Random(0).sample(minibert.load_squad(squad, "validation"), 500)
    asked = [(example.question, example.context) for example in examples]
    ours = QuestionAnswerer.from_pretrained(precision="fp32", device="cpu")
    scores = []
    for qa in (
        ours,
        onnx_answerer(str(BUNDLED), ours.model, exported[False, False] / "model.onnx"),
        onnx_answerer(str(BUNDLED), ours.model, exported[False, True] / "model.onnx"),
    ):
        texts = [answer.answer for answer in qa.answer_many(asked)]
        scores.append(f1(dict(zip((e.id for e in examples), texts, strict=True)), examples))
    assert scores[0] == scores[1] > 83 and scores[2] > scores[0] - 0.3

    pairs = tokenizers.Tokenizer.from_file(str(exported[True, False] / "tokenizer.json"))
    pairs.enable_truncation(512, strategy="only_second")
    session = onnx_session(exported[True, False] / "model.onnx")

    def two_argmaxes(example):
        pair = pairs.encode(example.question, example.context)
        inputs = {"input_ids": pair.ids, "attention_mask": pair.attention_mask}
        rows = {name: np.array([values]) for name, values in inputs.items()}
        start, end = (side[0].argmax() for side in session.run(None, rows))
        return example.context[pair.offsets[start][0] : pair.offsets[end][1]]

    with ThreadPoolExecutor(2) as threads:
        texts = list(threads.map(two_argmaxes, examples))
    assert f1(dict(zip((e.id for e in examples), texts, strict=True)), examples) > 82
