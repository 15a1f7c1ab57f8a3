//! A method of one's own: what it takes, and that its initial values are worked out only where nothing else supplies them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Linear, Module};
use peft_runtime::adapter::{
    Adapter, AdapterMethod, AdapterTensor, Built, Call, Component, Geometry, Init, LinearParameters,
    MergeError, Selection, Site, TensorSource,
};
use peft_runtime::error::Fault;
use peft_runtime::prelude::*;
use peft_runtime::schema::LayerKind;
use peft_runtime::{ModulePath, Result};
use peft_tests::specimen::{bits, distance, randomise};

/// Adds a vector to the output of a layer.
#[derive(Clone, Debug)]
struct Shift {
    targets: TargetModules,
    /// How many initial values were worked out.
    draws: Arc<AtomicUsize>,
}

/// The vector of one layer.
#[derive(Debug)]
struct ShiftState {
    vector: Var,
}

const KEY: &str = "shift";

impl Shift {
    fn new<const N: usize>(targets: [&str; N]) -> Self {
        Self { targets: targets.into(), draws: Arc::default() }
    }

    fn draws(&self) -> usize {
        self.draws.load(Ordering::Relaxed)
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

    fn components(&self) -> Vec<Component> {
        vec![Component::tensors(KEY, Some(self.vector.as_tensor()))]
    }
}

impl AdapterMethod for Shift {
    fn peft_type(&self) -> &'static str {
        "SHIFT"
    }

    fn selection(&self) -> Selection<'_> {
        let mut selection = Selection::default();
        selection.targets = Some(&self.targets);
        selection
    }

    fn faults(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn check(&self, path: &ModulePath, kind: LayerKind, geometry: &Geometry) -> Option<Fault> {
        let reason = "only linear layers are shifted".to_owned();
        let linear = matches!(geometry, Geometry::Linear { .. });
        let path = path.clone();
        (!linear).then_some(Fault::UnsupportedLayer { path, kind: kind.name, method: "Shift", reason })
    }

    fn build(&self, site: &Site<'_>, source: &mut dyn TensorSource) -> Result<Built> {
        let shape = [site.geometry.out_features()];
        let zeros = || -> Result<Tensor> {
            self.draws.fetch_add(1, Ordering::Relaxed);
            Ok(Tensor::zeros(shape.as_slice(), DType::F32, &Device::Cpu)?)
        };
        let vector = source.tensor(KEY, &shape, Init::Computed(&zeros))?;
        Ok(Built::new(Arc::new(ShiftState { vector })))
    }

    fn resolved(&self, targets: TargetModules, _: bool) -> Arc<dyn AdapterMethod> {
        Arc::new(Self { targets, ..self.clone() })
    }

    fn to_json(&self, _: &[(&ModulePath, &dyn Adapter)]) -> Result<String> {
        Ok(r#"{"peft_type": "SHIFT"}"#.to_owned())
    }

    fn for_tensors(&self, shapes: &BTreeMap<&str, &[usize]>) -> Result<Arc<dyn AdapterMethod>> {
        let targets = TargetModules::names(shapes.keys().filter_map(|key| key.strip_suffix(".shift")));
        Ok(Arc::new(Self { targets, ..self.clone() }))
    }
}

#[derive(Clone, Injectable)]
struct Model {
    first: Adapted<Linear>,
    second: Adapted<Linear>,
}

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap()
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

fn same(a: &Tensor, b: &Tensor) -> bool {
    bits(a).unwrap() == bits(b).unwrap()
}

#[test]
fn a_method_of_ones_own_acts_trains_merges_and_prints() {
    let (mut model, x) = (model(), random(&[5, 3]));
    let before = model.forward(&x);
    model.inject_adapter(&Shift::new(["first"]), "a").unwrap();
    assert!(same(&model.forward(&x), &before));
    randomise(&mut model, "a", 1.0).unwrap();
    let vector = model.adapter_state_dict("a").unwrap()["base_model.model.first.shift"].clone();
    let expected = model.first.base().forward(&x).unwrap().broadcast_add(&vector).unwrap();
    assert!(distance(&model.first.forward(&x).unwrap(), &expected).unwrap() < 1e-6);
    let grads = model.forward(&x).sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let (name, var) = model.trainable_parameters().remove(0);
    assert!(name == "first.shift.a" && grads.get(&var).is_some());
    let output = model.forward(&x);
    model.merge_adapters(&MergeOptions::active()).unwrap();
    assert!(distance(&model.forward(&x), &output).unwrap() < 1e-5);
    let tree = model.module_tree();
    assert!(
        tree.contains("(shift): ParameterDict(  (a): Parameter containing: [torch.FloatTensor of size 4])")
    );
    assert_eq!(model.model_status().unwrap().peft_types["a"], "SHIFT");
}

#[test]
fn it_stands_beside_the_other_methods() {
    let (mut model, x) = (model(), random(&[5, 3]));
    model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(["first", "second"]), "lora").unwrap();
    model.inject_adapter(&Shift::new(["first"]), "shift").unwrap();
    for name in ["lora", "shift"] {
        randomise(&mut model, name, 1.0).unwrap();
    }
    model.set_adapters(&["lora", "shift"]).unwrap();
    let output = model.forward(&x);
    model.merge_adapters(&MergeOptions::active()).unwrap();
    assert!(distance(&model.forward(&x), &output).unwrap() < 1e-4);
    model.unmerge_adapters().unwrap();
    let options = CombineOptions::new(CombinationType::Linear);
    let error = model.add_weighted_adapter(&[("shift", 1.0)], "sum", &options).unwrap_err();
    assert_eq!(error.to_string(), "cannot combine adapter `shift`: SHIFT has no weighted combination");
    // Without a bias there is no merged form, which is known before anything is merged.
    model.inject_adapter(&Shift::new(["first", "second"]), "both").unwrap();
    let error = model.merge_adapters(&MergeOptions::adapters(["both"])).unwrap_err();
    assert_eq!(error.to_string(), "cannot merge adapter `both` into `second`: there is no bias to shift");
    assert!(same(&model.forward(&x), &output));
}

#[test]
fn initial_values_are_worked_out_only_for_tensors_that_nothing_supplies() {
    let shift = Shift::new(["first", "second"]);
    let mut source = model();
    source.inject_adapter(&shift, "a").unwrap();
    assert_eq!(shift.draws(), 2, "one for each layer");
    randomise(&mut source, "a", 1.0).unwrap();
    let state = source.adapter_state_dict("a").unwrap();
    let mut other = model();
    let report = other.inject_adapter_from_state_dict(&state, &shift, "a").unwrap();
    assert_eq!((report.adapted.len(), shift.draws()), (2, 2), "values of a state dict replace none");
    let read = other.adapter_state_dict("a").unwrap();
    assert!(state.iter().all(|(key, tensor)| same(tensor, &read[key])));
}
