//! The custom method on a model: every layer kind, training, other adapters, rows of a batch, combination.

use candle_core::{Device, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, Embedding, LayerNorm, Linear, Module, Optimizer, SGD};
use peft_extension::ScaleConfig;
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close, is_close};
use peft_tests::tensors::{random, randomise, same_bits};

use crate::model::{Model, factor, scale, starting_with};

#[derive(Clone, Injectable)]
#[peft(target = ["embed", "conv", "linear"])]
struct Kinds {
    embed: Adapted<Embedding>,
    conv: Adapted<Conv1d>,
    linear: Adapted<Linear>,
    norm: Adapted<LayerNorm>,
}

impl Kinds {
    fn new() -> Self {
        let conv = Conv1d::new(random(&[4, 3, 1]), Some(random(4)), Conv1dConfig::default());
        Self {
            embed: Embedding::new(random(&[7, 3]), 3).into(),
            conv: conv.into(),
            linear: Linear::new(random(&[2, 4]), None).into(),
            norm: LayerNorm::new(random(2), random(2), 1e-5).into(),
        }
    }

    fn forward(&self, ids: &Tensor) -> Tensor {
        let turn = |hidden: Tensor| hidden.transpose(1, 2).unwrap().contiguous().unwrap();
        let hidden = turn(self.embed.forward(ids).unwrap());
        self.linear.forward(&turn(self.conv.forward(&hidden).unwrap())).unwrap()
    }
}

#[test]
fn it_works_on_every_layer_kind_and_refuses_those_without_an_output_to_scale() {
    let ids = Tensor::new(&[[0u32, 6, 3], [2, 1, 5]], &Device::Cpu).unwrap();
    let mut model = Kinds::new();
    let base = model.forward(&ids);
    // The targets are those that the model declares.
    let report = model.inject_adapter(&starting_with(1.0), "default").unwrap();
    assert_eq!(report.adapted.len(), 3);
    assert_close(&model.forward(&ids), &base, Tolerance::absolute(1e-6), "the output with a fresh adapter");
    randomise(&mut model, "default", 0.5).unwrap();
    let output = model.forward(&ids);
    model.merge_and_unload(&MergeOptions::active()).unwrap();
    assert_close(&model.forward(&ids), &output, Tolerance::absolute(1e-3), "the merged output");

    let error = Kinds::new().inject_adapter(&scale().with_targets(["norm"]), "default").unwrap_err();
    assert!(
        error.to_string().contains("Scale cannot adapt `norm` (LayerNorm): it has no output to scale"),
        "{error}"
    );
}

#[test]
fn invalid_settings_are_refused_by_field() {
    let error = Model::new().inject_adapter(&starting_with(f64::INFINITY).with_targets(["own"]), "endless");
    let error = error.unwrap_err().to_string();
    assert!(error.contains("invalid `start`: inf is not a finite number"), "{error}");
    let error = ScaleConfig::from_json(r#"{"peft_type": "SCALE", "start": "fast"}"#).unwrap_err().chain();
    assert!(error.contains("expected f64"), "{error}");
}

#[test]
fn a_step_of_training_changes_its_numbers_and_nothing_else() {
    let (mut model, x) = (Model::new(), random(&[3, 5]));
    model.inject_adapter(&scale(), "default").unwrap();
    let (base, before) = (model.base_state_dict(), model.loss(&x).to_scalar::<f32>().unwrap());
    let parameters = model.trainable_parameters();
    let names: Vec<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["own.scale_factor.default", "theirs.scale_factor.default"]);
    let variables = parameters.iter().map(|(_, variable)| variable.clone()).collect();
    SGD::new(variables, 1e-3).unwrap().backward_step(&model.loss(&x)).unwrap();
    assert!(model.loss(&x).to_scalar::<f32>().unwrap() < before);
    assert!(factor(&model, "default", "own") != 1.0 && factor(&model, "default", "theirs") != 1.0);
    let after = model.base_state_dict();
    assert!(base.iter().all(|(name, tensor)| same_bits(tensor, &after[name])));
}

#[test]
fn the_module_tree_and_the_status_show_it_under_its_own_names() {
    let mut model = Model::new();
    model.inject_adapter(&scale(), "default").unwrap();
    let tree = model.module_tree();
    assert!(tree.contains("(theirs): scale.Linear("), "{tree}");
    let shown =
        "(scale_factor): ParameterDict(  (default): Parameter containing: [torch.FloatTensor of size 1])";
    assert_eq!(tree.matches(shown).count(), 2, "{tree}");
    assert_eq!(model.model_status().unwrap().peft_types["default"], "SCALE");
}

#[test]
fn it_acts_alongside_other_methods_and_in_single_rows() {
    let (mut model, x) = (Model::new(), random(&[2, 5]));
    let base = model.forward(&x);
    model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(targets!(Model; "theirs")), "lora").unwrap();
    randomise(&mut model, "lora", 0.5).unwrap();
    model.inject_adapter(&starting_with(2.0).with_targets(targets!(Model; "own")), "scale").unwrap();
    model.set_adapter("lora").unwrap();
    let lora = model.forward(&x);
    model.set_adapter("scale").unwrap();
    let scale = model.forward(&x);
    model.eval();
    let rows = model.with_adapter_rows(&["lora", "scale"], |model| model.forward(&x)).unwrap();
    let row = |tensor: &Tensor, row: usize| tensor.narrow(0, row, 1).unwrap();
    assert_close(&row(&rows, 0), &row(&lora, 0), Tolerance::absolute(1e-5), "the row with LoRA");
    assert_close(&row(&rows, 1), &row(&scale, 1), Tolerance::absolute(1e-5), "the row with Scale");
    assert!(!is_close(&scale, &base, Tolerance::absolute(1e-3)));
    model.set_adapters(&["lora", "scale"]).unwrap();
    assert!(!is_close(&model.forward(&x), &lora, Tolerance::absolute(1e-3)));
}

#[test]
fn several_of_its_adapters_become_one_on_the_layers_of_all() {
    let mut model = Model::new();
    model.inject_adapter(&starting_with(3.0).with_targets(targets!(Model; "own")), "triple").unwrap();
    model.inject_adapter(&starting_with(1.5).with_targets(targets!(Model; "own", "theirs")), "more").unwrap();
    let parts = [("triple", 0.5), ("more", 2.0)];
    model.add_weighted_adapter(&parts, "sum", &CombineOptions::default()).unwrap();
    // 1 + 0.5 · (3 − 1) + 2 · (1.5 − 1), and the same without the first adapter.
    assert_eq!((factor(&model, "sum", "own"), factor(&model, "sum", "theirs")), (3.0, 2.0));
    model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(targets!(Model; "own")), "lora").unwrap();
    let mixed = [("more", 1.0), ("lora", 1.0)];
    let error = model.add_weighted_adapter(&mixed, "mixed", &CombineOptions::default()).unwrap_err();
    assert!(error.to_string().contains("`lora` uses LORA, and the first adapter uses SCALE"), "{error}");
}
