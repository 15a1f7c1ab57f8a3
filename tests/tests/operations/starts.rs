//! How factors start: what the laws do not cover about inits that depend on the weight.

use candle_core::Tensor;
use peft_runtime::method::LoftqConfig;
use peft_runtime::prelude::*;
use peft_tests::tensors::distance;

use crate::Model;

/// The sum of squares of the difference.
fn error(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar().unwrap()
}

/// How far the weight of `block.out` is from the original, without the adapter and with it.
fn errors(base: &Model, config: &LoraConfig) -> (f32, f32) {
    let mut model = base.clone();
    let original = base.base_state_dict()["block.out.weight"].clone();
    model.inject_adapter(config, "a").unwrap();
    let left = model.base_state_dict()["block.out.weight"].clone();
    model.merge_adapters(&MergeOptions::active()).unwrap();
    (error(&left, &original), error(&model.merged_state_dict()["block.out.weight"], &original))
}

#[test]
fn loftq_makes_up_for_part_of_the_quantisation_and_for_more_with_more_ranks() {
    let base = Model::new();
    let loftq = |rank: usize, bits: usize| {
        // The factors are not divided by the scaling, as in PEFT: it has to be 1.
        let config = LoraConfig::new(rank, rank as f64).with_targets(["out"]);
        errors(&base, &config.with_loftq(LoftqConfig { bits, iterations: 1 }))
    };
    let ((quantised, two), (_, four), (_, all)) = (loftq(2, 4), loftq(4, 4), loftq(6, 4));
    assert!(quantised > two && two > four && four > all, "{quantised} {two} {four} {all}");
    assert!(all < 1e-9 * 42.0, "with all ranks there are, the weight is whole again: {all}");
    let (eight_bits, _) = loftq(2, 8);
    assert!(eight_bits < quantised / 10.0, "{eight_bits} {quantised}");
}

#[test]
fn pissa_takes_out_more_than_olora_and_both_give_it_back() {
    let base = Model::new();
    let taken = |init: LoraInit| {
        let (taken, left) = errors(&base, &LoraConfig::new(3, 3.0).with_targets(["out"]).with_init(init));
        assert!(left < 1e-9 * 42.0, "{init:?}: {left}");
        taken
    };
    let (pissa, olora) = (taken(LoraInit::Pissa), taken(LoraInit::Olora));
    // No rank-3 part holds more of a matrix than the three largest singular values; a search that converges finds them.
    assert!(pissa > olora && olora > 0.0, "{pissa} {olora}");
    let searched = taken(LoraInit::PissaIterations(200));
    assert!((pissa - searched).abs() < 1e-3 * pissa, "{pissa} {searched}");
}

#[test]
fn orthogonal_factors_cancel_without_being_zero() {
    let mut model = Model::new();
    let config = LoraConfig::new(4, 4.0).with_targets(["out"]).with_init(LoraInit::Orthogonal);
    model.inject_adapter(&config, "a").unwrap();
    let state = model.adapter_state_dict("a").unwrap();
    let factor = |letter: &str| &state[&format!("base_model.model.block.out.lora_{letter}.weight")];
    let product = factor("B").matmul(factor("A")).unwrap();
    let size = |tensor: &Tensor| distance(tensor, &tensor.zeros_like().unwrap()).unwrap();
    assert!(size(&product) < 1e-6);
    assert!(size(factor("A")) > 1e-2 && size(factor("B")) > 1e-2);
}

#[test]
fn settings_that_an_init_cannot_have_are_refused() {
    let refusal = |config: LoraConfig| {
        Model::new().inject_adapter(&config.with_targets(["out"]), "a").unwrap_err().to_string()
    };
    let odd = refusal(LoraConfig::new(3, 4.0).with_init(LoraInit::Orthogonal));
    assert!(odd.contains("needs an even rank, and 3 is odd"), "{odd}");
    let bits = LoraConfig::new(2, 4.0).with_loftq(LoftqConfig { bits: 3, iterations: 1 });
    assert!(refusal(bits).contains("`loftq_bits` is 4 or 8"));
    let none = LoraConfig::new(2, 4.0).with_loftq(LoftqConfig { bits: 4, iterations: 0 });
    assert!(refusal(none).contains("`loftq_iter` at least 1"));
    let biased = LoraConfig::new(2, 4.0).with_init(LoraInit::Pissa).with_lora_bias(true);
    assert!(refusal(biased).contains("needs the default or the random init, not `pissa`"));
}
