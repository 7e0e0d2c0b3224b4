"""The processor decides precision, attention and kernels. The answers are the same every way."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minibert import BertConfig, InputError, QuestionAnswerer
from minibert.fast import probe, processor

# Prints the precisions that may be chosen, and how the reader computes in each of them. It runs in
# its own process, because torch and oneDNN read their environment variables only once.
PROGRAM = """
import json, sys
from minibert import QuestionAnswerer
from minibert.fast.linear import FusedLayer
from minibert.fast.probe import candidates
def facts(precision):
    qa = QuestionAnswerer.from_pretrained(sys.argv[1], precision=precision)
    return {
        "dtype": str(next(qa.model.parameters()).dtype),
        "fused": any(isinstance(module, FusedLayer) for module in qa.model.modules()),
        "attention": qa.model.bert.attention,
        "logit": qa("Who lit the lamp?", "Ada lit the lamp.", 2)[0].start_logit,
    }
print(json.dumps({
    "reading": {name: facts(name) for name in candidates()},
    "training": candidates(training=True),
}))
"""
FLOAT32 = {"dtype": "torch.float32", "fused": True, "attention": "sdpa"}
BFLOAT16 = {"dtype": "torch.bfloat16", "fused": True}
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def facts(tiny: Path, variables: dict[str, str]) -> dict[str, Any]:
    clean = {name: value for name, value in os.environ.items() if name not in AVX2}
    command = [sys.executable, "-c", PROGRAM, str(tiny)]
    run = subprocess.run(command, env=clean | variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    logits = {name: one.pop("logit") for name, one in report["reading"].items()}
    exact = logits.pop("fp32")
    assert all(x == pytest.approx(exact, abs=0.5) and x != exact for x in logits.values())
    assert report["training"] == [name for name in report["reading"] if name != "int8"]
    return report["reading"]


@pytest.mark.parametrize(
    "variables",
    [AVX2, {"ATEN_CPU_CAPABILITY": "avx2"}, {"ONEDNN_MAX_CPU_ISA": "avx512_core"}],
    ids=str,
)
def test_without_bfloat16_instructions_it_is_no_candidate(tiny, variables):
    """Also if the processor has them and the user has switched them off."""
    assert facts(tiny, variables) == {"fp32": FLOAT32, "int8": FLOAT32}


@pytest.mark.skipif(
    "avx512_bf16" not in processor.processor_flags(), reason="a processor without AVX512-BF16"
)
def test_without_matrix_instructions_bfloat16_has_eager_attention(tiny):
    told = facts(tiny, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"})
    assert told["bf16"] == BFLOAT16 | {"attention": "eager"} and "int8" in told


@pytest.mark.skipif("amx_bf16" not in processor.processor_flags(), reason="a processor without AMX")
def test_with_matrix_instructions_bfloat16_has_fused_attention(tiny):
    assert facts(tiny, {})["bf16"] == BFLOAT16 | {"attention": "sdpa"}


@pytest.mark.skipif(
    not hasattr(torch.cpu, "get_capabilities") or not Path("/proc/cpuinfo").exists(),
    reason="only one of the two sources exists here",
)
def test_an_older_torch_learns_the_same_from_linux(monkeypatch):
    read = processor.processor_flags.__wrapped__
    names = processor.LIMITS_WITHOUT.keys()
    told = read() & names
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert read() & names == told


# The fastest precision


@pytest.fixture
def measured(monkeypatch, tmp_path) -> list[dict[str, float]]:
    """All measurements so far. Each says that the last candidate is the fastest."""
    monkeypatch.delenv(processor.VARIABLE)
    monkeypatch.setattr(probe, "KNOWN", {})
    monkeypatch.setattr(probe, "cache_file", lambda: tmp_path / "cache" / "precision.json")
    monkeypatch.setattr(
        probe, "candidates", lambda training=False: ["fp32", "bf16"] + ["int8"] * (not training)
    )
    measurements: list[dict[str, float]] = []

    def core_seconds(prepare: Any) -> dict[str, float]:
        names = prepare.args[1]
        measurements.append({name: 1 / k for k, name in enumerate(names, start=1)})
        return measurements[-1]

    monkeypatch.setattr(probe, "core_seconds", core_seconds)
    return measurements


CONFIG = BertConfig(vocab_size=9, hidden_size=64, num_hidden_layers=1, num_attention_heads=4,
                    intermediate_size=128)  # fmt: skip


def test_it_is_measured_once(measured, tmp_path):
    """For a process, and through the cache for later processes."""
    assert [probe.fastest_precision(CONFIG) for _ in range(20)] == ["int8"] * 20
    assert len(measured) == 1
    probe.KNOWN.clear()  # as in a new process
    assert probe.fastest_precision(CONFIG) == "int8" and len(measured) == 1
    assert probe.fastest_precision(CONFIG, training=True) == "bf16" and len(measured) == 2
    probe.fastest_precision(replace(CONFIG, intermediate_size=256))
    assert len(measured) == 3  # another shape
    assert len(json.loads((tmp_path / "cache" / "precision.json").read_text())) == 3


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", None])
def test_a_bad_cache_changes_nothing(measured, tmp_path, content):
    cache = tmp_path / "cache"
    if content is None:
        cache.write_text("a file where the folder should be")
    else:
        cache.mkdir()
        (cache / "precision.json").write_bytes(content)
    assert probe.fastest_precision(CONFIG) == "int8" and len(measured) == 1
    assert probe.fastest_precision(CONFIG) == "int8" and len(measured) == 1


def test_other_limits_are_measured_anew(measured, monkeypatch):
    for limit in ("AVX2", "AVX512_CORE"):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        probe.fastest_precision(CONFIG)
    assert len(measured) == 2


@pytest.mark.parametrize("training", [False, True])
def test_measuring_changes_nothing_else(training):
    """Neither the random numbers nor the number of threads."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    names = probe.candidates(training)
    seconds = probe.core_seconds(lambda: probe.work_of(CONFIG, names, training))
    assert list(seconds) == names and all(spent > 0 for spent in seconds.values())
    assert torch.equal(state, torch.get_rng_state()) and torch.get_num_threads() == threads


def test_an_error_while_measuring_is_raised():
    with pytest.raises(ZeroDivisionError):
        probe.core_seconds(lambda: {"fp32": lambda: 1 / 0})


def test_who_chooses_the_precision(measured, tiny, monkeypatch):
    """The user, else MINIBERT_PRECISION, else the measurement. The reader says which."""
    load = QuestionAnswerer.from_pretrained
    assert load(tiny).computes_with == "cpu, int8 (the fastest here), sdpa attention"
    monkeypatch.setenv("MINIBERT_PRECISION", "fp32")
    assert load(tiny).computes_with == "cpu, fp32 (MINIBERT_PRECISION), sdpa attention"
    assert load(tiny, precision="int8").computes_with == "cpu, int8, sdpa attention"
    cpu = torch.device("cpu")
    assert processor.choose_precision("auto", cpu, float_weights=True) == "fp32"
    monkeypatch.setenv("MINIBERT_PRECISION", "int8")  # training cannot obey
    assert processor.choose_precision("auto", cpu, float_weights=True) == "auto"
    monkeypatch.setenv("MINIBERT_PRECISION", "fp8")
    with pytest.raises(InputError, match="MINIBERT_PRECISION=fp8: expected 'auto', 'fp32'"):
        load(tiny)
    assert len(measured) == 1
