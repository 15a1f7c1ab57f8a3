//! A residual connection by `forward_add` is the sum of the residual and the layer's output, whatever is on the layer.

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Linear, Module};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::nn::{AnyLinear, QuantizedLinear, TransposedLinear};
use peft_runtime::prelude::*;
use peft_tests::methods::every_pair;
use peft_tests::specimen::{Kind, bits, distance, randomise};

const NAME: &str = "default";
/// One block of a quantized weight.
const IN: usize = 32;
const OUT: usize = 8;
const ROWS: usize = 3;

/// A layer of a linear kind.
#[derive(Clone, Injectable)]
enum AnyLayer {
    Linear(Adapted<Linear>),
    Transposed(Adapted<TransposedLinear>),
    Quantized(Adapted<QuantizedLinear>),
    Any(Adapted<AnyLinear>),
}

#[derive(Clone, Injectable)]
struct Model {
    layer: AnyLayer,
}

impl Model {
    /// The kinds that the methods of the laws are for.
    fn of_kind(kind: Kind, dtype: DType) -> Option<Self> {
        let bias = || random(&[OUT], dtype);
        let layer = match kind {
            Kind::Linear => AnyLayer::Linear(Linear::new(random(&[OUT, IN], dtype), Some(bias())).into()),
            Kind::LinearNoBias => {
                AnyLayer::Any(AnyLinear::from(Linear::new(random(&[OUT, IN], dtype), None)).into())
            }
            Kind::Transposed => {
                let layer = TransposedLinear::new(random(&[IN, OUT], dtype), Some(bias()));
                AnyLayer::Transposed(layer.into())
            }
            _ => return None,
        };
        Some(Self { layer })
    }

    fn quantized() -> [Self; 2] {
        let dense = Linear::new(random(&[OUT, IN], DType::F32), Some(random(&[OUT], DType::F32)));
        let layer = QuantizedLinear::from_linear(&dense, GgmlDType::Q8_0).unwrap();
        [AnyLayer::Quantized(layer.clone().into()), AnyLayer::Any(AnyLinear::from(layer).into())]
            .map(|layer| Self { layer })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.layer {
            AnyLayer::Linear(layer) => layer.forward(x),
            AnyLayer::Transposed(layer) => layer.forward(x),
            AnyLayer::Quantized(layer) => layer.forward(x),
            AnyLayer::Any(layer) => layer.forward(x),
        }
    }

    fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match &self.layer {
            AnyLayer::Linear(layer) => layer.forward_add(x, residual),
            AnyLayer::Transposed(layer) => layer.forward_add(x, residual),
            AnyLayer::Quantized(layer) => layer.forward_add(x, residual),
            AnyLayer::Any(layer) => layer.forward_add(x, residual),
        }
    }
}

fn random(shape: &[usize], dtype: DType) -> Tensor {
    Tensor::randn(0f32, 0.5, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// An input and a residual that want gradients.
fn variables(dtype: DType) -> (Var, Var) {
    let variable = |shape: &[usize]| Var::from_tensor(&random(shape, dtype)).unwrap();
    (variable(&[ROWS, 5, IN]), variable(&[ROWS, 5, OUT]))
}

fn near(ours: &Tensor, theirs: &Tensor, what: &str) {
    assert_eq!((ours.dims(), ours.dtype()), (theirs.dims(), theirs.dtype()), "{what}");
    let size = distance(theirs, &theirs.zeros_like().unwrap()).unwrap();
    let error = distance(ours, theirs).unwrap();
    assert!(error <= 1e-5 * (1.0 + size), "{what}: {error} of {size}");
}

/// Checks both ways against each other, in value and gradients.
fn check(model: &Model, dtype: DType, what: &str) {
    let (x, residual) = variables(dtype);
    let ours = model.forward_add(&x, &residual).unwrap();
    let theirs = (residual.as_tensor() + model.forward(&x).unwrap()).unwrap();
    if matches!(dtype, DType::F16 | DType::BF16) {
        assert_eq!(bits(&ours).unwrap(), bits(&theirs).unwrap(), "{what}");
    }
    near(&ours, &theirs, what);
    let grads = |y: &Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let (ours, theirs) = (grads(&ours), grads(&theirs));
    let trained = model.trainable_parameters().into_iter().map(|(_, variable)| variable);
    for variable in [x, residual].into_iter().chain(trained) {
        match (ours.get(&variable), theirs.get(&variable)) {
            (Some(ours), Some(theirs)) => near(ours, theirs, what),
            (ours, theirs) => assert_eq!((ours.is_some(), theirs.is_some()), (false, false), "{what}"),
        }
    }
}

/// Checks a model in every state that an adapter can be in.
fn check_states(
    model: &Model,
    config: &dyn AdapterMethod,
    (merges, pairs): (bool, bool),
    dtype: DType,
    what: &str,
) {
    let mut model = model.clone();
    model.inject_adapter(config, NAME).unwrap();
    check(&model, dtype, &format!("{what}, fresh"));
    randomise(&mut model, NAME, 0.3).unwrap();
    check(&model, dtype, &format!("{what}, acting"));
    model.set_trainable(NAME, false).unwrap();
    check(&model, dtype, &format!("{what}, frozen"));
    model.set_trainable(NAME, true).unwrap();
    model.disable_adapters();
    check(&model, dtype, &format!("{what}, disabled"));
    model.enable_adapters();
    if merges {
        model.merge_adapters(&MergeOptions::active()).unwrap();
        check(&model, dtype, &format!("{what}, merged"));
        model.unmerge_adapters().unwrap();
    }
    for rows in [["__base__"; ROWS], [NAME; ROWS], [NAME, "__base__", NAME]] {
        // Some methods do not mix.
        let _ = model.with_adapter_rows(&rows, |model| check(model, dtype, &format!("{what}, {rows:?}")));
    }
    if pairs {
        model.inject_adapter(config, "second").unwrap();
        randomise(&mut model, "second", 0.3).unwrap();
        model.set_adapters(&[NAME, "second"]).unwrap();
        check(&model, dtype, &format!("{what}, two"));
        model.set_adapter("second").unwrap();
        check(&model, dtype, &format!("{what}, the second"));
    }
}

#[test]
fn every_method_on_every_linear_layer_adds_to_a_residual() {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        for (kind, method) in every_pair() {
            let Some(model) = Model::of_kind(kind, dtype) else { continue };
            let what = format!("{} on {kind:?} in {dtype:?}", method.name);
            check(&model, dtype, &format!("{what}, without adapters"));
            check_states(&model, &*method.config, (method.merges, method.pairs), dtype, &what);
        }
    }
}

#[test]
fn quantized_layers_do_so_too() {
    let lora = LoraConfig::new(4, 6.0).with_targets(["layer"]);
    let ia3 = |feedforward: Vec<&str>| Ia3Config::new().with_targets(["layer"]).with_feedforward(feedforward);
    let methods: [(&str, Box<dyn AdapterMethod>); 4] = [
        ("lora", Box::new(lora.clone())),
        ("dora", Box::new(lora.with_dora(true))),
        ("ia3 on the output", Box::new(ia3(Vec::new()))),
        ("ia3 on the input", Box::new(ia3(vec!["layer"]))),
    ];
    for model in Model::quantized() {
        check(&model, DType::F32, "without adapters");
        for (what, config) in &methods {
            check_states(&model, &**config, (false, true), DType::F32, what);
        }
    }
}

#[test]
fn the_residual_has_the_shape_of_the_output() {
    let model = Model::of_kind(Kind::Linear, DType::F32).unwrap();
    let (x, residual) = variables(DType::F32);
    assert!(model.forward_add(&x, &residual.narrow(0, 0, 1).unwrap()).is_err());
    assert!(model.forward_add(&residual, &residual).is_err());
}

#[test]
fn no_grad_keeps_adapters_out_of_the_graph() {
    let mut model = Model::of_kind(Kind::Linear, DType::F32).unwrap();
    model.inject_adapter(&LoraConfig::new(2, 2.0).with_targets(["layer"]), NAME).unwrap();
    let (x, residual) = variables(DType::F32);
    let (x, residual) = (x.as_detached_tensor(), residual.as_detached_tensor());
    assert!(model.forward_add(&x, &residual).unwrap().track_op());
    assert!(!no_grad(|| model.forward_add(&x, &residual)).unwrap().track_op());
}
