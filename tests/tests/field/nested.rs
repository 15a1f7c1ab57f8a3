//! Modules whose names begin like the keys of a method.

use candle_core::{Result, Tensor};
use candle_nn::{Linear, Module};
use peft_runtime::prelude::*;
use peft_runtime::{MergedWeights, ModelWeights, ModulePath, StoredAdapter, StoredKind};
use peft_tests::close::assert_close;

use crate::case::{Case, State, TOLERANCE};

#[derive(Injectable)]
struct Mlp {
    up: Adapted<Linear>,
    down: Adapted<Linear>,
}

#[derive(Injectable)]
struct Net {
    body: Adapted<Linear>,
    lora_mlp: Mlp,
    lora_head: Adapted<Linear>,
}

#[derive(Injectable)]
struct Outer {
    net: Net,
}

impl Outer {
    fn new(base: &State) -> Self {
        let linear = |path: &str| {
            let tensor = |name: &str| base.get(&format!("{path}.{name}")).cloned();
            Linear::new(tensor("weight").unwrap(), tensor("bias")).into()
        };
        Self {
            net: Net {
                body: linear("net.body"),
                lora_mlp: Mlp { up: linear("net.lora_mlp.up"), down: linear("net.lora_mlp.down") },
                lora_head: linear("net.lora_head"),
            },
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.net.lora_mlp.up.forward(&self.net.body.forward(x)?.tanh()?)?.tanh()?;
        self.net.lora_head.forward(&self.net.lora_mlp.down.forward(&x)?)
    }
}

fn check(case: &Case, model: &Outer, how: &str) {
    assert_close(&model.forward(&case.tensor("x")).unwrap(), &case.tensor("y"), TOLERANCE, how);
}

#[test]
fn a_head_that_is_called_like_lora_is_not_a_part_of_it() {
    let case = Case::open("k01_lora_head_nested");
    let base = case.tensors("base");
    let folder = case.folder();

    let mut model = Outer::new(&base);
    model.load_adapter(folder.path(), "chat").unwrap();
    check(&case, &model, "loaded");
    let state = model.adapter_state_dict("chat").unwrap();
    assert!(state.keys().eq(case.state.keys()));

    let mut model = Outer::new(&base);
    let report = model.inject_adapter_from_state_dict(&state, case.config().method(), "x").unwrap();
    assert_eq!(report.copied.iter().map(ModulePath::as_str).collect::<Vec<_>>(), ["net.lora_head"]);
    check(&case, &model, "injected");

    let stored = StoredAdapter::open(folder.path()).unwrap();
    let layers = stored.layers().unwrap();
    let kinds: Vec<(&str, StoredKind)> =
        layers.iter().map(|layer| (layer.path.as_str(), layer.kind)).collect();
    let lora = StoredKind::Adapter("LoRA");
    let expected = [("net.body", lora), ("net.lora_head", StoredKind::Copy), ("net.lora_mlp.up", lora)];
    assert_eq!(kinds, expected);

    let base_folder = tempfile::tempdir().unwrap();
    let bytes = safetensors::serialize(base.iter(), None).unwrap();
    std::fs::write(base_folder.path().join("model.safetensors"), bytes).unwrap();
    let merged =
        MergedWeights::new(ModelWeights::open(base_folder.path()).unwrap()).add(stored, 1.0).unwrap();
    let output = tempfile::tempdir().unwrap();
    merged.write(output.path().join("merged"), &mut |_| {}).unwrap();
    let written = ModelWeights::open(output.path().join("merged")).unwrap();
    let names: Vec<&str> = written.names().collect();
    assert!(names.iter().copied().eq(base.keys().map(String::as_str)), "{names:?}");
    let read = |name: &str| (name.to_owned(), written.tensor(name, &candle_core::Device::Cpu).unwrap());
    check(&case, &Outer::new(&names.iter().map(|name| read(name)).collect()), "merged");
}

/// Layers and copies with the names of adapters and of parts of keys.
#[derive(Clone, Injectable)]
struct Strange {
    default: Adapted<Linear>,
    lora_a: Inner,
}

#[derive(Clone, Injectable)]
struct Inner {
    #[peft(rename = "lora_A")]
    a: Adapted<Linear>,
    #[peft(rename = "default")]
    named: Adapted<Linear>,
}

fn strange() -> Strange {
    let linear = || Linear::new(peft_tests::tensors::random(&[4, 4]), None).into();
    Strange { default: linear(), lora_a: Inner { a: linear(), named: linear() } }
}

#[test]
fn modules_may_be_called_default_or_like_a_key_of_lora() {
    let mut source = strange();
    let config = LoraConfig::new(2, 4.0).with_targets(["default"]).with_modules_to_save(["lora_A"]);
    source.inject_adapter(&config, "default").unwrap();
    peft_tests::tensors::randomise(&mut source, "default", 0.5).unwrap();
    let state = source.adapter_state_dict("default").unwrap();
    let keys: Vec<&str> = state.keys().map(String::as_str).collect();
    assert!(keys.contains(&"base_model.model.lora_a.lora_A.weight"), "{keys:?}");
    let folder = tempfile::tempdir().unwrap();
    source.save_pretrained(folder.path(), "default").unwrap();

    let same = |model: &Strange, how: &str| {
        let again = model.adapter_state_dict("x").unwrap();
        assert!(state.keys().eq(again.keys()), "{how}: {:?}", again.keys());
        assert!(
            state.iter().all(|(key, tensor)| peft_tests::tensors::same_bits(tensor, &again[key])),
            "{how}"
        );
    };
    let mut loaded = strange();
    loaded.load_adapter(folder.path(), "x").unwrap();
    same(&loaded, "loaded");
    let mut injected = strange();
    injected.inject_adapter_from_state_dict(&state, &LoraConfig::new(2, 4.0), "x").unwrap();
    same(&injected, "injected");
    // With the name of the adapter in the keys of layers, which are called like it.
    let named = state.iter().map(|(key, tensor)| {
        let key = key.replace("default.lora_A.", "default.lora_A.default.");
        (key.replace("default.lora_B.", "default.lora_B.default."), tensor.clone())
    });
    let mut injected = strange();
    injected.inject_adapter_from_state_dict(&named.collect(), &LoraConfig::new(2, 4.0), "x").unwrap();
    same(&injected, "injected with names");
    let layers = StoredAdapter::open(folder.path()).unwrap().layers().unwrap();
    let copy = layers.iter().find(|layer| layer.path.as_str() == "lora_a.lora_A").unwrap();
    assert_eq!(copy.kind, StoredKind::Copy);
}
