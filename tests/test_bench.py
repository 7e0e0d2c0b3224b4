"""The bench counts correctly, and all its engines do the same work."""

import random
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import minibert
from minibert.bench import answering, engines, parts, row, serving, turns, web
from minibert.bench import training as bench
from minibert.config import BertConfig
from minibert.errors import InputError
from minibert.qa import BertForQuestionAnswering

NOTES = str(Path(__file__).parent / "data" / "field_notes.json")


def test_flops_are_those_that_torch_counts():
    """One window, forward and backward, without the head, because the bench does not count it."""
    from torch.utils.flop_counter import FlopCounterMode

    config = BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=40, max_position_embeddings=64, hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )  # fmt: skip
    model = BertForQuestionAnswering(config)
    ids = torch.randint(50, (1, 17))
    with FlopCounterMode(display=False) as counter:
        out = model(ids)
        (out.start_logits.sum() + out.end_logits.sum()).backward()
    head = 3 * 2 * 17 * 24 * 2
    assert counter.get_total_flops() - head == pytest.approx(3 * turns.forward_flops(config, 17))


def test_real_batches_are_an_epoch_s(tiny, squad):
    batches, _ = bench.real_batches(str(tiny), str(squad), seed=0)
    assert [len(batch) for batch in batches] == [bench.BATCH] * bench.BATCHES
    windows = [window for batch in batches for window in batch]
    # windows of similar length: a batch needs little padding
    padded = sum(len(batch) * max(map(len, batch)) for batch in batches)
    assert sum(map(len, windows)) > 0.9 * padded
    # as long as the windows of the whole data set
    examples = random.Random(1).sample(minibert.load_squad(squad, "train"), 2000)
    tokenizer = minibert.Tokenizer.from_pretrained(tiny)
    everywhere = list(map(len, minibert.prepare_train_features(examples, tokenizer)))
    mean = sum(everywhere) / len(everywhere)
    assert sum(map(len, windows)) / len(windows) == pytest.approx(mean, rel=0.1)
    assert windows[0].start_position is not None


@pytest.mark.parametrize("name", [name for name in bench.ENGINES if name != "minibert"])
def test_the_reference_is_trained(monkeypatch, transformers, tiny, name):
    steps = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_, **__: steps.append(1))
    batches, pad_id = bench.real_batches(str(tiny), NOTES, seed=0)
    bench.ENGINES[name](str(tiny), pad_id)(batches)
    assert len(steps) == len(batches)


def engine_of(name, tiny, field_notes):
    return answering.ENGINES[name][1](answering.Setup(str(tiny), turns.CPU, field_notes[-4:]))


def test_another_engine_takes_the_place_of_the_model(tiny, field_notes):
    """The reader calls it as it calls our model, so the answers are the plain model's."""
    model = BertForQuestionAnswering.from_pretrained(tiny, "eager")

    def run(arrays):
        out = model(*(torch.as_tensor(arrays[name]) for name in engines.NAMES))
        return out.start_logits.detach().numpy(), out.end_logits.detach().numpy()

    plain = minibert.QuestionAnswerer(model, minibert.Tokenizer.from_pretrained(tiny))
    other = engines.answerer(str(tiny), model, run)
    asked = [(example.question, example.context) for example in field_notes[:20]]
    assert list(other.answer_many(asked)) == list(plain.answer_many(asked))


@pytest.mark.parametrize("name", answering.ENGINES)
def test_all_engines_answer(tiny, field_notes, name):
    """Every question gets an answer from its context, and the forward passes are timed."""
    for package in answering.NEEDS.get(name, answering.NEEDS[name.partition(",")[0]]):
        pytest.importorskip(package, reason=f"the engine needs: pip install {package}")
    if name not in answering.engines_on(turns.CPU):
        pytest.skip("this CPU has no such instructions")
    engine = engine_of(name, tiny, field_notes)
    asked = field_notes[:8]
    answers = engine.answer(asked)
    assert answers.keys() == {example.id for example in asked} and engine.forward_seconds
    if "blog post" not in name:
        assert all(answers[example.id] in example.context for example in asked)


def test_the_reference_run_well_answers_as_we_do(transformers, tiny, field_notes):
    """Both do the same work. One window per context, because they compare windows differently."""
    asked = [replace(example, context=example.context[:200]) for example in field_notes[:20]]
    ours, theirs = (
        engine_of(f"{name}, float32", tiny, field_notes).answer(asked)
        for name in ("minibert", "transformers")
    )
    assert ours == theirs


class InThisProcess:
    """The part of `one_process` that the bench uses."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        outcome = function(*arguments)
        return SimpleNamespace(result=lambda: outcome)


def stay_in_this_process(monkeypatch):
    monkeypatch.setattr(turns, "one_process", InThisProcess)
    monkeypatch.setattr(turns, "LOADED", {})
    monkeypatch.setattr(turns, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(turns, "PAUSE", 0)


def test_bench_train(monkeypatch, transformers, tiny):
    """All figures. The test stays in one process; the command starts others."""
    stay_in_this_process(monkeypatch)
    report = bench.bench_train(str(tiny), NOTES, turns=1)
    for memory in turns.MEMORY:
        engines = report[memory]["engines"]
        assert engines.keys() == bench.ENGINES.keys() and engines["minibert"]["ratio"] == 1
        for figures in engines.values():
            assert figures["tokens_per_second"] > figures["windows_per_second"] > 0
            assert figures["gflops"] > 0 and figures["peak_memory_mb"] != 0
    assert "windows/s" in turns.table_of(report)


def test_bench_answer(monkeypatch, transformers, tiny):
    """All figures. The test stays in one process; the command starts others."""
    stay_in_this_process(monkeypatch)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    few_engines(monkeypatch, "minibert", "transformers")
    report = answering.bench_answer(str(tiny), NOTES, turns=2, device="cpu", questions=5)
    for memory in turns.MEMORY:
        engines = report[memory]["engines"]
        for figures in engines.values():
            assert all(value is None or value >= 0 for value in figures.values())
            assert figures["forward_questions_per_second"] > figures["questions_per_second"]
        assert engines[report["best"]]["ratio"] == 1
        assert engines["minibert, float32"]["ratio_same_precision"] == 1
        assert "minibert is" in turns.table_of(report)
    assert all(f["ratio_to_tuned"] == 1 for f in report["tuned"]["engines"].values())
    named = {"pairs_per_second", "pairs_f1", "one_ms", "one_f1", "peak_memory_mb"}
    assert all(named <= figures.keys() for figures in report["untuned"]["engines"].values())
    header, line, one = row.row_of(report).splitlines()
    assert header.count("|") == line.count("|") == one.count("|") == 6
    for text in (report["machine"], torch.__version__, report["date"], "ONEDNN_MAX_CPU_ISA=ALL"):
        assert text in one
    assert "float32: " in one and "not installed" in one
    with pytest.raises(minibert.InputError, match="fewer than 1000 questions"):
        answering.bench_answer(str(tiny), NOTES, questions=1000)


def few_engines(monkeypatch, *libraries):
    """Without the engines that take seconds to load."""
    dtypes = {
        name: dtype
        for name, dtype in answering.engines_on(turns.CPU).items()
        if name.startswith(libraries)
    }
    monkeypatch.setattr(answering, "engines_on", lambda device: dtypes)


def test_bench_answer_keeps_its_time(monkeypatch, tiny):
    """It asks as many questions as fit, but always some."""
    stay_in_this_process(monkeypatch)
    few_engines(monkeypatch, "minibert")
    monkeypatch.setattr(turns, "matmul_peak", lambda *_: 1e9)
    monkeypatch.setattr(answering, "FEWEST", 2)
    report = answering.bench_answer(str(tiny), NOTES, turns=1, minutes=0, device="cpu")
    assert report["questions"] == 2
    monkeypatch.setattr(answering, "MOST", 6)
    report = answering.bench_answer(str(tiny), NOTES, turns=1, minutes=60, device="cpu")
    assert report["questions"] == 6


def test_bench_answer_asks_what_has_an_answer():
    """The engines are not asked whether there is an answer, so they could only be wrong."""
    asked, samples = answering.questions_of(NOTES, None)
    answerable = [e for e in minibert.load_squad(NOTES) if not e.is_impossible]
    assert {e.id for e in asked["questions"]} == {e.id for e in answerable}
    assert not any(e.is_impossible for e in (*asked["pairs"], *samples))
    assert asked == answering.questions_of(NOTES, None)[0]


def test_a_short_pair_is_about_the_sentence_that_answers_it(field_notes):
    context = "Ada lit the lamp. Bo rang the bell at 9.30 p.m. and left! Who saw him?"
    answers = (minibert.GoldAnswer("the bell", 26), minibert.GoldAnswer("Ada", 0))
    example = minibert.Example("a", "What did Bo ring?", context, answers)
    pair = answering.short_pair(example)
    assert pair.context == "Bo rang the bell at 9.30 p.m." and pair.question == example.question
    assert pair.answers == (minibert.GoldAnswer("the bell", 8),)
    assert answering.short_pair(replace(example, context=context[:34] + " again" * 40)) is None
    pairs = [answering.short_pair(e) for e in field_notes if not e.is_impossible]
    assert sum(pair is not None for pair in pairs) > len(pairs) / 2
    for pair in filter(None, pairs):
        assert pair.answers and len(pair.context) <= answering.SHORT
        for gold in pair.answers:
            assert pair.context[gold.char_start : gold.char_end] == gold.text


@pytest.mark.parametrize(
    ("capability", "floats"),
    [((8, 0), {"float32", "bfloat16", "float16"}), ((7, 5), {"float32", "float16"})],
)
def test_a_gpu_has_two_engines(monkeypatch, transformers, capability, floats):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    names = answering.engines_on(torch.device("cuda"))
    expected = {f"{name}, {kind}" for name in ("minibert", "transformers") for kind in floats}
    assert names.keys() == expected | {"transformers, the blog post's way"}


def test_a_gpu_is_waited_for(monkeypatch):
    """Kernels of a GPU run after the call that starts them."""
    waited = []
    gpu = SimpleNamespace(synchronize=lambda: waited.append(1))
    monkeypatch.setattr(torch, "get_device_module", lambda device: gpu)
    model = torch.nn.Linear(1, 1)
    engine = answering.watched(model, torch.device("cuda"), lambda examples: {})
    model(torch.ones(1))
    assert waited == [1] and len(engine.forward_seconds) == 1
    turns.synchronize(turns.CPU)
    assert waited == [1]


def test_without_resource_the_memory_is_left_out(monkeypatch):
    """As on Windows. The bench must not fail there after minutes of timing."""
    assert turns.peak_memory_mb() > 1
    monkeypatch.setitem(sys.modules, "resource", None)
    assert turns.peak_memory_mb() is None
    report = {"peak_gflops": {}, "engines": {"minibert": {"ratio": 1.0, "peak_memory_mb": None}}}
    both = {"tuned": report, "untuned": report} | turns.measured_on()
    assert "minibert is" in turns.table_of(both)


def test_bench_parts(monkeypatch, transformers, tiny):
    """All figures except the start, which needs processes. The blog post's labels equal ours."""
    monkeypatch.setattr(parts, "cold_start", lambda source, turns: 1.0)
    report = parts.bench_parts(str(tiny), NOTES, turns=1)
    assert len(report) == 3 and all(figure > 0 for figure in report.values())
    gold = minibert.GoldAnswer("lamp", 4)
    assert parts.scan([(0, 0), (0, 3), (4, 8), (9, 11), (0, 0)], [None, 1, 1, 1, None], gold) == (
        2,
        2,
    )


def test_bench_serve(tiny):
    """Two servers, and every kind of client."""
    pytest.importorskip("uvicorn", reason="pip install -e '.[serve]'")
    report = serving.bench_serve(str(tiny), NOTES, turns=1, requests=4)
    assert len(report) == 6 and all(figure > 0 for figure in report.values())


def test_bench_serve_counts_only_answers():
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match="the server answered 501"):
            serving.ask_all(f"http://127.0.0.1:{refusing.server_port}/", ["{}"])
        refusing.shutdown()


def test_the_model_in_the_page_is_measured(tiny, monkeypatch):
    pytest.importorskip("playwright", reason="a browser: pip install playwright")
    if shutil.which("chromium") is None:
        pytest.skip("a browser: apt-get install chromium")
    with pytest.raises(InputError, match=r"field_notes\.json: too small; "):
        web.bench_web(str(tiny), NOTES)
    for name, value in {"SHORT": 60, "LONG": 96, "MANY": 2, "WORDS": 100}.items():
        monkeypatch.setattr(web, name, value)
    monkeypatch.setattr(turns, "PAUSE", 0)
    # a thread of its own, because playwright refuses a second driver in the thread of the tests
    with ThreadPoolExecutor(1) as thread:
        report = thread.submit(web.bench_web, str(tiny), NOTES, 1).result()
    for engine in ("WebAssembly", "plain JavaScript"):
        for part in ("start", "first window", "60 tokens", "96 tokens", "2 windows"):
            assert 0 < report.pop(f"minibert, {engine}: {part}") < 60
        if sys.platform == "linux":
            assert report.pop(f"minibert, {engine}: memory, MB") > 20
    assert report == {}
