"""In place of txtai's pipeline `Questions`. It needs the package `txtai`.

txtai takes the likeliest start and the likeliest end among the first tokens, without a search. This
class takes the best span of the whole context.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from txtai import pipeline

from .. import dropin
from ..fast.processor import Precision
from ..reader import BUNDLED, QuestionAnswerer

LEAST_SCORE = 0.05  # txtai/pipeline/text/questions.py: "Require score to be at least 0.05"


class Questions(pipeline.Questions):
    """A `Questions` that txtai's own objects accept, for example `RAG` (formerly `Extractor`)."""

    def __init__(
        self,
        path: str | Path | QuestionAnswerer | None = None,
        quantize: bool = False,
        gpu: bool | int = True,
        batch: int | None = None,
        **settings: Any,
    ) -> None:
        """`path` is a folder, a hub id or a `QuestionAnswerer`; None is the bundled model.

        `gpu` is True (a GPU, if the machine has one), False or the number of a GPU. `batch` is the
        `batch_size` of `Engine`. With `quantize`, a CPU reads in 8-bit integers. `settings` are
        settings of `dropin.pipeline`, such as `max_answer_len`. Raises the errors of loading.
        """
        # not super().__init__, which would load a model of transformers
        if not isinstance(path, QuestionAnswerer):
            number = -1 if gpu is False else gpu
            device = "auto" if gpu is True else "cpu" if number < 0 else f"cuda:{number}"
            precision: Precision = "int8" if quantize else "auto"
            path = QuestionAnswerer.from_pretrained(
                path or BUNDLED, device=device, precision=precision, batch_size=batch
            )
        self.reader = dropin.pipeline(model=path, allow_blank=True, **settings)

    def __call__(
        self, questions: Sequence[str | None], contexts: Sequence[str | None], **settings: Any
    ) -> list[str | None]:
        """The answer to each question in its context, widened to whole words.

        It is None where question or context are empty, where a context has no words, and for a
        score below 0.05. Raises `InputError` for a question without words.
        """
        pairs = [
            (q, c) if q and c else ("none", "") for q, c in zip(questions, contexts, strict=True)
        ]
        columns = {"question": [q for q, _ in pairs], "context": [c for _, c in pairs]}
        answers = self.reader(columns, **settings)
        return [a["answer"] if a["score"] >= LEAST_SCORE else None for a in answers]
