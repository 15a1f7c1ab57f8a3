"""Initialisations that change the base weights when an adapter is loaded, and the orthogonal one, which does not."""

from oracle.adapters import fresh, nudged, trained
from oracle.spec import (Case, active, base_weights, disable, enable, forward, grads, load, lora, merge, state_dict,
                         train, unmerge)

from .common import EMB_CONV1D, MLP, blocks, gpt2, llama, parade_case

FRESH = [load("first"), forward(), base_weights(), grads()]
WHOLE = [load("first"), forward(), base_weights(), grads(), merge(), forward(), base_weights(), unmerge(),
         base_weights(), state_dict("first")]
BRIEFLY = [load("first"), forward(), base_weights(), grads(), merge(), forward(), unmerge(), forward(),
           state_dict("first")]
SHORT_TRAINING = trained(lr=0.01, steps=10)
PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 2}}


def pissa(*targets: str, **config):
    return lora(*targets, **{"r": 2, "init_lora_weights": "pissa", "recipe": nudged} | config)


def olora(*targets: str, **config):
    return pissa(*targets, **{"init_lora_weights": "olora"} | config)


CASES = [
    Case("inits_pissa_mlp", MLP, {"first": pissa("lin0", "lin1")},
         [*WHOLE, disable(), forward(), enable(), forward(), train("sgd", 0.02, 5), forward(), base_weights(), merge(),
          base_weights(), forward()]),
    Case("inits_olora_mlp_rslora", MLP, {"first": olora("lin0", "lin1", use_rslora=True, lora_alpha=3)},
         [*WHOLE, train("adamw", 0.01, 5), forward(), base_weights(), merge(), base_weights(), forward()]),
    Case("inits_pissa_blocks_patterns", blocks(), {"first": pissa("q_proj", "v_proj", "up_proj", r=4, **PATTERNS)},
         WHOLE),
    Case("inits_pissa_emb_conv1d", EMB_CONV1D, {"first": pissa("emb", "lin0", r=1)}, WHOLE),
    Case("inits_olora_llama", llama(), {"first": olora("k_proj", "down_proj", r=4, recipe=SHORT_TRAINING)}, BRIEFLY),
    Case("inits_pissa_gpt2", gpt2(), {"first": pissa("c_attn", r=4)}, BRIEFLY, salt=1),
    *(Case(f"inits_{init.__name__}_blocks_fresh", blocks(),
           {"first": init("k_proj", "down_proj", "lm_head", r=3, recipe=fresh)}, FRESH, inert=True, salt=1)
      for init in (pissa, olora)),
    Case("inits_pissa_rank_above_sizes", MLP, {"first": pissa("lin1", r=4)},
         [load("first"), forward(), base_weights(), state_dict("first")]),
    parade_case("inits_converted_mlp", MLP, {
        "pissa": pissa("lin0", "lin1", converted=True),
        "olora": olora("lin0", "lin1", lora_alpha=3, converted=True),
        "rslora": pissa("lin0", use_rslora=True, converted=True),
        "patterns": pissa("lin0", "lin1", rank_pattern={"lin0": 3}, alpha_pattern={"lin1": 5}, recipe=SHORT_TRAINING,
                          converted=True),
    }, gradients=True, merged=True),
    Case("inits_lora_next_to_converted", MLP,
         {"first": pissa("lin0", "lin1", converted=True), "second": olora("lin0", "lin1", converted=True),
          "third": lora("lin0", "lin1")},
         [load("first"), load("second"), load("third"), forward(), active("second"), forward(),
          active("first", "third"), forward(), merge(), base_weights()]),
    Case("inits_orthogonal_mlp_fresh", MLP,
         {"first": lora("lin0", "lin1", init_lora_weights="orthogonal", recipe=fresh)},
         [load("first"), forward(), base_weights(), grads(), train("sgd", 0.2, 4), forward(), state_dict("first")],
         inert=True),
]
