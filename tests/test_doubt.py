"""`bench doubt`: its rule for the old pipeline is the pipeline's own, and its tables add up."""

import numpy as np
import pytest

import minibert
from minibert.bench import doubt
from minibert.spans import WindowLogits


def test_the_pipeline_s_rule_is_its_own(transformers):
    """Compared with `select_starts_ends` of transformers. 5.2.0 is the last release that has it."""
    pytest.importorskip("transformers.pipelines.question_answering")
    rule = transformers.pipelines.question_answering.select_starts_ends
    generator = np.random.default_rng(0)
    for _ in range(50):
        tokens = int(generator.integers(2, 12))  # tokens of the context, after [CLS] question [SEP]
        start, end = generator.normal(0, 3, (2, 1, 5 + tokens + 1)).astype(np.float32)
        outside = np.ones((1, start.shape[1]), dtype=int)
        outside[0, 0] = 0
        outside[0, 5:-1] = 0
        starts, ends, scores, _ = rule(
            start, end, outside, np.ones_like(outside), top_k=1, max_answer_len=4
        )
        window = WindowLogits(
            0, start[0, 5:-1], end[0, 5:-1], (float(start[0, 0]), float(end[0, 0]))
        )
        grid = doubt.pipeline_scores(window, max_answer_len=4)
        assert grid.max() == pytest.approx(scores[0], rel=1e-5)
        i, k = np.unravel_index(grid.argmax(), grid.shape)
        assert (i, i + k) == (starts[0] - 5, ends[0] - 5)


def test_the_tables(tiny, field_notes):
    """With a random model the figures mean nothing, but all tables use the same questions."""
    qa = minibert.QuestionAnswerer.from_pretrained(tiny)
    chosen = [example for example in field_notes if example.answers][:8]
    rows = list(doubt.score(qa, chosen))
    for example, row in zip(chosen, rows, strict=True):
        answer = qa(example.question, example.context)
        assert row.ours == (answer.answer, pytest.approx(answer.score, rel=1e-3))
        assert row.product_of_ours <= row.best_window[1] <= row.summed[1] + 1e-9
    decided = doubt.answer_or_none(qa, chosen, field_notes)
    assert decided["negatives"] == 8 and decided["at_0"] == decided["at_stored"]
    documents = doubt.long_documents(qa, chosen[:2], field_notes)
    assert documents["ours"]["total"] == 2
    assert documents["mean_characters"] > max(len(e.context) for e in chosen[:2])
    passages = doubt.many_passages(qa, chosen[:1], field_notes)
    assert set(passages) == {"ours", "ours_forced", "best_window", "summed"}
