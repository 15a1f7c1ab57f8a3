//! Copies of modules and biases of the base, which train along with an adapter.

use peft_runtime::prelude::*;
use peft_tests::tensors::{random, randomise, same_bits};

use crate::{Model, lora};

#[test]
fn a_module_to_save_trains_as_a_copy_of_its_own() {
    let (mut model, x) = (Model::new(), random(&[4, 5]));
    let base = model.forward(&x);
    model.inject_adapter(&lora().with_modules_to_save(["head", "norm"]), "a").unwrap();
    assert!(same_bits(&model.forward(&x), &base), "a copy starts as what it copies");
    let names: Vec<String> = model.trainable_parameters().into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "first.lora_A.a.weight",
            "first.lora_B.a.weight",
            "norm.modules_to_save.a.weight",
            "norm.modules_to_save.a.bias",
            "head.modules_to_save.a.weight",
            "head.modules_to_save.a.bias",
        ]
    );
    let grads = model.forward(&x).sqr().unwrap().sum_all().unwrap().backward().unwrap();
    assert!(model.trainable_parameters().iter().all(|(_, var)| grads.get(var).is_some()));

    randomise(&mut model, "a", 0.5).unwrap();
    let with_a = model.forward(&x);
    let state = model.adapter_state_dict("a").unwrap();
    assert!(
        state.contains_key("base_model.model.head.weight")
            && state.contains_key("base_model.model.norm.bias")
    );
    model.add(&lora().with_modules_to_save(["head"]), "b");
    let error = model.set_adapters(&["a", "b"]).unwrap_err();
    assert_eq!(error.to_string(), "adapters `a` and `b` all replace `head`; only one of them can be active");
    assert!(same_bits(&model.forward(&x), &with_a));
    model.unload().unwrap();
    assert!(!same_bits(&model.forward(&x), &base), "the copies of the active adapter stay");
    assert!(same_bits(&model.base_state_dict()["head.weight"], &state["base_model.model.head.weight"]));
}

#[test]
fn biases_of_the_base_train_where_the_config_says_so() {
    let bias_names = |bias| {
        let mut model = Model::new();
        model.inject_adapter(&lora().with_bias(bias), "a").unwrap();
        let names = model
            .trainable_parameters()
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| name.ends_with("bias"));
        (names.collect::<Vec<_>>(), model.adapter_state_dict("a").unwrap().len())
    };
    assert_eq!(bias_names(Bias::None), (vec![], 2));
    assert_eq!(bias_names(Bias::LoraOnly), (vec!["first.base_layer.bias".to_owned()], 3));
    let all = ["first.base_layer.bias", "norm.bias", "head.bias", "plain.bias"].map(str::to_owned).to_vec();
    assert_eq!(bias_names(Bias::All), (all, 6));

    let (mut model, x) = (Model::new(), random(&[4, 5]));
    model.inject_adapter(&lora().with_bias(Bias::All), "a").unwrap();
    let grads = model.forward(&x).sqr().unwrap().sum_all().unwrap().backward().unwrap();
    assert!(model.trainable_parameters().iter().all(|(_, var)| grads.get(var).is_some()));
    randomise(&mut model, "a", 0.5).unwrap();
    let trained = model.base_state_dict()["plain.bias"].copy().unwrap();
    model.delete_adapter("a").unwrap();
    assert!(
        same_bits(&model.base_state_dict()["plain.bias"], &trained),
        "the biases are the base model's own"
    );
    assert!(!model.forward(&x).track_op(), "and constants again");
}
