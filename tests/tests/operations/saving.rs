//! Saving in other forms: as plain LoRA, with embeddings; and which folder is read.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{Device, Tensor};
use candle_nn::{Embedding, Linear, Module};
use peft_runtime::prelude::*;
use peft_runtime::{Error, SaveEmbeddings};
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::{random, randomise, same_bits};

use crate::{Model, lora, texts};

fn config(folder: &Path) -> LoraConfig {
    let text = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    LoraConfig::from_json(&text).unwrap()
}

fn plain() -> SaveOptions {
    SaveOptions::new().plain_lora(true)
}

#[test]
fn adapters_that_changed_the_base_are_saved_as_plain_lora_for_the_original_base() {
    for init in [LoraInit::Pissa, LoraInit::PissaIterations(4), LoraInit::Olora] {
        for rslora in [false, true] {
            let what = format!("{init:?}, rank-stabilised: {rslora}");
            let (base, x) = (Model::new(), Model::input());
            let full = LoraConfig::new(2, 6.0)
                .with_init(init)
                .with_rslora(rslora)
                .with_targets(["out", "head"])
                .with_rank_pattern([("head", 3)])
                .with_alpha_pattern([("head", 5.0)])
                .with_modules_to_save(["norm"]);
            let model = base.with(&full, "default");
            let folder = tempfile::tempdir().unwrap();
            model.save_pretrained_with(folder.path(), "default", plain()).unwrap();
            let mut other = base.clone();
            other.load_adapter(folder.path(), "default").unwrap();
            // The part that was taken out is added back in a different order of summation; outputs are around 10.
            assert_close(&other.forward(&x), &model.forward(&x), Tolerance::absolute(1e-3), &what);
            let before = base.base_state_dict();
            assert!(
                other.base_state_dict().iter().all(|(key, tensor)| same_bits(tensor, &before[key])),
                "{what}"
            );
            // Twice the rank with the same scaling, as PEFT writes it.
            let written = config(folder.path());
            assert_eq!((written.init(), written.rank()), (LoraInit::Default, 4), "{what}");
            let factor = if rslora { std::f64::consts::SQRT_2 } else { 2.0 };
            assert!((written.alpha() - 6.0 * factor).abs() < 1e-12, "{what}");
            assert_eq!(written.rank_pattern().iter().collect::<Vec<_>>(), [("head", &6)], "{what}");
        }
    }
}

#[test]
fn a_fresh_adapter_that_changed_the_base_is_zero_as_plain_lora() {
    let (base, x) = (Model::new(), Model::input());
    let mut model = base.clone();
    model.inject_adapter(&lora().with_init(LoraInit::Pissa), "default").unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained_with(folder.path(), "default", plain()).unwrap();
    let mut other = base.clone();
    other.load_adapter(folder.path(), "default").unwrap();
    assert_close(&other.forward(&x), &base.forward(&x), Tolerance::absolute(1e-4), "the output");
    let state = other.adapter_state_dict("default").unwrap();
    let (a, b) =
        (&state["base_model.model.head.lora_A.weight"], &state["base_model.model.head.lora_B.weight"]);
    assert_eq!((a.dims(), b.dims()), (&[4, 7][..], &[3, 4][..]));
    assert!(same_bits(&a.narrow(0, 0, 2).unwrap(), &a.narrow(0, 2, 2).unwrap()), "[A; A]");
    assert!(same_bits(&b.narrow(1, 0, 2).unwrap(), &b.narrow(1, 2, 2).unwrap().neg().unwrap()), "[B, -B]");
}

#[test]
fn plain_lora_saved_as_plain_lora_is_unchanged() {
    let model = Model::new().with(&lora(), "default");
    let [usual, asked] = [SaveOptions::new(), plain()].map(|options| {
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained_with(folder.path(), "default", options).unwrap();
        let read = |file: &str| std::fs::read(folder.path().join(file)).unwrap();
        (read("adapter_config.json"), read("adapter_model.safetensors"))
    });
    assert!(usual == asked);
}

#[test]
fn other_methods_cannot_be_saved_as_plain_lora() {
    let adalora = AdaLoraConfig::new(2, 1, 10).with_targets(["head"]);
    let model = Model::new().with(&adalora, "default");
    let folder = tempfile::tempdir().unwrap();
    let error = model.save_pretrained_with(folder.path(), "default", plain()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("ADALORA"), "{error}");
    assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
}

/// A language model, judging by the names of its embeddings.
#[derive(Clone, Injectable)]
#[peft(input_embedding = "embed_tokens", output_embedding = "lm_head")]
struct Language {
    embed_tokens: Adapted<Embedding>,
    lin: Adapted<Linear>,
    lm_head: Adapted<Linear>,
}

fn language() -> Language {
    Language {
        embed_tokens: Embedding::new(random(&[9, 4]), 4).into(),
        lin: Linear::new(random(&[4, 4]), None).into(),
        lm_head: Linear::new(random(&[9, 4]), None).into(),
    }
}

/// A folder with an acting adapter, saved with these options, and the model.
fn saved(config: &LoraConfig, embeddings: SaveEmbeddings) -> (tempfile::TempDir, Language) {
    let mut model = language();
    model.inject_adapter(config, "default").unwrap();
    randomise(&mut model, "default", 0.5).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = SaveOptions::new().embeddings(embeddings);
    model.save_pretrained_with(folder.path(), "default", options).unwrap();
    (folder, model)
}

/// The keys in the file that belong to the base model, without the prefix.
fn base_keys(folder: &Path) -> BTreeSet<String> {
    let file = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let names =
        file.names().into_iter().map(|name| name.strip_prefix("base_model.model.").unwrap().to_owned());
    names.filter(|name| name.ends_with(".weight") && !name.contains("lora_")).collect()
}

fn on(targets: &[&str]) -> LoraConfig {
    LoraConfig::new(2, 4.0).with_targets(targets)
}

#[test]
fn embedding_weights_go_into_the_file_as_peft_decides_or_as_asked() {
    use SaveEmbeddings::{Always, Auto, Never};
    let by_pattern = LoraConfig::new(2, 4.0).with_targets(TargetModules::regex(".*lm_head|lin"));
    let with_tokens = |targets: &[&str]| on(targets).with_trainable_tokens([1u32, 4]);
    let cases: [(LoraConfig, SaveEmbeddings, &[&str]); 9] = [
        (on(&["lin"]), Auto, &[]),
        (on(&["lm_head"]), Auto, &["lm_head.base_layer.weight"]),
        (on(&["embed_tokens"]), Auto, &["embed_tokens.base_layer.weight"]),
        (by_pattern, Auto, &["lm_head.base_layer.weight"]),
        // Not when tokens train, though the head is a target.
        (with_tokens(&["lm_head"]), Auto, &[]),
        (on(&["lm_head"]), Never, &[]),
        (on(&["lin"]), Always, &["embed_tokens.weight", "lm_head.weight"]),
        (on(&["lm_head"]), Always, &["embed_tokens.weight", "lm_head.base_layer.weight"]),
        (with_tokens(&["lin"]), Always, &["embed_tokens.token_adapter.base_layer.weight", "lm_head.weight"]),
    ];
    for (config, embeddings, expected) in cases {
        let (folder, _) = saved(&config, embeddings);
        let expected: BTreeSet<String> = expected.iter().map(|key| (*key).to_owned()).collect();
        assert_eq!(base_keys(folder.path()), expected, "{:?} {embeddings:?}", config.targets());
    }
}

#[test]
fn plain_lora_is_saved_without_the_weight_that_an_init_took_from() {
    let base = language();
    let mut model = base.clone();
    let pissa = on(&["embed_tokens", "lm_head"]).with_init(LoraInit::Pissa);
    model.inject_adapter(&pissa, "default").unwrap();
    // Trained factors, on the weight that the init left.
    let mut state = model.adapter_state_dict("default").unwrap();
    for (key, tensor) in state.iter_mut().filter(|(key, _)| key.contains("lora_")) {
        *tensor = tensor.affine(1.5, 0.25 * key.len() as f64 / 50.0).unwrap();
    }
    model.load_adapter_state_dict(&state, "default").unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained_with(folder.path(), "default", plain()).unwrap();
    // An embedding loses nothing to an init.
    assert_eq!(base_keys(folder.path()), BTreeSet::from(["embed_tokens.base_layer.weight".to_owned()]));
    let mut other = base;
    other.load_adapter(folder.path(), "default").unwrap();
    let ids = Tensor::new(&[3u32, 1, 8], &Device::Cpu).unwrap();
    let output = |model: &Language| -> candle_core::Result<Tensor> {
        model.lm_head.forward(&model.lin.forward(&model.embed_tokens.forward(&ids)?)?)
    };
    assert_close(&output(&other).unwrap(), &output(&model).unwrap(), Tolerance::absolute(1e-3), "the output");
}

#[test]
fn embedding_weights_in_a_file_replace_those_of_the_model_that_loads_it() {
    for config in [on(&["lin"]), on(&["lm_head"]), on(&["lin"]).with_trainable_tokens([1u32, 4])] {
        let (folder, model) = saved(&config, SaveEmbeddings::Always);
        let mut other = language();
        let report = other.load_adapter(folder.path(), "default").unwrap();
        assert_eq!(report.base_parameters, ["embed_tokens.weight", "lm_head.weight"]);
        let (theirs, ours) = (model.base_state_dict(), other.base_state_dict());
        for key in ["embed_tokens.weight", "lm_head.weight"] {
            assert!(same_bits(&theirs[key], &ours[key]), "{key} with {:?}", config.targets());
        }
        assert!(!same_bits(&theirs["lin.weight"], &ours["lin.weight"]), "what is not in the file stays");
    }
}

#[test]
fn a_name_that_no_adapter_in_the_folder_has_does_not_load_another_one() {
    let mut model = Model::new().with(&lora(), "default");
    model.add(&lora(), "chat");
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), "default").unwrap();
    // The only adapter in a folder may be given any name, as in PEFT.
    let mut other = Model::new();
    let report = other.load_adapter(folder.path(), "mine").unwrap();
    assert_eq!(report.folder, folder.path());
    assert_eq!(texts(&report.injection.adapted), ["block.out", "head"]);
    // In a folder with several, the names have to match.
    model.save_pretrained(folder.path(), "chat").unwrap();
    let error = other.load_adapter(folder.path(), "caht").unwrap_err().chain();
    assert!(error.contains("`caht`") && error.contains("`chat`"), "{error}");
    assert_eq!(other.adapter_names(), ["mine"]);
    assert_eq!(other.load_adapter(folder.path(), "chat").unwrap().folder, folder.path().join("chat"));
    let key = "base_model.model.head.lora_A.weight";
    let (ours, theirs) =
        (other.adapter_state_dict("chat").unwrap(), model.adapter_state_dict("chat").unwrap());
    assert!(same_bits(&ours[key], &theirs[key]));
}
