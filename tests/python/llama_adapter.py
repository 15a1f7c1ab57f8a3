"""Loads an adapter saved by the `llama` example into PyTorch and PEFT, on the same GGUF file made dense, and compares.

    python tests/python/llama_adapter.py --gguf FILE.gguf [--adapter DIR] [--logits FILE.safetensors] [--loss LOSS]
                                         [--data FILE.txt] [--seq 256]

transformers reads the file, including the tokenizer. Prints the loss on the held-out text, as the example computes it, and how
far the logits of `--logits`, which the example wrote, are from PEFT's. Fails if `--loss`, the `held_out_after` that the example printed
(without `--adapter` its `held_out_before`), or the logits are off by more than the tolerance.
"""

import argparse
import json
import pathlib
import sys

import peft
import safetensors.torch
import torch
import transformers

ALICE = pathlib.Path(__file__).parents[2] / "examples/data/alice.txt"
HELD_OUT, MOST_WINDOWS = 10, 16

#: Relative to the largest logit. Both sides compute in f32; between f32 and f64, PEFT's own logits differ by 2e-6.
LOGITS_TOLERANCE = 1e-4
LOSS_TOLERANCE = 1e-3


def open_gguf(path: pathlib.Path, adapter: str | None):
    """The model, with its adapter, and the tokenizer."""
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    if adapter:
        model = peft.PeftModel.from_pretrained(model, adapter)
    return model.eval(), tokenizer


def held_out(tokenizer, data: pathlib.Path) -> list[int]:
    tokens = tokenizer(data.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    return tokens[len(tokens) - len(tokens) // HELD_OUT :]


def loss_on(model, tokens: list[int], seq: int) -> float:
    total, count = 0.0, 0
    for start in range(0, len(tokens), seq)[:MOST_WINDOWS]:
        ids = torch.tensor([tokens[start : start + seq]])
        if ids.numel() > 1:
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.numel() - 1)
            count += ids.numel() - 1
    return total / count


def compare_logits(model, file: str) -> dict:
    ours = safetensors.torch.load_file(file)
    theirs = model(input_ids=ours["input_ids"]).logits
    if theirs.shape != ours["logits"].shape:
        sys.exit(f"the logits have the shape {tuple(ours['logits'].shape)}, PEFT's {tuple(theirs.shape)}")
    difference = (ours["logits"].double() - theirs.double()).abs().max().item()
    largest = theirs.abs().max().item()
    return {"logits_difference": difference, "largest_logit": largest, "relative_difference": difference / largest}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", type=pathlib.Path, required=True)
    parser.add_argument("--adapter")
    parser.add_argument("--logits")
    parser.add_argument("--loss", type=float)
    parser.add_argument("--data", type=pathlib.Path, default=ALICE)
    parser.add_argument("--seq", type=int, default=256)
    arguments = parser.parse_args()
    model, tokenizer = open_gguf(arguments.gguf, arguments.adapter)
    with torch.no_grad():
        found = {"held_out_loss": loss_on(model, held_out(tokenizer, arguments.data), arguments.seq)}
        if arguments.logits:
            found |= compare_logits(model, arguments.logits)
    print(json.dumps(found))
    # A comparison with NaN fails as well.
    if arguments.logits and not found["relative_difference"] <= LOGITS_TOLERANCE:
        sys.exit(f"the logits are off by more than {LOGITS_TOLERANCE} of the largest")
    if arguments.loss is not None and not abs(found["held_out_loss"] - arguments.loss) <= LOSS_TOLERANCE:
        sys.exit(f"the loss is off by more than {LOSS_TOLERANCE}")


if __name__ == "__main__":
    main()
