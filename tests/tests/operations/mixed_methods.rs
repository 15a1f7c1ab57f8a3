//! LoRA and IA3 together on one model, compared with formulas; and an adapter for each row.

use candle_core::{DType, Tensor};
use candle_nn::{Linear, Module};
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::{random, randomise, same_bits};

use crate::{Model, lora};

/// One layer in double precision, so that formulas can be compared closely.
#[derive(Clone, Injectable)]
struct One {
    lin: Adapted<Linear>,
}

fn wide(shape: &[usize]) -> Tensor {
    random(shape).to_dtype(DType::F64).unwrap()
}

/// A layer with LoRA called `lora` and IA3 called `ia3`, on its output or its input, both acting.
fn both(feedforward: bool) -> One {
    let mut model = One { lin: Linear::new(wide(&[6, 5]), Some(wide(&[6]))).into() };
    model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(["lin"]), "lora").unwrap();
    let named = if feedforward { vec!["lin"] } else { Vec::new() };
    model.inject_adapter(&Ia3Config::new().with_targets(["lin"]).with_feedforward(named), "ia3").unwrap();
    for name in ["lora", "ia3"] {
        randomise(&mut model, name, 0.5).unwrap();
    }
    model
}

/// W, b, ΔW = 2·B·A and the vector of IA3, read from the state dicts.
fn parts(model: &One) -> [Tensor; 4] {
    let (base, lora, ia3) = (
        model.base_state_dict(),
        model.adapter_state_dict("lora").unwrap(),
        model.adapter_state_dict("ia3").unwrap(),
    );
    let factor = |name: &str| lora[&format!("base_model.model.lin.lora_{name}.weight")].clone();
    let delta = (factor("B").matmul(&factor("A")).unwrap() * 2.0).unwrap();
    let vector = ia3["base_model.model.lin.ia3_l"].flatten_all().unwrap();
    [base["lin.weight"].clone(), base["lin.bias"].clone(), delta, vector]
}

fn times(x: &Tensor, weight: &Tensor) -> Tensor {
    x.matmul(&weight.t().unwrap()).unwrap()
}

#[test]
fn lora_and_ia3_act_one_after_the_other_in_either_order() {
    for feedforward in [false, true] {
        let mut model = both(feedforward);
        let [weight, bias, delta, vector] = parts(&model);
        let x = wide(&[3, 5]);
        let plus = |a: &Tensor, b: &Tensor| a.broadcast_add(b).unwrap();
        let scaled = |y: &Tensor| y.broadcast_mul(&vector).unwrap();
        let expected = |lora_first: bool| match (feedforward, lora_first) {
            // The whole output with its bias times the vector, or IA3's output plus LoRA's part.
            (false, true) => scaled(&plus(&times(&x, &(&weight + &delta).unwrap()), &bias)),
            (false, false) => plus(&scaled(&plus(&times(&x, &weight), &bias)), &times(&x, &delta)),
            // IA3 scales the input of the layer as LoRA left it; LoRA after it has its own input.
            (true, true) => plus(&times(&scaled(&x), &(&weight + &delta).unwrap()), &bias),
            (true, false) => plus(&plus(&times(&scaled(&x), &weight), &bias), &times(&x, &delta)),
        };
        for (order, lora_first) in [(["lora", "ia3"], true), (["ia3", "lora"], false)] {
            model.set_adapters(&order).unwrap();
            let output = model.lin.forward(&x).unwrap();
            assert_close(
                &output,
                &expected(lora_first),
                Tolerance::absolute(1e-6),
                format_args!("input scaled: {feedforward}, {order:?}"),
            );
            model.merge_adapters(&MergeOptions::active()).unwrap();
            assert_close(
                &output,
                &model.lin.forward(&x).unwrap(),
                Tolerance::absolute(1e-6),
                format_args!("merged, input scaled: {feedforward}, {order:?}"),
            );
            model.unmerge_adapters().unwrap();
            assert!(same_bits(&model.lin.forward(&x).unwrap(), &output));
        }
    }
}

#[test]
fn each_is_saved_and_loaded_without_the_other() {
    let x = wide(&[3, 5]);
    let mut model = both(true);
    let folder = tempfile::tempdir().unwrap();
    let mut other = model.clone();
    for name in ["lora", "ia3"] {
        model.save_pretrained(folder.path(), name).unwrap();
        other.delete_adapter(name).unwrap();
    }
    assert!(other.adapter_names().is_empty());
    for name in ["ia3", "lora"] {
        other.load_adapter(folder.path(), name).unwrap();
    }
    for order in [["lora", "ia3"], ["ia3", "lora"]] {
        model.set_adapters(&order).unwrap();
        other.set_adapters(&order).unwrap();
        assert!(same_bits(&model.lin.forward(&x).unwrap(), &other.lin.forward(&x).unwrap()), "{order:?}");
    }
    let types = model.model_status().unwrap().peft_types;
    assert_eq!((types["lora"], types["ia3"]), ("LORA", "IA3"));
}

#[test]
fn deleting_one_leaves_the_other() {
    let x = wide(&[3, 5]);
    for (gone, left) in [("lora", "ia3"), ("ia3", "lora")] {
        let mut model = both(false);
        model.set_adapter(left).unwrap();
        let alone = model.lin.forward(&x).unwrap();
        model.set_adapters(&["lora", "ia3"]).unwrap();
        model.delete_adapter(gone).unwrap();
        assert_eq!((model.adapter_names(), model.active_adapters()), (vec![left.into()], vec![left.into()]));
        assert!(same_bits(&model.lin.forward(&x).unwrap(), &alone), "{left}");
    }
}

#[test]
fn rows_of_a_batch_may_have_different_methods() {
    for feedforward in [false, true] {
        let mut model = both(feedforward);
        let x = wide(&[5, 5]);
        let rows = ["ia3", "lora", "__base__", "ia3", "lora"];
        let mixed = model.with_adapter_rows(&rows, |model| model.lin.forward(&x)).unwrap().unwrap();
        for (index, name) in rows.into_iter().enumerate() {
            let active: &[&str] = if name == "__base__" { &[] } else { &[name] };
            model.set_adapters(active).unwrap();
            let alone = model.lin.forward(&x).unwrap();
            assert_close(
                &mixed.get(index).unwrap(),
                &alone.get(index).unwrap(),
                Tolerance::absolute(1e-9),
                format_args!("input scaled: {feedforward}, row {index}"),
            );
        }
    }
}

#[test]
fn rows_of_a_batch_may_have_updates_of_any_form() {
    let base = Model::new();
    let mut model = base.with(&lora(), "lora");
    let targets = ["lin", "out", "head"];
    model.add(&LohaConfig::new(1, 3.0).with_targets(targets), "loha");
    model.add(&LohaConfig::new(3, 3.0).with_targets(["head"]), "loha of a high rank");
    model.add(&LokrConfig::new(1, 2.0).with_targets(targets), "lokr");
    let x = random(&[6, 5]);
    let rows = ["lokr", "loha", "__base__", "loha of a high rank", "lora", "lokr"];
    let mixed = model.with_adapter_rows(&rows, |model| model.forward(&x)).unwrap();
    for (index, name) in rows.into_iter().enumerate() {
        let active: &[&str] = if name == "__base__" { &[] } else { &[name] };
        model.set_adapters(active).unwrap();
        let alone = model.forward(&x);
        assert_close(
            &mixed.get(index).unwrap(),
            &alone.get(index).unwrap(),
            Tolerance::absolute(1e-4),
            format_args!("row {index} of {name}"),
        );
    }
}

#[test]
fn gradients_reach_both() {
    let mut model = both(true);
    model.set_adapters(&["lora", "ia3"]).unwrap();
    let loss = model.lin.forward(&wide(&[3, 5])).unwrap().sqr().unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    let parameters = model.trainable_parameters();
    let names: Vec<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["lin.lora_A.lora.weight", "lin.lora_B.lora.weight", "lin.ia3_l.ia3"]);
    assert!(parameters.iter().all(|(_, var)| grads.get(var).is_some()));
}

#[test]
fn while_adapters_are_disabled_all_rows_are_those_of_the_base_even_where_something_is_merged() {
    let (base, x) = (Model::new(), Model::input());
    let mut model = base.with(&lora(), "a");
    for merge in [false, true] {
        if merge {
            model.merge_adapters(&MergeOptions::active()).unwrap();
        }
        model.disable_adapters();
        let output =
            model.with_adapter_rows(&["a", "__base__", "a", "a"], |model| model.forward(&x)).unwrap();
        assert!(same_bits(&output, &base.forward(&x)), "merged: {merge}");
        model.enable_adapters();
    }
}
