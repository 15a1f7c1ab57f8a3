//! Adapters on quantized layers: what they compute, and what such a layer refuses.

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{Linear, Module};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::nn::{AnyLinear, QuantizedLinear};
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::methods::{METHODS, Method, Start};
use peft_tests::tensors::{bits, random_with, randomise};

const NAME: &str = "default";
const IN: usize = 256;
const OUT: usize = 24;

#[derive(Clone, Injectable)]
struct Model {
    layer: Adapted<AnyLinear>,
    head: Adapted<Linear>,
}

impl Model {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.head.forward(&self.layer.forward(x)?)
    }
}

fn quantized(dtype: GgmlDType) -> Model {
    let layer = Linear::new(random_with(&[OUT, IN], 0.5), Some(random_with(&[OUT], 0.5)));
    let layer = QuantizedLinear::from_linear(&layer, dtype).unwrap();
    let head = Linear::new(random_with(&[3, OUT], 0.5), Some(random_with(&[3], 0.5)));
    Model { layer: AnyLinear::from(layer).into(), head: head.into() }
}

/// A model with an acting adapter on its quantized layer, and the same with the layer made dense.
fn twins(dtype: GgmlDType, config: &dyn AdapterMethod) -> (Model, Model) {
    let mut quantized = quantized(dtype);
    let mut dense = quantized.clone();
    dense.layer.dequantize().unwrap();
    quantized.inject_adapter(config, NAME).unwrap();
    randomise(&mut quantized, NAME, 0.2).unwrap();
    dense.inject_adapter(config, NAME).unwrap();
    dense.load_adapter_state_dict(&quantized.adapter_state_dict(NAME).unwrap(), NAME).unwrap();
    (quantized, dense)
}

fn lora() -> LoraConfig {
    LoraConfig::new(4, 6.0).with_targets(["layer"])
}

fn ia3(feedforward: &[&str]) -> Ia3Config {
    Ia3Config::new().with_targets(["layer"]).with_feedforward(TargetModules::names(feedforward.to_vec()))
}

/// The methods that work on quantized layers.
fn methods() -> impl Iterator<Item = &'static Method> {
    METHODS.iter().filter(|method| method.quantized)
}

fn assert_near(ours: &Tensor, theirs: &Tensor, what: &str) {
    assert_close(ours, theirs, Tolerance::of_largest(3e-5, theirs), what);
}

/// Checks outputs and all gradients.
fn assert_alike(quantized: &Model, dense: &Model, what: &str) {
    let x = Var::from_tensor(&random_with(&[2, 5, IN], 0.5)).unwrap();
    let (ours, theirs) = (quantized.forward(&x).unwrap(), dense.forward(&x).unwrap());
    assert_near(&ours, &theirs, what);
    let grads = |y: Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let (our_grads, their_grads) = (grads(ours), grads(theirs));
    assert_near(our_grads.get(&x).unwrap(), their_grads.get(&x).unwrap(), &format!("{what}: input"));
    let (our_parameters, their_parameters) = (quantized.trainable_parameters(), dense.trainable_parameters());
    assert_eq!(our_parameters.len(), their_parameters.len(), "{what}");
    for ((name, our), (their_name, their)) in our_parameters.iter().zip(&their_parameters) {
        assert_eq!(name, their_name);
        let (our, their) = (our_grads.get(our).unwrap(), their_grads.get(their).unwrap());
        assert_near(our, their, &format!("{what}: {name}"));
    }
    assert_eq!(
        our_grads.get_ids().count(),
        our_parameters.len() + 1,
        "{what}: something else has a gradient"
    );
}

#[test]
fn every_method_computes_and_trains_as_on_the_dense_weight() {
    for method in methods() {
        let (name, config) = (method.name, method.config());
        let (quantized, dense) = twins(GgmlDType::Q4_1, &*config);
        assert_alike(&quantized, &dense, name);
    }
}

#[test]
fn lora_and_ia3_do_so_on_every_quantized_type() {
    use GgmlDType::{BF16, F16, F32, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Q8_1, Q8K};
    for dtype in [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2K, Q3K, Q4K, Q5K, Q6K, Q8K] {
        let (quantized, dense) = twins(dtype, &lora());
        assert_alike(&quantized, &dense, &format!("lora on {dtype:?}"));
        let (quantized, dense) = twins(dtype, &ia3(&[]));
        assert_alike(&quantized, &dense, &format!("ia3 on {dtype:?}"));
    }
}

#[test]
fn a_fresh_adapter_leaves_the_output_unchanged() {
    for method in methods().filter(|method| method.start == Start::Exact) {
        let (name, config) = (method.name, method.config());
        let mut model = quantized(GgmlDType::Q4_0);
        let x = random_with(&[3, IN], 0.5);
        let before = bits(&model.forward(&x).unwrap()).unwrap();
        model.inject_adapter(&*config, NAME).unwrap();
        assert!(bits(&model.forward(&x).unwrap()).unwrap() == before, "{name}");
    }
}

#[test]
fn saving_and_loading_keeps_every_bit() {
    for method in methods() {
        let (name, config) = (method.name, method.config());
        let (model, _) = twins(GgmlDType::Q5_0, &*config);
        let x = random_with(&[3, IN], 0.5);
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path(), NAME).unwrap();
        let mut other = model.clone();
        other.delete_adapter(NAME).unwrap();
        other.load_adapter(folder.path(), NAME).unwrap();
        let output = |model: &Model| bits(&model.forward(&x).unwrap()).unwrap();
        assert!(output(&other) == output(&model), "{name}");
    }
}

#[test]
fn merging_is_refused_until_the_layer_is_dense() {
    let (mut model, _) = twins(GgmlDType::Q4_1, &lora());
    let x = random_with(&[3, IN], 0.5);
    let forward = model.forward(&x).unwrap();
    for error in [
        model.merge_adapters(&MergeOptions::active()).unwrap_err(),
        model.merge_and_unload(&MergeOptions::active()).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(text.contains("into `layer`: its weight is quantized (Q4_1)"), "{text}");
    }
    assert_eq!(model.adapter_names(), [NAME]);
    assert!(bits(&model.forward(&x).unwrap()).unwrap() == bits(&forward).unwrap());

    model.layer.dequantize().unwrap();
    model.merge_and_unload(&MergeOptions::active()).unwrap();
    assert_near(&model.forward(&x).unwrap(), &forward, "merged");
}

#[test]
fn state_dicts_have_no_quantized_weight() {
    let (mut model, dense) = twins(GgmlDType::Q4_1, &lora());
    let state = model.base_state_dict();
    assert!(state.keys().eq(["head.bias", "head.weight", "layer.bias"]), "{:?}", state.keys());
    model.load_base_state_dict(&state).unwrap();
    let error = model.load_base_state_dict(&dense.base_state_dict()).unwrap_err();
    assert!(error.to_string().contains("layer.weight"), "{error}");
}

#[test]
fn what_would_change_or_copy_the_weight_is_refused() {
    let refused: Vec<&Method> = METHODS.iter().filter(|method| !method.quantized).collect();
    assert!(!refused.is_empty());
    for method in refused {
        let mut model = quantized(GgmlDType::Q8_0);
        let error = model.inject_adapter(&*method.config(), NAME).unwrap_err().to_string();
        assert!(error.contains("base weight, which is quantized"), "{}: {error}", method.name);
        assert!(model.adapter_names().is_empty());
    }
    let mut model = quantized(GgmlDType::Q8_0);
    let config = LoraConfig::new(2, 2.0).with_targets(["head"]).with_modules_to_save(["layer"]);
    let error = model.inject_adapter(&config, NAME).unwrap_err().to_string();
    assert!(error.contains("whose quantized weight cannot be trained"), "{error}");
}

#[test]
fn the_tree_names_the_type_and_the_summary_counts_the_weight() {
    let mut model = quantized(GgmlDType::Q4_1);
    model.inject_adapter(&lora(), NAME).unwrap();
    let tree = model.module_tree();
    let base = "(base_layer): QuantizedLinear(in_features=256, out_features=24, bias=True, dtype=q4_1)";
    assert!(tree.contains("(layer): lora.Linear(") && tree.contains(base), "{tree}");
    let summary = model.trainable_summary();
    assert!(summary.starts_with("trainable params: 1,120 || all params: 7,363 ||"), "{summary}");
}

#[test]
fn only_what_a_view_shows_is_quantized() {
    let wide = random_with(&[OUT * 2, IN * 2], 0.5);
    let view = wide.narrow(0, OUT, OUT).unwrap().narrow(1, IN, IN).unwrap();
    let layer = QuantizedLinear::from_linear(&Linear::new(view.clone(), None), GgmlDType::F32).unwrap();
    let dense = layer.dequantize().unwrap();
    assert!(bits(dense.weight()).unwrap() == bits(&view).unwrap());
    assert_eq!(dense.weight().dtype(), DType::F32);
}

#[test]
fn weights_and_biases_of_other_shapes_are_refused() {
    let weight = |shape: &[usize]| {
        candle_core::quantized::QTensor::quantize(&random_with(shape, 0.5), GgmlDType::Q8_0).unwrap()
    };
    assert!(QuantizedLinear::new(weight(&[2, 3, 32]), None).is_err());
    assert!(QuantizedLinear::new(weight(&[3, 32]), Some(random_with(&[4], 0.5))).is_err());
    assert!(QuantizedLinear::new(weight(&[3, 32]), Some(random_with(&[3], 0.5))).is_ok());
    assert!(
        QuantizedLinear::from_linear(&Linear::new(random_with(&[3, 33], 0.5), None), GgmlDType::Q8_0)
            .is_err()
    );
}
