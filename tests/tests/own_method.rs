//! A method of your own: what it needs, and that its initial values are computed only where nothing else supplies them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Linear, Module};
use peft_runtime::adapter::{
    Adapter, AdapterTensor, Built, Call, Component, Geometry, Init, LayerSettings, LayerShapes,
    LinearParameters, MergeError, Site, TensorSource,
};
use peft_runtime::error::Fault;
use peft_runtime::method::{AdapterConfig, Method};
use peft_runtime::prelude::*;
use peft_runtime::schema::LayerKind;
use peft_runtime::{ModulePath, Result};
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::{random, randomise, same_bits};
use serde::{Deserialize, Serialize};

/// Adds a vector to the output of a layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Shift {
    #[serde(skip)]
    draws: Draws,
}

/// How many initial values were computed, for a config and all its copies.
#[derive(Clone, Debug, Default)]
struct Draws(Arc<AtomicUsize>);

/// The count is not a setting: configs are equal whatever it is.
impl PartialEq for Draws {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// The vector of one layer.
#[derive(Debug)]
struct ShiftState {
    vector: Var,
}

const KEY: &str = "shift";

fn shift<const N: usize>(targets: [&str; N]) -> AdapterConfig<Shift> {
    AdapterConfig::of(Shift::default()).with_targets(targets)
}

impl Shift {
    fn draws(&self) -> usize {
        self.draws.0.load(Ordering::Relaxed)
    }
}

impl Adapter for ShiftState {
    fn tensors(&self) -> Vec<AdapterTensor<'_>> {
        vec![AdapterTensor::new(KEY, &self.vector)]
    }

    fn adapt_output(&self, call: &Call<'_>, _: &Tensor, output: Tensor) -> candle_core::Result<Tensor> {
        output.broadcast_add(&call.tensor(&self.vector))
    }

    fn merge(
        &self,
        _: &Site<'_>,
        parameters: LinearParameters,
    ) -> std::result::Result<LinearParameters, MergeError> {
        let LinearParameters { weight, bias } = parameters;
        let Some(bias) = bias else {
            return Err(MergeError::Impossible("there is no bias to shift".to_owned()));
        };
        Ok(LinearParameters { weight, bias: Some((bias + self.vector.as_detached_tensor())?) })
    }

    fn label(&self) -> &'static str {
        "Shift"
    }

    fn components(&self) -> Vec<Component> {
        vec![Component::tensors(KEY, Some(self.vector.as_tensor()))]
    }
}

impl Method for Shift {
    const PEFT_TYPE: &'static str = "SHIFT";
    const NAME: &'static str = "Shift";
    const KEY_PREFIX: &'static str = KEY;

    fn plan_layer(
        _: &AdapterConfig<Self>,
        path: &ModulePath,
        kind: LayerKind,
        geometry: &Geometry,
    ) -> Result<LayerSettings, Fault> {
        match geometry {
            Geometry::Linear { .. } => Ok(LayerSettings::new().with_changed_bias(true)),
            _ => Err(Fault::unsupported_layer(path, kind, Self::NAME, "only linear layers are shifted")),
        }
    }

    fn build(
        config: &AdapterConfig<Self>,
        site: &Site<'_>,
        _: &LayerSettings,
        source: &mut dyn TensorSource,
    ) -> Result<Built> {
        let shape = [site.geometry.out_features()];
        let zeros = || -> Result<Tensor> {
            config.settings().draws.0.fetch_add(1, Ordering::Relaxed);
            Ok(Tensor::zeros(shape.as_slice(), DType::F32, &Device::Cpu)?)
        };
        let vector = source.tensor(KEY, &shape, Init::Computed(&zeros))?;
        Ok(Built::new(Arc::new(ShiftState { vector })))
    }

    fn geometry(
        _: &AdapterConfig<Self>,
        shapes: &LayerShapes,
        weight: Option<&[usize]>,
        transposed: bool,
    ) -> Option<Geometry> {
        let [out_features] = shapes.get(KEY)?[..] else { return None };
        match weight {
            Some(weight) => Some(Geometry::of_weight(Some(weight), transposed)),
            None => Some(Geometry::Linear { in_features: 1, out_features, transposed }),
        }
    }
}

#[derive(Clone, Injectable)]
struct Model {
    first: Adapted<Linear>,
    second: Adapted<Linear>,
}

fn model() -> Model {
    Model {
        first: Linear::new(random(&[4, 3]), Some(random(&[4]))).into(),
        second: Linear::new(random(&[2, 4]), None).into(),
    }
}

impl Model {
    fn forward(&self, x: &Tensor) -> Tensor {
        self.second.forward(&self.first.forward(x).unwrap()).unwrap()
    }
}

#[test]
fn a_method_of_your_own_acts_trains_merges_and_prints() {
    let (mut model, x) = (model(), random(&[5, 3]));
    let before = model.forward(&x);
    model.inject_adapter(&shift(["first"]), "a").unwrap();
    assert!(same_bits(&model.forward(&x), &before));
    randomise(&mut model, "a", 1.0).unwrap();
    let vector = model.adapter_state_dict("a").unwrap()["base_model.model.first.shift"].clone();
    let expected = model.first.base().forward(&x).unwrap().broadcast_add(&vector).unwrap();
    assert_close(
        &model.first.forward(&x).unwrap(),
        &expected,
        Tolerance::absolute(1e-6),
        "the output of the layer",
    );
    let grads = model.forward(&x).sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let (name, var) = model.trainable_parameters().remove(0);
    assert!(name == "first.shift.a" && grads.get(&var).is_some());
    let output = model.forward(&x);
    model.merge_adapters(&MergeOptions::active()).unwrap();
    assert_close(&model.forward(&x), &output, Tolerance::absolute(1e-5), "the output");
    let tree = model.module_tree();
    assert!(
        tree.contains("(shift): ParameterDict(  (a): Parameter containing: [torch.FloatTensor of size 4])")
    );
    assert_eq!(model.model_status().unwrap().peft_types["a"], "SHIFT");
}

#[test]
fn it_acts_together_with_other_methods() {
    let (mut model, x) = (model(), random(&[5, 3]));
    model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(["first", "second"]), "lora").unwrap();
    model.inject_adapter(&shift(["first"]), "shift").unwrap();
    for name in ["lora", "shift"] {
        randomise(&mut model, name, 1.0).unwrap();
    }
    model.set_adapters(&["lora", "shift"]).unwrap();
    let output = model.forward(&x);
    model.merge_adapters(&MergeOptions::active()).unwrap();
    assert_close(&model.forward(&x), &output, Tolerance::absolute(1e-4), "the output");
    model.unmerge_adapters().unwrap();
    let options = CombineOptions::new(CombinationType::Linear);
    let error = model.add_weighted_adapter(&[("shift", 1.0)], "sum", &options).unwrap_err();
    assert_eq!(error.to_string(), "cannot combine adapter `shift`: Shift has no weighted combination");
    // Without a bias, merging is impossible, which is known before anything is merged.
    model.inject_adapter(&shift(["first", "second"]), "both").unwrap();
    let error = model.merge_adapters(&MergeOptions::adapters(["both"])).unwrap_err();
    assert_eq!(error.to_string(), "cannot merge adapter `both` into `second`: there is no bias to shift");
    assert!(same_bits(&model.forward(&x), &output));
}

#[test]
fn initial_values_are_worked_out_only_for_tensors_that_nothing_supplies() {
    let config = shift(["first", "second"]);
    let draws = || config.settings().draws();
    let mut source = model();
    source.inject_adapter(&config, "a").unwrap();
    assert_eq!(draws(), 2, "one for each layer");
    randomise(&mut source, "a", 1.0).unwrap();
    let state = source.adapter_state_dict("a").unwrap();
    let mut other = model();
    let report = other.inject_adapter_from_state_dict(&state, &config, "a").unwrap();
    assert_eq!((report.adapted.len(), draws()), (2, 2), "values of a state dict replace none");
    let read = other.adapter_state_dict("a").unwrap();
    assert!(state.iter().all(|(key, tensor)| same_bits(tensor, &read[key])));
}
