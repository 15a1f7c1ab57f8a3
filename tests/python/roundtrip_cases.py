"""The cases of `roundtrip.py`: every adapter method on every kind of layer that PEFT supports it on."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from oracle.adapters import pruned
from oracle.training import adapter_tensors
from peft import PeftModel
from oracle.spec import Adapter, Case, Model, adalora, dora, forward, ia3, load, loha, lokr, lora, state_dict
from tables.common import CONV1D, EMB_CONV1D, MLP, bert, blocks, conv2d, llama
from torch import Tensor

#: "Agrees within 1e-5" is meant literally: the absolute difference of every entry.
TOLERANCE = {"atol": 1e-5, "rtol": 0.0}


@dataclass(frozen=True)
class Kind:
    """A model, and the names of its layers by kind."""

    model: Model
    linear: tuple[str, ...]
    embedding: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    conv1d: tuple[str, ...] = ()
    conv2d: tuple[str, ...] = ()
    #: One of the linear layers, to be trained in full.
    saved: str = "lin0"
    #: `trainable_token_indices`, of rows that the model's input has.
    tokens: dict[str, list[int]] | list[int] | None = None
    #: The rank of factors computed from a weight: no more than the smallest weight allows.
    rank: int = 2
    #: A linear layer and the smaller of its sizes, at which a converted LoftQ adapter is exact.
    full_rank: tuple[str, int] = ("lin0", 2)

    def targets(self, *families: str, without: tuple[str, ...] = ()) -> list[str]:
        names = (name for family in families for name in getattr(self, family))
        return [name for name in names if name not in without]


KINDS = {
    "mlp": Kind(MLP, ("lin0", "lin1"), saved="lin1", full_rank=("lin0", 10)),
    "blocks": Kind(blocks(), ("q_proj", "v_proj", "up_proj", "down_proj", "lm_head"), ("embed",), saved="lm_head",
                   tokens={"embed": [9, 1, 4, 7]}, full_rank=("q_proj", 8)),
    "emb_conv1d": Kind(EMB_CONV1D, ("lin0",), ("emb",), transposed=("conv1d",), tokens={"emb": list(range(0, 100, 4))},
                       rank=1),
    "conv1d": Kind(CONV1D, ("lin0",), conv1d=("conv1d",)),
    "conv2d": Kind(conv2d(stride=2, padding=1), ("lin0",), conv2d=("conv2d",)),
    "bert": Kind(bert(), ("query", "value", "dense"), ("word_embeddings", "position_embeddings"),
                 saved="intermediate.dense", tokens=[2, 3, 5, 7, 11, 13], full_rank=("value", 16)),
}

#: Seeds of base models in which no two singular values at a cut are nearly equal, or whose outputs are not large:
#: otherwise the rounding of either side would use up the tolerance.
SALTS = {"bias_all_blocks": 34, "olora_bert": 1, "pissa_bert": 14, "pissa_blocks": 6, "pissa_mlp": 6}

#: What plain LoRA adapts.
ALL = ("embedding", "transposed", "conv1d", "conv2d", "linear")
#: What LoHa and LoKr adapt.
PRODUCTS = ("conv1d", "conv2d", "linear")
#: What AdaLoRA and IA3 adapt.
SOME = ("transposed", "conv2d", "linear")


@dataclass(frozen=True)
class Trip:
    """One adapter, made once by PEFT and once by the Rust program."""

    name: str
    model: Model
    adapter: Adapter
    adapter_name: str = "default"
    #: How the Rust program makes its own: uniform noise of this size on the fresh tensors, then steps of SGD.
    noise: float = 0.2
    learning_rate: float = 0.02
    steps: int = 3
    #: Draws different random numbers.
    salt: int = 0
    #: Why PEFT cannot write such an adapter here, and the config whose files have the same form.
    unavailable: str | None = None
    stand_in: Adapter | None = field(default=None, repr=False)

    @property
    def pruned(self) -> bool:
        """Whether the saved ranks result from training, so that PEFT's and ours differ."""
        return self.adapter.method == "ADALORA" and self.adapter.recipe is not None

    def case(self) -> Case:
        """What the Rust program reads: a case of the parity format."""
        options = {"tolerance": TOLERANCE, "salt": self.salt}
        if self.unavailable:
            return Case(self.name, self.model, {}, [], **options)
        steps = [load(self.adapter_name), forward(), state_dict(self.adapter_name)]
        return Case(self.name, self.model, {self.adapter_name: self.adapter}, steps, **options)

    def recipe(self) -> dict:
        """`roundtrip.json`: what the Rust program writes."""
        config = {"peft_type": self.adapter.method, **self.adapter.config}
        return {"adapter": self.adapter_name, "config": config, "converted": self.adapter.converted,
                "noise": self.noise, "learning_rate": self.learning_rate, "steps": self.steps}


def all_trips() -> list[Trip]:
    trips = [trip for name, kind in KINDS.items() for trip in on_kind(name, kind)] + EXTRAS
    assert len({trip.name for trip in trips}) == len(trips)
    return trips


def on_kind(name: str, kind: Kind) -> Iterator[Trip]:
    def trip(method: str, adapter: Adapter, **options) -> Trip:
        case = f"{method}_{name}"
        return Trip(case, kind.model, adapter, salt=SALTS.get(case, 0), **options)

    # `Conv1d(1, 1, 2)` has two weights, and a higher rank is refused in Rust.
    small = {"r": 2} if kind.conv1d else {}
    everything = kind.targets(*ALL)
    first, last = everything[0], everything[-1]
    unsaved = kind.targets(*ALL, without=(kind.saved,))
    matrices = kind.targets("linear", "transposed")

    yield trip("lora", lora(*everything, **small))
    yield trip("rslora", lora(*everything, use_rslora=True, lora_alpha=3, lora_dropout=0.25, **small))
    yield trip("patterns", lora(*everything, rank_pattern={last: 3 if small else 2}, alpha_pattern={first: 5}, **small))
    yield trip("lora_bias", lora(*kind.targets("transposed", "conv1d", "conv2d", "linear"), lora_bias=True, **small))
    yield trip("bias_all", lora(*everything, bias="all", **small))
    yield trip("bias_lora_only", lora(*unsaved, bias="lora_only", **small))
    yield trip("modules_to_save", lora(*(unsaved or everything), modules_to_save=[kind.saved], **small))
    yield trip("dora", dora(*everything, **small))

    yield trip("pissa", factorised("pissa", kind.targets("linear", "transposed", "embedding"), kind.rank), noise=0.05)
    yield trip("pissa_converted", factorised("pissa", matrices, kind.rank, converted=True), noise=0.05)
    # OLoRA's factors of a transposed weight have the wrong shapes in PEFT.
    yield trip("olora", factorised("olora", kind.targets("linear", "embedding"), kind.rank), noise=0.05)
    yield trip("olora_converted", factorised("olora", kind.linear, kind.rank, converted=True), noise=0.05)
    yield trip("orthogonal", lora(*matrices, init_lora_weights="orthogonal"))
    yield loftq(f"loftq_{name}", kind)
    if kind.tokens:
        yield trip("tokens", lora(*kind.targets(*ALL, without=kind.embedding), trainable_token_indices=kind.tokens))

    yield trip("adalora", adalora(*kind.targets(*SOME), tinit=4), noise=0.5)
    yield trip("adalora_pruned",
               adalora(*kind.targets(*SOME), tinit=1, tfinal=2, recipe=pruned(kept(name, kind))), noise=0.5, steps=10)
    yield trip("ia3", ia3(*kind.targets(*SOME)))
    yield trip("ia3_feedforward", ia3(*kind.targets(*SOME), feedforward=kind.targets(*SOME)[-1:]))

    products = kind.targets(*PRODUCTS)
    yield trip("loha", loha(*products, alpha=3), noise=0.5)
    yield trip("lokr", lokr(*products, r=1, alpha=3), noise=0.3)
    yield trip("lokr_both", lokr(*products, r=1, alpha=2, decompose_both=True, decompose_factor=4), noise=0.5)
    if kind.conv1d or kind.conv2d:
        yield trip("loha_effective", loha(*products, alpha=3, use_effective_conv2d=True), noise=0.5)
        yield trip("lokr_effective", lokr(*products, r=1, alpha=3, use_effective_conv2d=True), noise=0.5)


def nudged(peft: PeftModel, name: str, inputs: dict[str, Tensor]) -> None:
    """A little away from the initial state, as after a short training run."""
    with torch.no_grad():
        for tensor in adapter_tensors(peft, name).values():
            tensor.add_(0.03 * torch.randn(tensor.shape))


def factorised(init: str, targets: tuple[str, ...] | list[str], rank: int, **config) -> Adapter:
    """A small scaling keeps the difference between two factorisations of one weight within the tolerance."""
    return lora(*targets, **{"r": rank, "lora_alpha": 2 * rank, "init_lora_weights": init, "recipe": nudged} | config)


def kept(name: str, kind: Kind) -> dict[str, str]:
    """Which of the four ranks in each adapted layer AdaLoRA has kept: none, some or all."""
    layers = {
        "blocks": [*(f"layers.0.{layer}" for layer in (
            "attn.q_proj", "attn.v_proj", "mlp.up_proj", "mlp.down_proj")), "lm_head"],
        "bert": [f"encoder.layer.0.{layer}" for layer in (
            "attention.self.query", "attention.self.value", "attention.output.dense", "intermediate.dense",
            "output.dense")],
    }.get(name, kind.targets(*SOME))
    marks = ("x..x", "....", "xxxx", ".x..") if len(layers) > 1 else ("x..x",)
    return {layer: marks[index % len(marks)] for index, layer in enumerate(layers)}


def loftq(name: str, kind: Kind) -> Trip:
    """LoftQ at full rank, where the factors make up for the entire loss, saved as plain LoRA for the original base."""
    target, rank = kind.full_rank
    adapter = lora(target, r=rank, lora_alpha=rank, init_lora_weights="loftq",
                   loftq_config={"loftq_bits": 4, "loftq_iter": 1}, recipe=nudged, converted=True)
    stand_in = lora(target, r=2 * rank, lora_alpha=2 * rank)
    # PEFT quantises only on the GPU, and does not convert LoftQ adapters correctly: it would treat the quantisation loss as
    # a part of the base. So only the Rust program's files are read.
    missing = "no bitsandbytes" if importlib.util.find_spec("bitsandbytes") is None else "PEFT does not convert LoftQ"
    if not torch.cuda.is_available():
        missing += ", no GPU"
    return Trip(name, kind.model, adapter, noise=0.05, unavailable=missing, stand_in=stand_in)


#: Config fields that change which files there are or what they contain, once each.
EXTRAS = [
    Trip("named_mlp", MLP, lora("lin0", "lin1"), adapter_name="other"),
    Trip("all_linear_mlp", MLP, lora(target_modules="all-linear")),
    Trip("all_linear_tokens_emb_conv1d", EMB_CONV1D,
         lora(target_modules="all-linear", r=1, trainable_token_indices={"emb": list(range(0, 100, 4))})),
    Trip("all_linear_tokens_blocks", blocks(), lora(target_modules="all-linear",
                                                    trainable_token_indices={"embed": [9, 1, 4, 7]})),
    Trip("adalora_tokens_blocks", blocks(), adalora("q_proj", "up_proj", trainable_token_indices={"embed": [9, 1, 4, 7]},
                                                    tinit=4), noise=0.5),
    # PEFT does not read what it writes here: the feed-forward names are none of the targets'.
    Trip("ia3_all_linear_blocks", blocks(), ia3(target_modules="all-linear", feedforward=["down_proj"]),
         unavailable="its own file has feed-forward names that it refuses",
         stand_in=ia3(*(f"layers.0.{layer}" for layer in (
             "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.up_proj", "mlp.down_proj")), "lm_head",
                      feedforward=["layers.0.mlp.down_proj"])),
    Trip("tied_factors_llama", llama(tied=True), lora("lm_head", "q_proj", ensure_weight_tying=True)),
    Trip("tied_copy_llama", llama(tied=True), lora("q_proj", modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    Trip("bias_all_and_saved_container_blocks", blocks(), lora("q_proj", bias="all", modules_to_save=["mlp"])),
    Trip("regex_blocks", blocks(2), lora(target_modules=r"layers\.\d\.attn\.[qk]_proj|embed")),
    Trip("layers_blocks", blocks(2), lora("q_proj", "up_proj", layers_to_transform=[1], layers_pattern="layers",
                                          exclude_modules=["k_proj"])),
    Trip("task_type_bert", bert(), lora("query", "value", task_type="FEATURE_EXTRACTION")),
    Trip("gaussian_conv2d", conv2d(stride=2, padding=1), lora("conv2d", "lin0", init_lora_weights="gaussian")),
    Trip("random_emb_conv1d", EMB_CONV1D, lora("emb", "conv1d", init_lora_weights=False)),
    Trip("pissa_rslora_converted_mlp", MLP, factorised("pissa", ["lin0", "lin1"], 2, use_rslora=True, converted=True),
         noise=0.05),
    Trip("dora_bias_and_saved_module_mlp", MLP, dora("lin0", bias="all", modules_to_save=["lin1"])),
    Trip("adalora_bias_and_saved_module_mlp", MLP, adalora("lin0", bias="all", modules_to_save=["lin1"], tinit=4),
         noise=0.5),
    Trip("ia3_saved_module_blocks", blocks(), ia3("k_proj", "down_proj", feedforward=["down_proj"],
                                                  modules_to_save=["lm_head"])),
    Trip("loha_options_blocks", blocks(2),
         loha("q_proj", "up_proj", rank_pattern={"up_proj": 3}, alpha_pattern={"q_proj": 2.5}, rank_dropout=0.25,
              module_dropout=0.5, modules_to_save=["lm_head"], exclude_modules=["layers.1.mlp.up_proj"]), noise=0.5),
    Trip("lokr_options_blocks", blocks(2),
         lokr("q_proj", "up_proj", rank_pattern={"up_proj": 1}, rank_dropout=0.25, rank_dropout_scale=True,
              init_weights="lycoris", layers_to_transform=[1], layers_pattern="layers", modules_to_save=["lm_head"]),
         noise=0.5),
]
