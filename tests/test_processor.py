"""The processor decides precision, attention and kernels. The answers are the same every way."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from minibert.fast import processor

# Prints what the reader chooses by itself, and one logit in each precision. It runs in its own
# process, because torch and oneDNN read their environment variables only once.
PROGRAM = """
import json, sys
from minibert import QuestionAnswerer
from minibert.fast.linear import FusedLayer
def logit(precision):
    qa = QuestionAnswerer.from_pretrained(sys.argv[1], precision=precision)
    return qa("Who lit the lamp?", "Ada lit the lamp.", 2)[0].start_logit
qa = QuestionAnswerer.from_pretrained(sys.argv[1])
model = qa.model
print(json.dumps({
    "precision": qa.precision,
    "dtype": str(next(model.parameters()).dtype),
    "fused": any(isinstance(module, FusedLayer) for module in model.modules()),
    "attention": model.bert.attention,
    "logits": [logit("fp32"), logit("bf16")],
}))
"""
INT8 = {"precision": "int8", "dtype": "torch.float32", "fused": True, "attention": "sdpa"}
BFLOAT16 = {"precision": "bf16", "dtype": "torch.bfloat16", "fused": True}
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def chosen(tiny: Path, variables: dict[str, str]) -> dict[str, Any]:
    clean = {name: value for name, value in os.environ.items() if name not in AVX2}
    command = [sys.executable, "-c", PROGRAM, str(tiny)]
    run = subprocess.run(command, env=clean | variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    exact, rounded = report.pop("logits")
    assert rounded == pytest.approx(exact, abs=0.5) and rounded != exact
    return report


@pytest.mark.parametrize(
    "variables",
    [AVX2, {"ATEN_CPU_CAPABILITY": "avx2"}, {"ONEDNN_MAX_CPU_ISA": "avx512_core"}],
    ids=str,
)
def test_without_bfloat16_instructions_it_is_int8(tiny, variables):
    """Also if the processor has them and the user has switched them off."""
    assert chosen(tiny, variables) == INT8


@pytest.mark.skipif(
    "avx512_bf16" not in processor.processor_flags(), reason="a processor without AVX512-BF16"
)
def test_without_matrix_instructions_it_is_bfloat16_and_eager_attention(tiny):
    variables = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    assert chosen(tiny, variables) == BFLOAT16 | {"attention": "eager"}


@pytest.mark.skipif("amx_bf16" not in processor.processor_flags(), reason="a processor without AMX")
def test_with_matrix_instructions_it_is_bfloat16_and_fused_attention(tiny):
    assert chosen(tiny, {}) == BFLOAT16 | {"attention": "sdpa"}


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
