//! The calls that fail, by what they are for.

use candle_nn::Module;
use peft_runtime::prelude::*;
use peft_tests::tensors::random;

use crate::{Case, Model, case, lora, merged};

pub fn hot_swaps() -> Vec<Case> {
    vec![
        case("an unknown adapter", "no adapter named `x`", |m, f| {
            m.hotswap_adapter(f.join("good"), "x").map(drop)
        }),
        merged("a merged adapter", "while it is merged", |m, f| {
            m.hotswap_adapter(f.join("good"), "a").map(drop)
        }),
        case("one that changed the base", "its init changed the base weights", |m, f| {
            m.hotswap_adapter(f.join("good"), "pissa").map(drop)
        }),
        case("no folder", "adapter_config.json", |m, f| m.hotswap_adapter(f.join("none"), "a").map(drop)),
        case("a rank of zero", "invalid `r`", |m, f| m.hotswap_adapter(f.join("rank"), "a").map(drop)),
        case("no JSON", "not a valid adapter config", |m, f| {
            m.hotswap_adapter(f.join("json"), "a").map(drop)
        }),
        case("a switch", "`use_qalora` = true", |m, f| m.hotswap_adapter(f.join("switch"), "a").map(drop)),
        case("another method", "`peft_type` \"VERA\" is not supported", |m, f| {
            m.hotswap_adapter(f.join("method"), "a").map(drop)
        }),
        case("no targets", "`frist` matches no module", |m, f| {
            m.hotswap_adapter(f.join("targets"), "a").map(drop)
        }),
        case("a layer that cannot", "cannot adapt `norm`", |m, f| {
            m.hotswap_adapter(f.join("layer"), "a").map(drop)
        }),
        case("a cut file", "adapter_model.safetensors", |m, f| {
            m.hotswap_adapter(f.join("truncated"), "a").map(drop)
        }),
        case("a missing tensor", "missing: `last.lora_B.weight`", |m, f| {
            m.hotswap_adapter(f.join("missing"), "a").map(drop)
        }),
        case("a misshapen tensor", "has shape [3, 4], expected [3, 3]", |m, f| {
            m.hotswap_adapter(f.join("shape"), "a").map(drop)
        }),
        case("a foreign tensor", "unexpected: `lost.lora_A.weight`", |m, f| {
            m.hotswap_adapter(f.join("foreign"), "a").map(drop)
        }),
        case("a misshapen base weight", "`norm.weight` has shape [7], expected [6]", |m, f| {
            m.hotswap_adapter(f.join("base"), "a").map(drop)
        }),
    ]
}

pub fn loads() -> Vec<Case> {
    vec![
        case("a name that is taken", "already has an adapter named `a`", |m, f| {
            m.load_adapter(f.join("good"), "a").map(drop)
        }),
        case("no name", "is not an adapter name", |m, f| m.load_adapter(f.join("good/new"), "x.y").map(drop)),
        case("no folder", "adapter_config.json", |m, f| m.load_adapter(f.join("none"), "new").map(drop)),
        case("no JSON", "not a valid adapter config", |m, f| m.load_adapter(f.join("json"), "new").map(drop)),
        case("a rank of zero", "invalid `r`", |m, f| m.load_adapter(f.join("rank"), "new").map(drop)),
        case("a switch", "`use_qalora` = true", |m, f| m.load_adapter(f.join("switch"), "new").map(drop)),
        case("another method", "`peft_type` \"VERA\" is not supported", |m, f| {
            m.load_adapter(f.join("method"), "new").map(drop)
        }),
        case("no targets", "`frist` matches no module", |m, f| {
            m.load_adapter(f.join("targets"), "new").map(drop)
        }),
        case("a layer that cannot", "cannot adapt `norm`", |m, f| {
            m.load_adapter(f.join("layer"), "new").map(drop)
        }),
        case("a cut file", "adapter_model.safetensors", |m, f| {
            m.load_adapter(f.join("truncated"), "new").map(drop)
        }),
        case("a missing tensor", "missing: `last.lora_B.weight`", |m, f| {
            m.load_adapter(f.join("missing"), "new").map(drop)
        }),
        case("a misshapen tensor", "has shape [3, 4], expected [3, 3]", |m, f| {
            m.load_adapter(f.join("shape"), "new").map(drop)
        }),
        case("a foreign tensor", "unexpected: `lost.lora_A.weight`", |m, f| {
            m.load_adapter(f.join("foreign"), "new").map(drop)
        }),
        case("a misshapen base weight", "`norm.weight` has shape [7], expected [6]", |m, f| {
            m.load_adapter(f.join("base"), "new").map(drop)
        }),
        case("a second one with biases", "adapter `a` rules this out", |m, f| {
            m.load_adapter(f.join("biases"), "new").map(drop)
        }),
    ]
}

/// Adds a sum of adapters called `sum`.
fn sum(
    model: &mut Model,
    parts: &[(&str, f64)],
    kind: CombinationType,
    name: &str,
) -> peft_runtime::Result<()> {
    model.add_weighted_adapter(parts, name, &CombineOptions::new(kind)).map(drop)
}

pub fn combinations() -> Vec<Case> {
    use CombinationType::{Cat, Linear, Svd, Ties};
    vec![
        case("an unknown part", "no adapter named `x`", |m, _| sum(m, &[("b", 1.), ("x", 1.)], Cat, "sum")),
        case("no part", "the list of adapters to combine is empty", |m, _| sum(m, &[], Cat, "sum")),
        case("a weight that is not a number", "must be a finite number", |m, _| {
            sum(m, &[("b", f64::NAN), ("grouped", 1.)], Cat, "sum")
        }),
        case("ranks that differ", "needs equal ranks", |m, _| {
            sum(m, &[("b", 1.), ("grouped", 1.)], Linear, "sum")
        }),
        case("a rank over all", "would have rank 4", |m, _| {
            let options = CombineOptions::new(Svd).with_svd_rank(4);
            m.add_weighted_adapter(&[("b", 1.), ("biased", 1.)], "sum", &options).map(drop)
        }),
        case("a layer that fails after others", "the update of `grouped` is not a matrix", |m, _| {
            sum(m, &[("biased", 1.), ("grouped", 1.)], Svd, "sum")
        }),
        case("no density", "needs a `density`", |m, _| {
            sum(m, &[("biased", 1.), ("grouped", 1.)], Ties, "sum")
        }),
        case("a name that is taken", "already has an adapter named `b`", |m, _| {
            sum(m, &[("biased", 1.), ("grouped", 1.)], Cat, "b")
        }),
        case("no name", "is not an adapter name", |m, _| {
            sum(m, &[("biased", 1.), ("grouped", 1.)], Cat, "../sum")
        }),
        case("two methods", "adapter `ia3` uses IA3, and the first adapter uses LORA", |m, _| {
            sum(m, &[("biased", 1.), ("ia3", 1.)], Cat, "sum")
        }),
        case("the other way round", "adapter `biased` uses LORA, and the first adapter uses IA3", |m, _| {
            sum(m, &[("ia3", 1.), ("biased", 1.)], Linear, "sum")
        }),
        case("two copies of one module", "adapters `b` and `c`", |m, _| {
            sum(m, &[("b", 1.), ("c", 1.)], Cat, "sum")
        }),
        case("a second one with biases", "adapter `a` rules this out", |m, _| {
            sum(m, &[("a", 1.), ("grouped", 1.)], Cat, "sum")
        }),
        case("one that changed the base", "save it as plain LoRA first", |m, _| {
            sum(m, &[("grouped", 1.), ("pissa", 1.)], Cat, "sum")
        }),
    ]
}

fn infinite(model: &mut Model) {
    let mut state = model.adapter_state_dict("b").unwrap();
    let key = "base_model.model.last.lora_A.weight";
    state.insert(key.to_owned(), (&state[key] * f64::INFINITY).unwrap());
    model.load_adapter_state_dict(&state, "b").unwrap();
}

pub fn merges() -> Vec<Case> {
    let infinity = "merging adapter `b` into `last` gives NaN or infinite values";
    vec![
        case("an unknown adapter", "no adapter named `x`", |m, _| {
            m.merge_adapters(&MergeOptions::adapters(["a", "x"]))
        }),
        Case {
            prepare: infinite,
            ..case("infinity in the last layer", infinity, |m, _| {
                m.merge_adapters(&MergeOptions::adapters(["b"]).check_finite(true))
            })
        },
        Case {
            prepare: infinite,
            ..case("infinity in the last layer, for good", infinity, |m, _| {
                m.merge_and_unload(&MergeOptions::adapters(["b"]).check_finite(true))
            })
        },
        case("groups", "no convolution with 2 groups", |m, _| {
            m.merge_adapters(&MergeOptions::adapters(["a", "grouped"]))
        }),
        case("groups, for good", "no convolution with 2 groups", |m, _| {
            m.merge_and_unload(&MergeOptions::adapters(["a", "grouped"]))
        }),
        case("a bias without a place", "the layer has no bias that could take up", |m, _| {
            m.merge_adapters(&MergeOptions::adapters(["biased"]))
        }),
        merged("a bias without a place, while another is merged", "the layer has no bias", |m, _| {
            m.merge_adapters(&MergeOptions::adapters(["biased"]))
        }),
    ]
}

pub fn others() -> Vec<Case> {
    vec![
        case("renaming none", "no adapter named `x`", |m, _| m.rename_adapter("x", "y")),
        case("renaming to a taken name", "already has an adapter named `b`", |m, _| {
            m.rename_adapter("a", "b")
        }),
        case("renaming to no name", "is not an adapter name", |m, _| m.rename_adapter("a", "x.y")),
        case("deleting none", "no adapter named `x`", |m, _| m.delete_adapter("x")),
        merged("deleting a merged one", "while it is merged", |m, _| m.delete_adapter("a")),
        case("activating none", "no adapter named `x`", |m, _| m.set_adapters(&["b", "x"])),
        merged("activating none while one is merged", "no adapter named `x`", |m, _| m.set_adapter("x")),
        merged("activating two copies of one module", "all replace `norm`", |m, _| {
            m.set_adapters(&["b", "c"])
        }),
        case("scaling none", "no adapter named `x`", |m, _| m.scale_adapter("x", 2.0)),
        case("scaling what has no scaling", "IA3 has no scaling", |m, _| m.scale_adapter("ia3", 2.0)),
        case("scaling by infinity", "not a finite number", |m, _| m.scale_adapter("a", f64::INFINITY)),
        merged("scaling a merged one", "while it is merged", |m, _| m.scale_adapter("a", 2.0)),
        case("training none", "no adapter named `x`", |m, _| m.set_trainable("x", false)),
        case("a state that lacks a tensor", "missing: `last.lora_B.weight`", |m, _| {
            let mut state = m.adapter_state_dict("a")?;
            state.retain(|key, _| key != "base_model.model.last.lora_B.weight");
            state.values_mut().try_for_each(|tensor| tensor.zeros_like().map(|zeros| *tensor = zeros))?;
            m.load_adapter_state_dict(&state, "a")
        }),
        merged("a state for a merged one", "while it is merged", |m, _| {
            let state = m.adapter_state_dict("a")?;
            m.load_adapter_state_dict(&state, "a")
        }),
        merged("base weights under a merged one", "while it is merged", |m, _| {
            let state = m.base_state_dict();
            m.load_base_state_dict(&state)
        }),
        case("a layer beyond the adapters", "cannot adapt `norm`", |m, _| {
            m.inject_adapter(&lora(2).with_targets(["first", "norm"]), "new").map(drop)
        }),
        case("EVA for what does not start so", "does not select EVA, as LoRA's `with_eva", |m, _| {
            m.initialise_eva("a", [random(&[9, 5])], |m, x| m.first.forward(&x)).map(drop)
        }),
        case("EVA without a layer", "no batch reached `last`", |m, _| {
            m.initialise_eva("eva", [random(&[9, 5])], |m, x| m.first.forward(&x)).map(drop)
        }),
        case("EVA with a forward that fails", "cannot take an input", |m, _| {
            m.initialise_eva("eva", [random(&[9, 4])], |m, x| m.first.forward(&x)).map(drop)
        }),
    ]
}
