"""Models and step lists that several tables share."""

from __future__ import annotations

from collections.abc import Iterable

from oracle.spec import (Adapter, Case, Model, Step, active, base_weights, disable, enable, forward, grads, load, merge,
                         state_dict, unmerge)

MLP = Model("mlp", {"in": 10, "hidden": 20, "out": 2, "bias": True}, batch=4)
MLP_PLAIN = Model("mlp", {"in": 10, "hidden": 20, "out": 2, "bias": False}, batch=4)
EMB_CONV1D = Model("emb_conv1d", batch=4)
CONV1D = Model("conv1d", batch=4)


def blocks(layers: int = 1) -> Model:
    return Model("blocks", {"vocab": 16, "d": 8, "ff": 16, "layers": layers}, batch=3, length=5)


def conv2d(cin: int = 3, cout: int = 8, k: int = 3, stride: int = 1, padding: int = 0, dilation: int = 1,
           groups: int = 1, bias: bool = True, h: int = 8, w: int = 8) -> Model:
    """The model with one convolution; the size of what follows it is computed."""
    def size(side: int) -> int:
        return (side + 2 * padding - dilation * (k - 1) - 1) // stride + 1

    return Model("conv2d", {"cin": cin, "cout": cout, "k": k, "stride": stride, "padding": padding,
                            "dilation": dilation, "groups": groups, "bias": bias, "h": h, "w": w,
                            "flat": cout * size(h) * size(w)}, batch=2)


def bert(layers: int = 1, **options) -> Model:
    """BERT with a mask; token 0, the padding, is drawn only where a case asks for it."""
    config = {"vocab_size": 22, "hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2,
              "intermediate_size": 20, "max_position_embeddings": 16}
    return Model("tiny_bert", config, **{"batch": 2, "length": 6, "masked": True, "first_token": 1} | options)


def llama(layers: int = 1, tied: bool = False, **options) -> Model:
    """Llama with two query heads for each key head."""
    config = {"vocab_size": 22, "hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 4,
              "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 16,
              "tie_word_embeddings": tied}
    return Model("tiny_llama", config, **{"batch": 2, "length": 5} | options)


def gpt2(layers: int = 1, inner: int | None = 24, **options) -> Model:
    config = {"vocab_size": 22, "n_embd": 16, "n_layer": layers, "n_head": 2, "n_inner": inner, "n_positions": 16,
              "bos_token_id": 0, "eos_token_id": 0}
    return Model("tiny_gpt2", config, **{"batch": 2, "length": 5} | options)


def tour(*trainings: Step, weights: bool = True) -> list[Step]:
    """Everything that one adapter on a layer has to get right; training comes last.

    Without `weights`, merged weights are checked only through the output, which keeps the cases of large models small.
    """
    return [load("first"), forward(), grads(), merge(), forward(), *([base_weights()] if weights else []), unmerge(),
            disable(), forward(), enable(), forward(),
            *(step for training in trainings for step in (training, forward())), state_dict("first")]


def parade(names: Iterable[str], gradients: bool = False, merged: bool = False) -> list[Step]:
    """Adapters that differ only in their configs, one after the other on one model.

    Both the gradients and the state dict show which layers have the adapter.
    """
    steps: list[Step] = []
    for name in names:
        steps += [load(name), active(name), forward(), grads() if gradients else state_dict(name)]
        steps += [merge(), forward(), base_weights(), unmerge()] if merged else []
    return steps


def parade_case(name: str, model: Model, adapters: dict[str, Adapter], gradients: bool = False, merged: bool = False,
                **options) -> Case:
    return Case(name, model, adapters, parade(adapters, gradients, merged), **options)
