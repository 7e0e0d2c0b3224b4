"""What the bench counts, and that its engines do the same work."""

from pathlib import Path

import pytest
import torch

from minibert import bench
from minibert.model import BertConfig
from minibert.qa import BertForQuestionAnswering

NOTES = str(Path(__file__).parent / "data" / "field_notes.json")


def test_flops_are_those_that_torch_counts():
    """One window, forward and backward, less what isn't counted: the head."""
    from torch.utils.flop_counter import FlopCounterMode

    config = BertConfig(50, 24, 3, 4, 40, 64, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    model = BertForQuestionAnswering(config)
    ids = torch.randint(50, (1, 17))
    with FlopCounterMode(display=False) as counter:
        out = model(ids)
        (out.start_logits.sum() + out.end_logits.sum()).backward()
    head = 3 * 2 * 17 * 24 * 2
    assert counter.get_total_flops() - head == pytest.approx(bench.training_flops(config, 17))


def test_real_batches_are_an_epoch_s(tiny, squad):
    batches, _, _ = bench.real_batches(str(tiny), str(squad), 8, seed=0)
    assert [len(batch) for batch in batches] == [bench.BATCH] * 8
    # of like length: little would be padding
    padded = sum(len(batch) * max(map(len, batch)) for batch in batches)
    assert sum(len(window) for batch in batches for window in batch) > 0.9 * padded
    assert batches[0][0].start_position is not None


@pytest.mark.parametrize("name", [name for name in bench.ENGINES if name != "minibert"])
def test_the_reference_is_trained(transformers, tiny, name):
    batches, pad_id, _ = bench.real_batches(str(tiny), NOTES, 1, seed=0)
    bench.ENGINES[name](str(tiny), pad_id)(batches)
