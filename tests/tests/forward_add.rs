//! A residual connection by `forward_add` or `forward_swiglu_add` is the sum of the residual and the layer's output, whatever
//! adapters the layer has.

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{Linear, Module};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::nn::{AnyLinear, QuantizedLinear, TransposedLinear, swiglu};
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::float_types::{FLOAT_TYPES, FloatType};
use peft_tests::methods::{METHODS, every_pair};
use peft_tests::specimen::Kind;
use peft_tests::tensors::{random_with, randomise};

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

    fn forward_swiglu_add(&self, gate: &Tensor, up: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match &self.layer {
            AnyLayer::Linear(layer) => layer.forward_swiglu_add(gate, up, residual),
            AnyLayer::Transposed(layer) => layer.forward_swiglu_add(gate, up, residual),
            AnyLayer::Quantized(layer) => layer.forward_swiglu_add(gate, up, residual),
            AnyLayer::Any(layer) => layer.forward_swiglu_add(gate, up, residual),
        }
    }
}

fn random(shape: &[usize], dtype: DType) -> Tensor {
    random_with(shape, 0.5).to_dtype(dtype).unwrap()
}

/// Two inputs and a residual that require gradients.
fn variables(dtype: DType) -> [Var; 3] {
    let variable = |features: usize| Var::from_tensor(&random(&[ROWS, 5, features], dtype)).unwrap();
    [variable(IN), variable(IN), variable(OUT)]
}

/// Compares values that a model in `dtype` computed.
fn assert_same_sum(ours: &Tensor, theirs: &Tensor, dtype: DType, what: &str) {
    assert_eq!((ours.dims(), ours.dtype()), (theirs.dims(), theirs.dtype()), "{what}");
    // The separate ops round the layer's output before they add it.
    let roundings = match dtype {
        DType::BF16 => f64::powi(2.0, -6),
        DType::F16 => f64::powi(2.0, -9),
        _ => 1e-5,
    };
    let share = Tolerance::of_largest(roundings, theirs);
    assert_close(ours, theirs, Tolerance::absolute(1e-5 + share.atol), what);
}

/// Checks sums in one pass, or what replaces them, against the separate ops, in value and gradients.
fn check(model: &Model, dtype: DType, what: &str) {
    let [x, up, residual] = variables(dtype);
    let sum = |x: &Tensor| (residual.as_tensor() + model.forward(x).unwrap()).unwrap();
    let plain = (model.forward_add(&x, &residual).unwrap(), sum(&x));
    let gated = model.forward_swiglu_add(&x, &up, &residual).unwrap();
    let gated = (gated, sum(&swiglu(&x, &up).unwrap()));
    let trained = model.trainable_parameters().into_iter().map(|(_, variable)| variable);
    let variables: Vec<Var> = [x.clone(), up.clone(), residual.clone()].into_iter().chain(trained).collect();
    for (ours, theirs) in [plain, gated] {
        assert_same_sum(&ours, &theirs, dtype, what);
        let grads = |y: &Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let (ours, theirs) = (grads(&ours), grads(&theirs));
        for variable in &variables {
            match (ours.get(variable), theirs.get(variable)) {
                (Some(ours), Some(theirs)) => assert_same_sum(ours, theirs, dtype, what),
                (ours, theirs) => assert_eq!((ours.is_some(), theirs.is_some()), (false, false), "{what}"),
            }
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
        // Some methods cannot be combined on one layer.
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
    for FloatType { dtype, .. } in FLOAT_TYPES {
        for (kind, method) in every_pair() {
            let Some(model) = Model::of_kind(kind, dtype) else { continue };
            let what = format!("{} on {kind:?} in {dtype:?}", method.name);
            check(&model, dtype, &format!("{what}, without adapters"));
            check_states(&model, &*method.config(), (method.merges(kind), method.pairs), dtype, &what);
        }
    }
}

#[test]
fn every_method_on_a_quantized_layer_adds_to_a_residual() {
    for model in Model::quantized() {
        check(&model, DType::F32, "without adapters");
        for method in METHODS.iter().filter(|method| method.quantized) {
            check_states(&model, &*method.config(), (false, method.pairs), DType::F32, method.name);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = Model::of_kind(Kind::Linear, DType::F32).unwrap();
    let [x, up, residual] = variables(DType::F32);
    let first = |tensor: &Tensor| tensor.narrow(0, 0, 1).unwrap();
    assert!(model.forward_add(&x, &first(&residual)).is_err(), "a residual of the wrong shape");
    assert!(model.forward_add(&residual, &residual).is_err(), "an input of the wrong size");
    assert!(model.forward_swiglu_add(&x, &first(&up), &residual).is_err(), "different shapes");
    assert!(model.forward_swiglu_add(&residual, &residual, &residual).is_err(), "factors of the wrong size");
}

#[test]
fn no_grad_keeps_adapters_out_of_the_graph() {
    let mut model = Model::of_kind(Kind::Linear, DType::F32).unwrap();
    model.inject_adapter(&LoraConfig::new(2, 2.0).with_targets(["layer"]), NAME).unwrap();
    let [x, up, residual] = variables(DType::F32).map(|variable| variable.as_detached_tensor());
    let both = || {
        let sums = [model.forward_add(&x, &residual), model.forward_swiglu_add(&x, &up, &residual)];
        sums.map(|sum| sum.unwrap().track_op())
    };
    assert_eq!(both(), [true, true]);
    assert_eq!(no_grad(both), [false, false]);
}
