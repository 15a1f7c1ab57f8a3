"""Writes `tests/fixtures/minilm.safetensors`: what transformers computes on MiniLM for three sentences.

    python tests/python/minilm_fixture.py MODEL_DIR

The fixture holds the token ids and the mask of a padded batch and the last hidden state; its metadata name the versions.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

SENTENCES = [
    "A gorgeous, witty, seductive movie.",
    "It never fails to engage us, and yet the ending leaves a bitter taste that stays for days.",
    "No.",
]


def main() -> None:
    torch.set_num_threads(1)
    folder = sys.argv[1]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    path = Path(__file__).parents[1] / "fixtures" / "minilm.safetensors"
    tensors = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"].float(),
        "last_hidden_state": hidden,
    }
    save_file(tensors, path, metadata={"torch": torch.__version__, "transformers": transformers.__version__})


if __name__ == "__main__":
    main()
