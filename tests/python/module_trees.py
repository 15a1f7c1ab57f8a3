"""Prints the module trees that `tests/tests/trees.rs` compares with, as PEFT prints them.

    python tests/python/module_trees.py > tests/fixtures/module_trees.txt

One model with every layer kind; after each heading comes `print(model)` with the adapters injected.
"""

import warnings

import peft
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.lin = nn.Linear(6, 8)
        self.conv = nn.Conv2d(8, 4, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3, bias=False)


def tree(title, *adapters):
    model = Model()
    for name, config in adapters:
        model = peft.inject_adapter_in_model(config, model, name)
    print(f"== {title}\n{model}")


def lora(*targets, **settings):
    return peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), **settings)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    tree("dora", ("default", lora("embed", "lin", "conv", use_dora=True, lora_dropout=0.1)))
    tree("lora with a bias", ("default", lora("lin", "conv", lora_bias=True)))
    tree(
        "adalora",
        ("default", peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["lin", "conv"], lora_dropout=0.1)),
    )
    tree(
        "ia3",
        ("default", peft.IA3Config(target_modules=["lin", "conv", "head"], feedforward_modules=["conv", "head"])),
    )
    tree("saved modules", ("default", lora("lin", modules_to_save=["norm", "head"])))
    tree("two adapters", ("first", lora("embed", "lin")), ("second", lora("embed", "lin", "head", lora_dropout=0.1, use_dora=False)))
    tree("two saved", ("first", lora("lin", modules_to_save=["head"])), ("second", lora("lin", modules_to_save=["head"])))
    tree(
        "loha",
        ("default", peft.LoHaConfig(r=2, target_modules=["lin", "conv"], use_effective_conv2d=True)),
        ("second", peft.LoHaConfig(r=3, target_modules=["lin"])),
    )
    tree("lokr", ("default", peft.LoKrConfig(r=1, target_modules=["lin", "conv"], use_effective_conv2d=True, decompose_both=True)))
    tree(
        "two lokr",
        ("first", peft.LoKrConfig(r=1, target_modules=["lin", "head"])),
        ("second", peft.LoKrConfig(r=4, target_modules=["lin", "conv"])),
    )
    tree("tokens", ("default", lora("lin", trainable_token_indices={"embed": [1, 4]})))


if __name__ == "__main__":
    main()
