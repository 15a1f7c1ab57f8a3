//! A call that fails leaves the model as it was, at whatever stage it fails: one table.

mod calls;

use std::path::Path;

use calls::{combinations, hot_swaps, loads, merges, others};
use candle_core::Tensor;
use candle_nn::{Conv2d, Conv2dConfig, LayerNorm, Linear};
use peft_runtime::prelude::*;
use peft_tests::fingerprint::Fingerprint;
use peft_tests::tensors::{random, randomise};

/// Layers that can be merged come before those that cannot, so that a call which fails late has done something before.
#[derive(Clone, Injectable)]
struct Model {
    first: Adapted<Linear>,
    norm: Adapted<LayerNorm>,
    bare: Adapted<Linear>,
    grouped: Adapted<Conv2d>,
    last: Adapted<Linear>,
}

fn lora(rank: usize) -> LoraConfig {
    LoraConfig::new(rank, 4.0).with_targets(["first", "last"])
}

fn base() -> Model {
    let groups = Conv2dConfig { groups: 2, ..Conv2dConfig::default() };
    Model {
        first: Linear::new(random(&[6, 5]), Some(random(&[6]))).into(),
        norm: LayerNorm::new(random(&[6]), random(&[6]), 1e-5).into(),
        bare: Linear::new(random(&[6, 6]), None).into(),
        grouped: Conv2d::new(random(&[4, 2, 3, 3]), Some(random(&[4])), groups).into(),
        last: Linear::new(random(&[3, 6]), Some(random(&[3]))).into(),
    }
}

/// The base with adapters of many kinds, all acting; `a` is active.
fn model() -> Model {
    let mut model = base();
    let ia3 = Ia3Config::new().with_targets(["first"]).with_feedforward(["first"]);
    model.inject_adapter(&lora(2).with_bias(Bias::LoraOnly), "a").unwrap();
    model.inject_adapter(&lora(3).with_modules_to_save(["norm"]), "b").unwrap();
    model.inject_adapter(&lora(3).with_modules_to_save(["norm"]), "c").unwrap();
    model.inject_adapter(&ia3, "ia3").unwrap();
    model.inject_adapter(&lora(2).with_targets(["first", "grouped"]), "grouped").unwrap();
    model
        .inject_adapter(&lora(2).with_targets(["first", "bare", "last"]).with_lora_bias(true), "biased")
        .unwrap();
    model.inject_adapter(&lora(2).with_targets(["last"]).with_init(LoraInit::Pissa), "pissa").unwrap();
    model.inject_adapter(&lora(2).with_eva(EvaConfig::default()), "eva").unwrap();
    for name in model.adapter_names() {
        randomise(&mut model, &name, 0.5).unwrap();
    }
    model
}

type Call = fn(&mut Model, &Path) -> peft_runtime::Result<()>;

/// A call that fails with these words, after a preparation that does not.
struct Case {
    what: &'static str,
    prepare: fn(&mut Model),
    call: Call,
    says: &'static str,
}

fn case(what: &'static str, says: &'static str, call: Call) -> Case {
    Case { what, prepare: |_| {}, call, says }
}

fn merged(what: &'static str, says: &'static str, call: Call) -> Case {
    let prepare: fn(&mut Model) = |model| model.merge_adapters(&MergeOptions::active()).unwrap();
    Case { prepare, ..case(what, says, call) }
}

/// A folder for each kind of damage, each with the adapter under the names `a` and `new`.
fn folders() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "new"] {
        let mut source = base();
        source.inject_adapter(&lora(3), name).unwrap();
        randomise(&mut source, name, 0.5).unwrap();
        let good = source.adapter_state_dict(name).unwrap();
        let write =
            |damage: &str, weights: &dyn Fn(Vec<u8>) -> Vec<u8>, config: &dyn Fn(String) -> String| {
                let own = source.save_pretrained(folder.path().join(damage), name).unwrap();
                let (weights_path, config_path) =
                    (own.join("adapter_model.safetensors"), own.join("adapter_config.json"));
                std::fs::write(&weights_path, weights(std::fs::read(&weights_path).unwrap())).unwrap();
                std::fs::write(&config_path, config(std::fs::read_to_string(&config_path).unwrap())).unwrap();
            };
        let with = |key: &str, tensor: Option<Tensor>| {
            let mut tensors = good.clone();
            tensors.remove(key);
            tensors.extend(tensor.map(|tensor| (key.to_owned(), tensor)));
            safetensors::serialize(tensors.iter(), None).unwrap()
        };
        let b = "base_model.model.last.lora_B.weight";
        let same_text = |text: String| text;
        write("good", &|bytes| bytes, &same_text);
        write("truncated", &|bytes| bytes[..bytes.len() - 5].to_vec(), &same_text);
        write("missing", &|_| with(b, None), &same_text);
        write("shape", &|_| with(b, Some(random(&[3, 4]))), &same_text);
        write("foreign", &|_| with("base_model.model.lost.lora_A.weight", Some(random(&[3, 6]))), &same_text);
        write("base", &|_| with("base_model.model.norm.weight", Some(random(&[7]))), &same_text);
        let edit = |from: &'static str, to: &'static str| move |text: String| text.replace(from, to);
        write("rank", &|bytes| bytes, &edit("\"r\": 3", "\"r\": 0"));
        write("json", &|bytes| bytes, &|_| "{".to_owned());
        write("switch", &|bytes| bytes, &edit("\"use_qalora\": false", "\"use_qalora\": true"));
        write("method", &|bytes| bytes, &edit("\"LORA\"", "\"VERA\""));
        write("targets", &|bytes| bytes, &edit("\"first\",\n    \"last\"", "\"frist\""));
        write("layer", &|bytes| bytes, &edit("\"first\",", "\"norm\","));
        write("biases", &|bytes| bytes, &edit("\"bias\": \"none\"", "\"bias\": \"all\""));
    }
    folder
}

#[test]
fn a_call_that_fails_leaves_the_model_as_it_was() {
    let folders = folders();
    let mut control = model();
    control.hotswap_adapter(folders.path().join("good"), "a").unwrap();
    control.load_adapter(folders.path().join("good"), "new").unwrap();
    let groups = [hot_swaps(), loads(), combinations(), merges(), others()];
    for Case { what, prepare, call, says } in groups.into_iter().flatten() {
        let mut model = model();
        prepare(&mut model);
        let before = Fingerprint::of(&model).unwrap();
        let error = call(&mut model, folders.path()).expect_err(what).chain();
        assert!(error.contains(says), "{what}: `{says}` is not in: {error}");
        let changes = before.changes(&Fingerprint::of(&model).unwrap());
        assert_eq!(changes, Vec::<String>::new(), "{what} ({says}) changed the model");
    }
}
