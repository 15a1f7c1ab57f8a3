//! AdamW against PyTorch, and its state.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};

use super::{AdamW, AdamWOptions};
use crate::training::group::ParameterGroup;
use crate::training::optimizer::Optimizer;

fn var(values: &[f64], dtype: DType) -> Var {
    Var::from_tensor(&Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// sin(1 + number + 0.7·step + i), as in the program that produced the expected values.
fn gradient(var: &Var, number: usize, step: usize) -> Tensor {
    let value = |i: usize| (1.0 + number as f64 + 0.7 * step as f64 + i as f64).sin();
    let grad: Vec<f64> = (0..var.elem_count()).map(value).collect();
    Tensor::new(grad, &Device::Cpu).unwrap().to_dtype(var.dtype()).unwrap()
}

/// Two groups, of which the second has no gradient in the second step.
fn two_groups(dtype: DType) -> (AdamW, [Var; 2]) {
    let vars = [var(&[1.0, -2.0, 3.0, 0.5], dtype), var(&[0.25, -0.75], dtype)];
    let one = |name: &str, var: &Var| vec![(name.to_owned(), var.clone())];
    let groups = vec![
        ParameterGroup::new("first", one("p", &vars[0]), 0.1),
        ParameterGroup::new("second", one("q", &vars[1]), 0.03).with_weight_decay(0.0),
    ];
    (AdamW::new(groups).unwrap(), vars)
}

fn run(optimizer: &mut AdamW, vars: &[Var; 2], steps: std::ops::Range<usize>) {
    for step in steps {
        let mut grads = GradStore::default();
        for (number, var) in vars.iter().enumerate() {
            if (number, step) != (1, 1) {
                grads.insert(var, gradient(var, number, step));
            }
        }
        optimizer.step(&grads, 1.0).unwrap();
    }
}

#[test]
fn three_steps_are_those_of_pytorch() {
    // torch 2.15: torch.optim.AdamW([{p, lr=0.1, weight_decay=0.01}, {q, lr=0.03, weight_decay=0}], foreach=False)
    // with the gradients of `gradient`, and `q.grad = None` in the second step.
    let expected = [0.6990988479466411, -2.2394011876309956, 3.0222743660045523, 0.7971476731356179];
    let expected = (expected, [0.206691239909881, -0.7608644995511084]);
    // torch keeps the moments of bf16 in bf16.
    let tolerances = [(DType::F64, 1e-14), (DType::F32, 1e-6), (DType::BF16, 0.03)];
    for (dtype, tolerance) in tolerances {
        let (mut optimizer, vars) = two_groups(dtype);
        run(&mut optimizer, &vars, 0..3);
        let found = [values(&vars[0]), values(&vars[1])].concat();
        let expected = expected.0.iter().chain(&expected.1);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < tolerance, "{dtype:?}: {found} {expected}");
        }
    }
}

#[test]
fn a_saved_and_loaded_optimizer_goes_on_with_the_same_bits() {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let (mut through, vars) = two_groups(dtype);
        run(&mut through, &vars, 0..5);
        let (mut first, early) = two_groups(dtype);
        run(&mut first, &early, 0..2);
        let (mut second, late) = two_groups(dtype);
        second.load_state(&first.state().unwrap()).unwrap();
        for (early, late) in early.iter().zip(&late) {
            late.set(early).unwrap();
        }
        run(&mut second, &late, 2..5);
        for (through, late) in vars.iter().zip(&late) {
            assert_eq!(values(through), values(late));
        }
    }
}

#[test]
fn the_state_of_another_optimizer_is_refused_and_changes_nothing() {
    let (mut optimizer, vars) = two_groups(DType::F32);
    run(&mut optimizer, &vars, 0..2);
    let mut state = optimizer.state().unwrap();
    let before = values(&state["exp_avg.p"]);
    state.insert("exp_avg.r".to_owned(), Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap());
    state.insert("exp_avg_sq.q".to_owned(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
    state.remove("step.p");
    state.insert("exp_avg.p".to_owned(), Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap());
    let error = optimizer.load_state(&state).unwrap_err().to_string();
    assert!(["exp_avg.r", "exp_avg_sq.q", "step.p"].iter().all(|key| error.contains(key)), "{error}");
    assert_eq!(values(&optimizer.state().unwrap()["exp_avg.p"]), before);
}

#[test]
fn values_out_of_range_and_doubled_variables_are_refused() {
    let x = var(&[1.0], DType::F32);
    let one = |name: &str| (name.to_owned(), x.clone());
    let group = |parameters, rate| ParameterGroup::new("all", parameters, rate);
    let refused = [
        AdamW::new(vec![group(vec![one("x")], -0.1)]),
        AdamW::new(vec![group(vec![one("x")], f64::NAN)]),
        AdamW::new(vec![group(vec![one("x"), one("x")], 0.1)]),
        AdamW::new(vec![group(vec![one("x"), one("y")], 0.1)]),
        AdamW::new(vec![group(vec![one("x")], 0.1).with_weight_decay(-1.0)]),
        AdamW::with_options(vec![group(vec![one("x")], 0.1)], AdamWOptions::new().with_betas(0.9, 1.0)),
    ];
    assert!(refused.iter().all(Result::is_err));
}
