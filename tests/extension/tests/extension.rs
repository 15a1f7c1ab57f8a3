//! The own layer kind under every method, the own method on every layer kind, and both together.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, Embedding, LayerNorm, Linear, Module};
use peft_extension::{CountedLinear, ScaleConfig};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;

#[derive(Clone, Injectable)]
struct Model {
    own: Adapted<CountedLinear>,
    theirs: Adapted<Linear>,
    plain: CountedLinear,
}

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap()
}

fn counted(inputs: usize, outputs: usize) -> CountedLinear {
    CountedLinear::new(random(&[outputs, inputs]), random(&[outputs]))
}

impl Model {
    fn new() -> Self {
        Self {
            own: counted(5, 6).into(),
            theirs: Linear::new(random(&[4, 6]), Some(random(&[4]))).into(),
            plain: counted(4, 3),
        }
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.plain.forward(&self.theirs.forward(&self.own.forward(x)?)?)
    }
}

fn distance(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// Gives the adapter values that show.
fn randomise(model: &mut impl Injectable, name: &str) {
    let mut state = model.adapter_state_dict(name).unwrap();
    for tensor in state.values_mut() {
        *tensor = (&*tensor + (random(tensor.dims()) * 0.5).unwrap()).unwrap();
    }
    model.load_adapter_state_dict(&state, name).unwrap();
}

/// Every method of the library, and the own one.
fn methods() -> Vec<Box<dyn AdapterMethod>> {
    let targets = || targets!(Model; "own", "theirs");
    vec![
        Box::new(LoraConfig::new(2, 4.0).with_targets(targets())),
        Box::new(LoraConfig::new(2, 4.0).with_targets(targets()).with_dora(true)),
        Box::new(AdaLoraConfig::new(3, 2, 10).with_targets(targets())),
        Box::new(Ia3Config::new().with_targets(targets()).with_feedforward(["own"])),
        Box::new(ScaleConfig::new(Some(targets()))),
    ]
}

#[test]
fn every_method_works_on_the_own_layer() {
    for method in methods() {
        let name = method.peft_type();
        let mut model = Model::new();
        let x = random(&[3, 5]);
        let base = model.forward(&x).unwrap();
        let report = model.inject_adapter(&*method, "default").unwrap();
        assert_eq!(report.adapted.len(), 2, "{name}");
        assert!(
            distance(&model.forward(&x).unwrap(), &base) < 1e-4,
            "{name}: a fresh adapter changes the output"
        );

        randomise(&mut model, "default");
        let output = model.forward(&x).unwrap();
        assert!(distance(&output, &base) > 1e-3, "{name}: the adapter does nothing");
        model.merge_adapters(&MergeOptions::active()).unwrap();
        assert!(distance(&model.forward(&x).unwrap(), &output) < 1e-2, "{name}: merging changes the output");
        model.unmerge_adapters().unwrap();
        assert_eq!(distance(&model.forward(&x).unwrap(), &output), 0.0, "{name}");

        let grads = output_loss(&model, &x).backward().unwrap();
        for (key, var) in model.trainable_parameters() {
            assert!(grads.get(&var).is_some(), "{name}: no gradient for `{key}`");
        }
        model.unload().unwrap();
        assert_eq!(distance(&model.forward(&x).unwrap(), &base), 0.0, "{name}");
    }
}

fn output_loss(model: &Model, x: &Tensor) -> Tensor {
    model.forward(x).unwrap().sqr().unwrap().mean_all().unwrap()
}

#[test]
fn a_pass_of_the_model_is_one_pass_of_the_layer() {
    let mut model = Model::new();
    model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(targets!(Model; "own")), "default").unwrap();
    let x = random(&[3, 5]);
    for calls in 1..4 {
        model.forward(&x).unwrap();
        assert_eq!((model.own.base().calls(), model.plain.calls()), (calls, calls));
    }
}

#[test]
fn the_own_layer_is_shown_and_saved_as_others_are() {
    let mut model = Model::new();
    let tree = model.module_tree();
    assert!(tree.contains("(own): CountedLinear(in_features=5, out_features=6)"), "{tree}");
    let state = model.base_state_dict();
    let keys: Vec<&str> = state.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        ["own.bias", "own.weight", "plain.bias", "plain.weight", "theirs.bias", "theirs.weight"]
    );
    let zeros: BTreeMap<String, Tensor> =
        state.iter().map(|(key, tensor)| (key.clone(), tensor.zeros_like().unwrap())).collect();
    model.load_base_state_dict(&zeros).unwrap();
    assert_eq!(
        distance(
            &model.forward(&random(&[2, 5])).unwrap(),
            &Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap()
        ),
        0.0
    );
    let error =
        model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(["plain"]), "default").unwrap_err();
    assert!(error.to_string().contains("declare the field as `Adapted<CountedLinear>`"), "{error}");
}

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
        let conv = Conv1d::new(random(&[4, 3, 1]), Some(random(&[4])), Conv1dConfig::default());
        Self {
            embed: Embedding::new(random(&[7, 3]), 3).into(),
            conv: conv.into(),
            linear: Linear::new(random(&[2, 4]), None).into(),
            norm: LayerNorm::new(random(&[2]), random(&[2]), 1e-5).into(),
        }
    }

    fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        let hidden = self.embed.forward(ids)?.transpose(1, 2)?.contiguous()?;
        let hidden = self.conv.forward(&hidden)?.transpose(1, 2)?.contiguous()?;
        self.linear.forward(&hidden)
    }
}

#[test]
fn the_own_method_works_on_every_layer_kind() {
    let ids = Tensor::new(&[[0u32, 6, 3], [2, 1, 5]], &Device::Cpu).unwrap();
    let mut model = Kinds::new();
    let base = model.forward(&ids).unwrap();
    // The targets are those that the model declares.
    let report = model.inject_adapter(&ScaleConfig::new(None), "default").unwrap();
    assert_eq!(report.adapted.len(), 3);
    assert!(distance(&model.forward(&ids).unwrap(), &base) < 1e-6);
    randomise(&mut model, "default");
    let output = model.forward(&ids).unwrap();
    model.merge_and_unload(&MergeOptions::active()).unwrap();
    assert!(distance(&model.forward(&ids).unwrap(), &output) < 1e-3);

    let error = Kinds::new().inject_adapter(&ScaleConfig::new(Some(["norm"].into())), "default").unwrap_err();
    assert!(
        error.to_string().contains("SCALE cannot adapt `norm` (LayerNorm): it has no output to scale"),
        "{error}"
    );
}

#[test]
fn the_own_method_is_saved_and_loaded() {
    let x = random(&[3, 5]);
    let mut model = Model::new();
    model.inject_adapter(&ScaleConfig::new(Some(targets!(Model; "own", "theirs"))), "mine").unwrap();
    randomise(&mut model, "mine");
    let output = model.forward(&x).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), "mine").unwrap();

    let mut other = model.clone();
    other.delete_adapter("mine").unwrap();
    let error = other.load_adapter(folder.path(), "mine").unwrap_err().chain();
    assert!(error.contains(r#"`peft_type` "SCALE" is not supported"#), "{error}");
    other.load_adapter_as(folder.path(), "mine", LoadOptions::new(), ScaleConfig::read).unwrap();
    assert_eq!(distance(&other.forward(&x).unwrap(), &output), 0.0);
    assert!(other.trainable_parameters().is_empty());
    assert!(other.module_tree().contains("(scale_factor)"), "{}", other.module_tree());

    let state = model.adapter_state_dict("mine").unwrap();
    let mut third = model.clone();
    third.delete_adapter("mine").unwrap();
    third.inject_adapter_from_state_dict(&state, &ScaleConfig::new(None), "again").unwrap();
    assert_eq!(distance(&third.forward(&x).unwrap(), &output), 0.0);
}

#[test]
fn the_own_method_acts_beside_others_and_in_rows() {
    let x = random(&[2, 5]);
    let mut model = Model::new();
    let base = model.forward(&x).unwrap();
    model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(targets!(Model; "theirs")), "lora").unwrap();
    randomise(&mut model, "lora");
    let doubled = ScaleConfig::new(Some(targets!(Model; "own"))).with_start(2.0);
    model.inject_adapter(&doubled, "scale").unwrap();
    model.set_adapter("lora").unwrap();
    let lora = model.forward(&x).unwrap();
    model.set_adapter("scale").unwrap();
    let scale = model.forward(&x).unwrap();
    let rows = model.with_adapter_rows(&["lora", "scale"], |model| model.forward(&x)).unwrap().unwrap();
    let row = |tensor: &Tensor, row: usize| tensor.narrow(0, row, 1).unwrap();
    assert!(distance(&row(&rows, 0), &row(&lora, 0)) < 1e-5);
    assert!(distance(&row(&rows, 1), &row(&scale, 1)) < 1e-5);
    assert!(distance(&scale, &base) > 1e-3);
    model.set_adapters(&["lora", "scale"]).unwrap();
    assert!(distance(&model.forward(&x).unwrap(), &lora) > 1e-3);
    let refused = model.add_weighted_adapter(&[("scale", 1.0)], "sum", &CombineOptions::default());
    assert!(refused.unwrap_err().to_string().contains("SCALE has no weighted combination"));
    let endless = ScaleConfig::new(Some(targets!(Model; "own"))).with_start(f64::INFINITY);
    let error = model.inject_adapter(&endless, "endless").unwrap_err();
    assert!(error.to_string().contains("invalid `start`: inf is not a finite number"), "{error}");
}
