//! Adapters on the experts of mixtures; `tests/python/mlx_adapters.py` and `tests/python/expert_adapters.py` wrote them.

use peft_runtime::StoredAdapter;

use crate::merging::{assert_merged, base, merged};
use crate::{fixture, tensors};

#[test]
fn experts_of_mlx_lm_merge_into_fused_ones_as_it_fuses_them() {
    let (base, adapter) = (fixture("mlx/moe_base"), fixture("mlx/experts"));
    let expected = tensors(adapter.join("fused.safetensors"));
    assert_merged("experts", &merged(&adapter, &base).unwrap(), &expected, &base);
}

#[test]
fn single_experts_merge_into_fused_ones_as_peft_converts_them() {
    let base = fixture("experts/base");
    let expected = tensors(fixture("experts/merged.safetensors"));
    // PEFT's own form after the conversion, and the form before experts were fused.
    for name in ["converted", "single"] {
        let adapter = fixture(&format!("experts/{name}"));
        assert_merged(name, &merged(&adapter, &base).unwrap(), &expected, &base);
    }
}

#[test]
fn the_router_of_single_experts_is_that_of_fused_ones() {
    let base = fixture("experts/base");
    let expected = tensors(fixture("experts/merged_router.safetensors"));
    assert!(expected.contains_key("model.layers.0.mlp.gate.weight"));
    assert_merged("router", &merged(&fixture("experts/router"), &base).unwrap(), &expected, &base);
}

#[test]
fn fused_experts_merge_into_single_ones_as_peft_and_transformers_save_them() {
    for name in ["mixtral", "qwen3_moe"] {
        let base = fixture(&format!("experts/{name}_saved"));
        let expected = tensors(fixture(&format!("experts/{name}_merged.safetensors")));
        let adapter = fixture(&format!("experts/{name}_fused"));
        assert_merged(name, &merged(&adapter, &base).unwrap(), &expected, &base);
    }
}

#[test]
fn fused_experts_of_another_number_than_single_ones_are_refused() {
    let other = base(&fixture("experts/qwen3_moe_saved"));
    let error = StoredAdapter::open_for(fixture("experts/converted"), &other).unwrap_err().chain();
    assert!(error.contains("experts") && error.contains("[3, 12, 8]"), "{error}");
}

#[test]
fn what_single_experts_become_is_what_peft_makes_of_them() {
    let base = base(&fixture("experts/base"));
    let read = |name: &str| StoredAdapter::open_for(fixture(&format!("experts/{name}")), &base).unwrap();
    let (single, converted) = (read("single"), read("converted"));
    let of = |adapter: &StoredAdapter| adapter.tensors(&candle_core::Device::Cpu).unwrap();
    let (single, converted) = (of(&single), of(&converted));
    assert!(single.keys().eq(converted.keys()), "{:?} {:?}", single.keys(), converted.keys());
    for (key, tensor) in &single {
        let other = converted[key].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(), other, "{key}");
    }
}

#[test]
fn experts_that_the_base_model_does_not_have_are_refused() {
    let other = base(&fixture("mlx/moe_base"));
    let error = StoredAdapter::open_for(fixture("experts/single"), &other).unwrap_err().chain();
    assert!(error.contains("experts.3") || error.contains("and the base model"), "{error}");
    let alone = StoredAdapter::open(fixture("experts/converted")).unwrap();
    let error = alone.layers().unwrap_err().chain();
    assert!(error.contains("open_for"), "{error}");
}
