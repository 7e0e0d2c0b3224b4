"""Make bundled.safetensors: what transformers computes with the bundled checkpoint, on one pair.

    python tests/reference/make_bundled.py          made with transformers 5.2.0, torch 2.13.0 (CPU)

In float32 with the written-out attention: the ids, every hidden state (1, T, 384), both logits
(1, T). The tests and notebook 4 compare with it, so that transformers need not be installed. It is
not a part of make.py, because the bundled weights may change, and what that makes does not.
"""

from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).parent
BUNDLED = HERE.parent.parent / "minibert" / "checkpoints" / "minilm-squad"
QUESTION = "Who lit the lamp?"
CONTEXT = "At dusk the keeper, Ada, lit the lamp. By dawn it had burned a pint of oil."


def main() -> None:
    model = transformers.BertForQuestionAnswering.from_pretrained(
        BUNDLED, attn_implementation="eager"
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED)
    inputs = tokenizer(QUESTION, CONTEXT, return_tensors="pt")
    with torch.inference_mode():
        out = model(**inputs, output_hidden_states=True)
    tensors = {**inputs, "start_logits": out.start_logits, "end_logits": out.end_logits}
    tensors |= {f"hidden_states.{k}": state for k, state in enumerate(out.hidden_states)}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, HERE / "bundled.safetensors")


if __name__ == "__main__":
    main()
