//! Files: what is written, what is refused, and that a failed load changes nothing.

mod configs;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Embedding, Linear};
use peft_runtime::prelude::*;
use peft_runtime::{Error, ModelWeights};
use peft_tests::tensors::{bits, random, randomise};
use serde_json::{Value, json};

#[derive(Clone, Injectable)]
struct Model {
    embed: Adapted<Embedding>,
    lin0: Adapted<Linear>,
    lin1: Adapted<Linear>,
}

fn model() -> Model {
    Model {
        embed: Embedding::new(random(&[7, 5]), 5).into(),
        lin0: Linear::new(random(&[6, 5]), Some(random(&[6]))).into(),
        lin1: Linear::new(random(&[2, 6]), Some(random(&[2]))).into(),
    }
}

/// A folder with a saved adapter `default`, and the model it was saved from.
fn saved(config: &LoraConfig) -> (tempfile::TempDir, Model) {
    let mut model = model();
    model.inject_adapter(config, "default").unwrap();
    randomise(&mut model, "default", 0.5).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), "default").unwrap();
    (folder, model)
}

fn lora() -> LoraConfig {
    LoraConfig::new(2, 4.0).with_targets(["lin0", "lin1"])
}

/// The text of a failed load, which must leave the model as it was.
fn load_error(folder: &Path) -> String {
    let mut model = model();
    let before = (model.module_tree(), model.trainable_summary());
    let base = model.base_state_dict();
    let error = model.load_adapter(folder, "default").unwrap_err();
    assert_eq!((model.module_tree(), model.trainable_summary()), before);
    assert!(
        base.iter()
            .all(|(key, tensor)| bits(tensor).unwrap() == bits(&model.base_state_dict()[key]).unwrap())
    );
    error.chain()
}

fn write_weights(folder: &Path, tensors: &BTreeMap<String, Tensor>) {
    let bytes = safetensors::serialize(tensors.iter(), None).unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), bytes).unwrap();
}

fn edit_config(folder: &Path, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = folder.join("adapter_config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    edit(config.as_object_mut().unwrap());
    std::fs::write(path, config.to_string()).unwrap();
}

#[test]
fn keys_metadata_and_order_are_those_of_peft() {
    let (folder, _) = saved(&lora().with_modules_to_save(["embed"]).with_bias(Bias::LoraOnly));
    let bytes = std::fs::read(folder.path().join("adapter_model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata: BTreeMap<String, String> = header.metadata().clone().unwrap().into_iter().collect();
    assert_eq!(metadata, [("format".to_owned(), "pt".to_owned())].into());
    assert_eq!(
        header.offset_keys(),
        [
            "base_model.model.embed.weight",
            "base_model.model.lin0.base_layer.bias",
            "base_model.model.lin0.lora_A.weight",
            "base_model.model.lin0.lora_B.weight",
            "base_model.model.lin1.base_layer.bias",
            "base_model.model.lin1.lora_A.weight",
            "base_model.model.lin1.lora_B.weight",
        ]
    );
}

#[test]
fn a_damaged_or_foreign_weights_file_is_refused_with_its_name() {
    let (folder, _) = saved(&lora());
    let path = folder.path().join("adapter_model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for damaged in [&whole[..whole.len() - 3], &whole[..20], b"not a safetensors file at all".as_slice(), b""]
    {
        std::fs::write(&path, damaged).unwrap();
        let text = load_error(folder.path());
        assert!(text.contains("adapter_model.safetensors"), "{text}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(load_error(folder.path()).contains("cannot open"));
    std::fs::write(folder.path().join("adapter_config.json"), "{").unwrap();
    assert!(load_error(folder.path()).contains("not a valid adapter config"));
    let empty = tempfile::tempdir().unwrap();
    assert!(load_error(empty.path()).contains("adapter_config.json"));
}

#[test]
fn missing_unexpected_and_misshapen_tensors_are_all_named() {
    let (folder, model) = saved(&lora());
    let mut tensors = model.adapter_state_dict("default").unwrap();
    let moved = tensors.remove("base_model.model.lin0.lora_A.weight").unwrap();
    tensors.insert("base_model.model.lin9.lora_A.weight".into(), moved);
    tensors.insert("base_model.model.lin1.lora_B.weight".into(), random(&[2, 3]));
    write_weights(folder.path(), &tensors);
    let text = load_error(folder.path());
    for part in [
        "missing: `lin0.lora_A.weight`",
        "unexpected: `lin9.lora_A.weight`",
        "`lin1.lora_B.weight` has shape [2, 3], expected [2, 2]",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn keys_without_the_prefix_and_other_dtypes_are_accepted() {
    let (folder, saved) = saved(&lora());
    let tensors = saved.adapter_state_dict("default").unwrap().into_iter();
    let bare = |(key, tensor): (String, Tensor)| {
        (key.strip_prefix("base_model.model.").unwrap().to_owned(), tensor.to_dtype(DType::BF16).unwrap())
    };
    write_weights(folder.path(), &tensors.map(bare).collect());
    let mut model = model();
    model.load_adapter(folder.path(), "default").unwrap();
    assert!(model.adapter_state_dict("default").unwrap().values().all(|tensor| tensor.dtype() == DType::F32));
}

#[test]
fn parameters_of_the_base_model_in_a_file_are_loaded_too() {
    let (folder, saved) = saved(&lora());
    let mut tensors = saved.adapter_state_dict("default").unwrap();
    tensors.insert("base_model.model.embed.weight".into(), random(&[7, 5]));
    tensors.insert("base_model.model.lin0.base_layer.bias".into(), random(&[6]));
    write_weights(folder.path(), &tensors);
    let mut model = model();
    let report = model.load_adapter(folder.path(), "default").unwrap();
    assert_eq!(report.base_parameters, ["embed.weight", "lin0.bias"]);
    let base = model.base_state_dict();
    assert_eq!(
        bits(&base["embed.weight"]).unwrap(),
        bits(&tensors["base_model.model.embed.weight"]).unwrap()
    );
    assert_eq!(
        bits(&base["lin0.bias"]).unwrap(),
        bits(&tensors["base_model.model.lin0.base_layer.bias"]).unwrap()
    );

    tensors.insert("base_model.model.embed.weight".into(), random(&[8, 5]));
    write_weights(folder.path(), &tensors);
    assert!(load_error(folder.path()).contains("`embed.weight` has shape [8, 5], expected [7, 5]"));
}

#[test]
fn an_adapter_that_is_not_called_default_has_a_folder_of_its_name() {
    let mut model = model();
    let folder = tempfile::tempdir().unwrap();
    for name in ["default", "chat"] {
        model.inject_adapter(&lora().with_seed(3).with_init(LoraInit::Random), name).unwrap();
        model.save_pretrained(folder.path(), name).unwrap();
    }
    assert!(folder.path().join("chat/adapter_config.json").is_file());
    assert!(!folder.path().join("chat/README.md").exists());
    let mut other = self::model();
    other.load_adapter(folder.path(), "chat").unwrap();
    other.load_adapter(folder.path().join("chat"), "again").unwrap();
    let state = |model: &Model, name: &str| {
        let state = model.adapter_state_dict(name).unwrap();
        state.values().flat_map(|tensor| bits(tensor).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(state(&model, "chat"), state(&other, "chat"));
    assert_eq!(state(&model, "chat"), state(&other, "again"));
    assert_ne!(state(&model, "chat"), state(&model, "default"));
}

#[test]
fn loading_for_inference_keeps_the_adapter_out_of_the_graph() {
    let (folder, _) = saved(&lora());
    let mut model = model();
    model.load_adapter(folder.path(), "default").unwrap();
    assert!(model.trainable_parameters().is_empty());
    model.delete_adapter("default").unwrap();
    model.load_adapter_with(folder.path(), "default", LoadOptions::new().trainable(true)).unwrap();
    assert_eq!(model.trainable_parameters().len(), 4);
}

#[test]
fn a_state_dict_goes_in_whole_or_not_at_all() {
    let (_folder, mut model) = saved(&lora());
    let state = model.adapter_state_dict("default").unwrap();
    let mut wrong: BTreeMap<String, Tensor> =
        state.iter().map(|(key, tensor)| (key.clone(), tensor.zeros_like().unwrap())).collect();
    wrong.insert("base_model.model.lin1.lora_B.weight".into(), random(&[3, 3]));
    let error = model.load_adapter_state_dict(&wrong, "default").unwrap_err();
    assert!(matches!(error, Error::Tensors { .. }));
    let after = model.adapter_state_dict("default").unwrap();
    assert!(state.iter().all(|(key, tensor)| bits(tensor).unwrap() == bits(&after[key]).unwrap()));
    let own = model.adapter_state_dict("default").unwrap();
    model.load_adapter_state_dict(&own, "default").unwrap();
}

#[test]
fn a_state_dict_is_a_copy_that_training_does_not_change() {
    let (_folder, model) = saved(&lora());
    let state = model.adapter_state_dict("default").unwrap();
    let before = bits(&state["base_model.model.lin0.lora_A.weight"]).unwrap();
    for (_, var) in model.trainable_parameters() {
        var.set(&var.zeros_like().unwrap()).unwrap();
    }
    assert_eq!(bits(&state["base_model.model.lin0.lora_A.weight"]).unwrap(), before);
}

#[test]
fn saving_into_a_folder_that_cannot_be_written_leaves_the_old_files() {
    let (folder, model) = saved(&lora());
    let before = std::fs::read(folder.path().join("adapter_model.safetensors")).unwrap();
    let file = folder.path().join("adapter_config.json");
    let error = model.save_pretrained(&file, "default").unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert_eq!(std::fs::read(folder.path().join("adapter_model.safetensors")).unwrap(), before);
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "no temporary files stay behind: {left:?}");
}

#[test]
fn base_weights_are_read_from_one_file_or_from_shards() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, keys: &[&str]| {
        let tensors: BTreeMap<String, Tensor> =
            keys.iter().map(|key| ((*key).to_owned(), random(&[2, 3]))).collect();
        std::fs::write(folder.path().join(name), safetensors::serialize(tensors.iter(), None).unwrap())
            .unwrap();
    };
    write("one.safetensors", &["a", "b"]);
    write("two.safetensors", &["c"]);
    let index =
        json!({"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}});
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let checkpoint = ModelWeights::open(folder.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    let vb = checkpoint.var_builder(DType::F32, &Device::Cpu);
    assert_eq!(vb.get((2, 3), "c").unwrap().dims(), [2, 3]);
    assert!(vb.get((3, 3), "c").unwrap_err().to_string().contains("the shape of `c` does not fit the model"));
    write("two.safetensors", &["a"]);
    let error = ModelWeights::open(folder.path()).err().unwrap().chain();
    assert!(error.contains("the tensor `a` is in two files") && error.contains("two.safetensors"), "{error}");
}
