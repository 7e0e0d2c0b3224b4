"""A device answers or is one line; a reader says what it computes with."""

import os
from typing import Any

import pytest
import torch

import minibert
from minibert.cli import main, program
from minibert.cli.options import ReaderOptions
from minibert.engine import Engine
from minibert.fast import processor
from minibert.fast.processor import choose_device, choose_precision
from minibert.training.config import resolved

NAMES = ["mps", "cuda", "cuda:99", "xpu", "meta", "hpu", "xla", "vulkan", "no such thing", ""]


@pytest.mark.parametrize("name", NAMES)
def test_a_device_answers_or_is_one_line(tiny, name):
    asked = ("Who lit it?", "Ada lit the lamp.")
    try:
        qa = minibert.QuestionAnswerer.from_pretrained(tiny, device=name)
    except minibert.InputError as error:
        assert f"device={name!r}" in str(error) and "\n" not in str(error)
    else:
        assert qa(*asked).answer in asked[1]


def test_a_device_that_autocast_does_not_know_is_one_line(monkeypatch):
    """As "mps" in the oldest torch."""

    def autocast(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("User specified an unsupported autocast device_type 'mps'")

    monkeypatch.setattr(torch, "autocast", autocast)
    with pytest.raises(minibert.InputError, match="unsupported autocast"):
        choose_device("cpu")


def test_a_reader_says_what_was_chosen(tiny):
    qa = minibert.QuestionAnswerer.from_pretrained(tiny)
    assert qa.device == torch.device("cpu") and qa.attention == qa.model.bert.attention
    assert qa.precision == os.environ["MINIBERT_PRECISION"]
    weights = torch.bfloat16 if qa.precision == "bf16" else torch.float32
    assert {p.dtype for p in qa.model.parameters()} == {weights}
    told = minibert.QuestionAnswerer.from_pretrained(tiny, "eager", precision="fp32")
    assert (told.attention, told.precision) == ("eager", "fp32")
    assert told.computes_with == "cpu, fp32, eager attention"


@pytest.mark.parametrize(
    ("dtype", "asked", "said"),
    [
        (torch.float32, "fp32", "fp32"), (torch.float32, "bf16", "bf16"),
        (torch.bfloat16, "fp32", "bf16"), (torch.bfloat16, "bf16", "bf16"),
        (torch.float16, "fp32", "fp16"), (torch.float64, "bf16", "fp64"),
    ],
)  # fmt: skip
def test_the_precision_is_the_one_of_the_products(tiny, dtype, asked, said):
    """Of the weights, except for float32 weights under autocast."""
    model = minibert.BertForQuestionAnswering.from_pretrained(tiny).to(dtype)
    products = []
    model.bert.layers[0].attention.query.register_forward_hook(
        lambda part, inputs, output: products.append(output.dtype)
    )
    qa = minibert.QuestionAnswerer(model, minibert.Tokenizer.from_pretrained(tiny), precision=asked)
    qa("Who?", "Ada lit it.")
    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert qa.precision == said and products == [names.get(said, torch.float64)]
    assert qa.computes_with == f"cpu, {said}, eager attention"


def test_the_command_line_says_what_was_chosen(tiny, capsys, monkeypatch):
    monkeypatch.setattr(program, "keep_freed_memory", lambda: None)
    asked = ("--question", "Who?", "--context", "Ada lit it.", "--precision", "fp32")
    monkeypatch.setattr("sys.argv", ["minibert", "answer", "--model", str(tiny), *asked])
    with pytest.raises(SystemExit):
        main()
    out, err = capsys.readouterr()
    assert "score" in out and err == "cpu, fp32, sdpa attention\n"


def test_auto_is_a_gpu_only_if_torch_can_use_it(monkeypatch):
    """For an old GPU, torch may have no kernels. Then "auto" is the CPU."""

    def ones(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", ones)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(minibert.InputError, match="no kernel image"):
        choose_device("cuda")


def test_the_size_of_a_batch_arrives(tiny):
    """In Python and in every command that reads; the message about too little memory advises it."""
    assert minibert.QuestionAnswerer.from_pretrained(tiny, batch_size=7).batch_size == 7
    assert ReaderOptions(model=str(tiny), batch_size=7).load().batch_size == 7
    with pytest.raises(minibert.InputError, match="batch_size=0: expected 1 or more"):
        minibert.QuestionAnswerer.from_pretrained(tiny, batch_size=0)


@pytest.mark.parametrize(
    ("capability", "hip", "chosen"),
    [
        ((9, 0), None, "bf16"), ((8, 0), None, "bf16"), ((7, 5), None, "fp16"),
        ((7, 0), None, "fp16"), ((6, 1), None, "fp32"), ((5, 2), None, "fp32"),
        ((9, 0), "6.2", "bf16"),
    ],
)  # fmt: skip
def test_the_precision_of_a_gpu(monkeypatch, capability, hip, chosen):
    """Of the GPU that computes, which need not be torch's current one."""
    gpu = torch.device("cuda:1")
    capabilities = {gpu: capability}
    monkeypatch.delenv(processor.VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert choose_precision("auto", gpu) == chosen
    assert choose_precision("fp16", gpu) == "fp16"  # if the user asks for it
    assert choose_precision("auto", torch.device("mps")) == "fp32"


def test_float16_is_for_gpus(tiny, monkeypatch):
    refused = pytest.raises(minibert.InputError, match=r"^precision='fp16' needs a GPU$")
    with refused:
        minibert.QuestionAnswerer.from_pretrained(tiny, device="cpu", precision="fp16")
    settings = minibert.TrainingConfig(str(tiny), "data", "output", precision="fp16")
    with refused:
        resolved(settings, torch.device("cpu"))
    assert resolved(settings, torch.device("cuda")).precision == "fp16"
    monkeypatch.setenv(processor.VARIABLE, "fp16")
    with pytest.raises(minibert.InputError, match="MINIBERT_PRECISION=fp16 needs a GPU"):
        minibert.QuestionAnswerer.from_pretrained(tiny, device="cpu")


@pytest.mark.parametrize(("device", "size"), [("cpu", 4), ("cuda", 32), ("mps", 32)])
def test_a_gpu_reads_more_windows_at_a_time(tiny, monkeypatch, device, size):
    qa = minibert.QuestionAnswerer.from_pretrained(tiny, device="cpu", precision="fp32")
    monkeypatch.setattr(Engine, "device", torch.device(device))
    assert Engine(qa.model, qa.tokenizer, qa.window_settings).batch_size == size
    assert Engine(qa.model, qa.tokenizer, qa.window_settings, 7).batch_size == 7
