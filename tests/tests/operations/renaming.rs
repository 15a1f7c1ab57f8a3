//! An adapter under another name.

use peft_runtime::Error;
use peft_runtime::prelude::*;
use peft_tests::tensors::same_bits;

use crate::{Model, lora};

#[test]
fn a_renamed_adapter_is_the_same_under_another_name() {
    let x = Model::input();
    let mut model = Model::new().with(&lora().with_modules_to_save(["norm"]), "a");
    model.add(&lora(), "b");
    model.set_adapters(&["b", "a"]).unwrap();
    let (output, state) = (model.forward(&x), model.adapter_state_dict("a").unwrap());
    model.rename_adapter("a", "new").unwrap();
    assert!(same_bits(&model.forward(&x), &output));
    let mut names = model.adapter_names();
    names.sort();
    assert_eq!(names, ["b", "new"]);
    assert_eq!(model.active_adapters(), ["b", "new"]);
    let renamed = model.adapter_state_dict("new").unwrap();
    assert!(renamed.keys().eq(state.keys()));
    assert!(state.iter().all(|(key, tensor)| same_bits(tensor, &renamed[key])));
    assert!(matches!(model.adapter_state_dict("a"), Err(Error::UnknownAdapter { .. })));
    let variables: Vec<String> = model.trainable_parameters().into_iter().map(|(name, _)| name).collect();
    for expected in ["head.lora_A.new.weight", "norm.modules_to_save.new.weight", "head.lora_A.b.weight"] {
        assert!(variables.iter().any(|name| name == expected), "{expected}: {variables:?}");
    }
    assert!(!model.module_tree().contains("(a):"));
}

#[test]
fn a_renamed_adapter_is_saved_under_its_new_name() {
    let mut model = Model::new().with(&lora(), "a");
    model.rename_adapter("a", "new").unwrap();
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(model.save_pretrained(folder.path(), "new").unwrap(), folder.path().join("new"));
    model.rename_adapter("new", "default").unwrap();
    assert_eq!(model.save_pretrained(folder.path(), "default").unwrap(), folder.path());
    let read = |path: &str| std::fs::read(folder.path().join(path)).unwrap();
    assert_eq!(read("adapter_model.safetensors"), read("new/adapter_model.safetensors"));
}

#[test]
fn a_merged_adapter_can_be_renamed() {
    let x = Model::input();
    let mut model = Model::new().with(&lora(), "a");
    let before = model.forward(&x);
    model.merge_adapters(&MergeOptions::active()).unwrap();
    let merged = model.forward(&x);
    model.rename_adapter("a", "new").unwrap();
    assert!(same_bits(&model.forward(&x), &merged));
    assert!(model.layer_status().iter().all(|layer| layer.merged_adapters == ["new"]));
    model.unmerge_adapters().unwrap();
    assert!(same_bits(&model.forward(&x), &before));
}

#[test]
fn an_adapter_may_keep_its_name_and_an_old_name_may_be_used_again() {
    let mut model = Model::new().with(&lora(), "a");
    model.rename_adapter("a", "a").unwrap();
    model.rename_adapter("a", "b").unwrap();
    model.add(&lora(), "a");
    let mut names = model.adapter_names();
    names.sort();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(model.active_adapters(), ["b"]);
}
