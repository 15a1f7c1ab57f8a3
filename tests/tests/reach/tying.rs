//! `ensure_weight_tying`: a tied output layer has the embedding's adapter, or its copy.

use candle_core::{Device, Tensor};
use candle_nn::{Embedding, Linear, Module};
use peft_runtime::prelude::*;
use peft_runtime::{BaseWeights, MergedWeights, ModelWeights, StoredAdapter};
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::{distance, random, same_bits};

use crate::{keys, refusal, texts};

#[derive(Clone, Injectable)]
#[peft(input_embedding = "embed_tokens", output_embedding = "lm_head")]
struct Model {
    embed_tokens: Adapted<Embedding>,
    lin: Adapted<Linear>,
    lm_head: Adapted<Linear>,
}

const VOCABULARY: usize = 11;
const FEATURES: usize = 4;

impl Model {
    fn new(tied: bool) -> Self {
        let table = random(&[VOCABULARY, FEATURES]);
        let head = if tied { table.clone() } else { random(&[VOCABULARY, FEATURES]) };
        Self {
            embed_tokens: Embedding::new(table, FEATURES).into(),
            lin: Linear::new(random(&[FEATURES, FEATURES]), None).into(),
            lm_head: Linear::new(head, None).into(),
        }
    }

    fn forward(&self, ids: &Tensor) -> Tensor {
        let hidden = self.lin.forward(&self.embed_tokens.forward(ids).unwrap()).unwrap();
        self.lm_head.forward(&hidden.tanh().unwrap()).unwrap()
    }
}

fn ids() -> Tensor {
    Tensor::new(&[[1u32, 4, 2], [9, 4, 0]], &Device::Cpu).unwrap()
}

fn lora(targets: &[&str]) -> LoraConfig {
    LoraConfig::new(2, 4.0).with_targets(targets).with_weight_tying(true)
}

/// Random values of everything that trains, and of nothing that files hold besides.
fn perturb(model: &Model) {
    for (_, var) in model.trainable_parameters() {
        var.set(&(random(var.shape()) * 0.5).unwrap()).unwrap();
    }
}

fn weights(model: &Model) -> [Tensor; 2] {
    let merged = model.merged_state_dict();
    ["embed_tokens.weight", "lm_head.weight"].map(|name| merged[name].clone())
}

#[test]
fn one_adapter_changes_both_layers_alike() {
    for targets in [&["embed_tokens", "lin"][..], &["lm_head", "lin"], &["embed_tokens", "lm_head", "lin"]] {
        let mut model = Model::new(true);
        let before = model.forward(&ids());
        let report = model.inject_adapter(&lora(targets), "a").unwrap();
        assert_eq!(texts(&report.adapted), ["embed_tokens", "lin", "lm_head"]);
        assert_eq!(
            report.elements,
            2 * (VOCABULARY + FEATURES) + 4 * FEATURES,
            "the head has none of its own"
        );
        assert!(same_bits(&model.forward(&ids()), &before));
        let names: Vec<String> = model.trainable_parameters().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        perturb(&model);
        let output = model.forward(&ids());
        assert!(distance(&output, &before).unwrap() > 0.1);
        model.merge_adapters(&MergeOptions::active()).unwrap();
        let [embedding, head] = weights(&model);
        assert_close(&head, &embedding, Tolerance::absolute(1e-6), "the merged weights");
        assert_close(&model.forward(&ids()), &output, Tolerance::absolute(1e-5), "the output");
    }
}

#[test]
fn the_gradients_of_both_layers_come_together() {
    let mut model = Model::new(true);
    model.inject_adapter(&lora(&["lm_head"]), "a").unwrap();
    perturb(&model);
    let loss = |model: &Model| model.forward(&ids()).sqr().unwrap().mean_all().unwrap();
    let grads = loss(&model).backward().unwrap();
    for (name, var) in model.trainable_parameters() {
        let (grad, start) = (grads.get(&var).unwrap().clone(), var.copy().unwrap());
        let value = |step: f64| {
            var.set(&(&start + (&grad * step).unwrap()).unwrap()).unwrap();
            loss(&model).to_scalar::<f32>().unwrap()
        };
        let slope = f64::from(value(1e-4) - value(-1e-4)) / 2e-4;
        var.set(&start).unwrap();
        let expected = f64::from(grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        assert!((slope - expected).abs() < 0.02 * expected, "{name}: {slope} {expected}");
    }
}

#[test]
fn a_copy_is_one_variable_for_both_layers() {
    for saved in [&["embed_tokens"][..], &["lm_head"], &["lm_head", "embed_tokens"]] {
        let mut model = Model::new(true);
        let config = lora(&["lin"]).with_modules_to_save(saved.iter().copied());
        let report = model.inject_adapter(&config, "a").unwrap();
        assert_eq!(texts(&report.copied), ["embed_tokens", "lm_head"]);
        let parameters = model.trainable_parameters();
        assert_eq!(parameters.len(), 3);
        let (name, copy) = &parameters[0];
        assert_eq!(name, "embed_tokens.modules_to_save.a.weight");
        copy.set(&random(&[VOCABULARY, FEATURES])).unwrap();
        let state = model.adapter_state_dict("a").unwrap();
        let of = |name: &str| &state[&format!("base_model.model.{name}.weight")];
        assert!(same_bits(of("embed_tokens"), of("lm_head")));
        let grads = model.forward(&ids()).sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let rows = grads.get(copy).unwrap().abs().unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap();
        assert!(rows.iter().all(|row| *row > 0.0), "the head gives every row a gradient: {rows:?}");
    }
}

#[test]
fn what_is_shared_is_saved_for_both_layers_and_loaded_for_one() {
    let configs = [lora(&["lm_head", "lin"]), lora(&["lin"]).with_modules_to_save(["lm_head"])];
    for config in configs {
        let base = Model::new(true);
        let mut model = base.clone();
        model.inject_adapter(&config, "default").unwrap();
        perturb(&model);
        assert!(keys(&model, "default").iter().any(|key| key.starts_with("lm_head.")));
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path(), "default").unwrap();
        let mut loaded = base.clone();
        loaded.load_adapter_with(folder.path(), "default", LoadOptions::new().trainable(true)).unwrap();
        assert!(same_bits(&loaded.forward(&ids()), &model.forward(&ids())));
        assert_eq!(loaded.trainable_parameters().len(), model.trainable_parameters().len());
        let state = model.adapter_state_dict("default").unwrap();
        let mut injected = base.clone();
        injected.inject_adapter(&config, "default").unwrap();
        injected.load_adapter_state_dict(&state, "default").unwrap();
        assert!(same_bits(&injected.forward(&ids()), &model.forward(&ids())));

        // A file in which the two layers differ says two things.
        let mut apart = state;
        let shared = |key: &&String| key.contains("lm_head") && !key.contains("base_layer");
        let key = apart.keys().find(shared).unwrap().clone();
        let other = (&apart[&key] + 1.0).unwrap();
        apart.insert(key, other);
        let stored = StoredAdapter::new("apart", model.adapter_config("default").unwrap(), apart).unwrap();
        stored.save(folder.path()).unwrap();
        let error = base.clone().load_adapter(folder.path(), "default").unwrap_err();
        let text = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert!(text.contains("has other values than those of the embedding"), "{text}");
    }
}

#[test]
fn merging_into_files_gives_both_layers_one_weight() {
    let mut model = Model::new(true);
    model.inject_adapter(&lora(&["lm_head", "lin"]), "default").unwrap();
    perturb(&model);
    let folder = tempfile::tempdir().unwrap();
    let adapter = folder.path().join("adapter");
    model.save_pretrained(&adapter, "default").unwrap();
    let mut base = model.base_state_dict();
    // As transformers saves a tied model.
    base.remove("lm_head.weight");
    let file = folder.path().join("model.safetensors");
    candle_core::safetensors::save(&base.into_iter().collect(), &file).unwrap();
    model.merge_adapters(&MergeOptions::active()).unwrap();
    let merged = MergedWeights::new(ModelWeights::open(&file).unwrap());
    let merged = merged.add(StoredAdapter::open(&adapter).unwrap(), 1.0).unwrap();
    let vb = merged.var_builder(candle_core::DType::F32, &Device::Cpu);
    let table = vb.get((VOCABULARY, FEATURES), "embed_tokens.weight").unwrap();
    assert_close(&table, &weights(&model)[0], Tolerance::absolute(1e-6), "the merged table");
    vb.get((FEATURES, FEATURES), "lin.weight").unwrap();
    merged.finish().unwrap();

    // A full copy takes the place of the weight that both have.
    let mut copied = Model::new(true);
    copied.inject_adapter(&lora(&["lin"]).with_modules_to_save(["lm_head"]), "default").unwrap();
    perturb(&copied);
    let copy = copied.adapter_state_dict("default").unwrap()["base_model.model.lm_head.weight"].clone();
    copied.save_pretrained(folder.path().join("copy"), "default").unwrap();
    let merged = MergedWeights::new(ModelWeights::open(&file).unwrap());
    let merged = merged.add(StoredAdapter::open(folder.path().join("copy")).unwrap(), 1.0).unwrap();
    let vb = merged.var_builder(candle_core::DType::F32, &Device::Cpu);
    assert!(same_bits(&vb.get((VOCABULARY, FEATURES), "embed_tokens.weight").unwrap(), &copy));
    vb.get((FEATURES, FEATURES), "lin.weight").unwrap();
    merged.finish().unwrap();

    // As plain LoRA the two are adapters like any other.
    let stored = StoredAdapter::open(&adapter).unwrap();
    let plain = stored.to_plain_lora(None::<&BaseWeights>).unwrap();
    let config = plain.config().downcast_ref::<LoraConfig>().unwrap().clone();
    assert!(!config.weight_tying());
    plain.save(folder.path().join("plain")).unwrap();
    model.unmerge_adapters().unwrap();
    let output = model.forward(&ids());
    model.unload().unwrap();
    model.load_adapter(folder.path().join("plain"), "default").unwrap();
    assert_close(&model.forward(&ids()), &output, Tolerance::absolute(1e-5), "the output");
}

#[test]
fn where_nothing_can_be_tied_a_caller_hears_it_and_a_file_changes_nothing() {
    let untied = refusal(&mut Model::new(false), &lora(&["lm_head"]));
    assert!(untied.contains("no output layer of the model has the weight of its embedding"), "{untied}");
    let unnamed = refusal(&mut Model::new(true), &lora(&["lin"]));
    assert!(unnamed.contains("neither `target_modules` nor `modules_to_save` names"), "{unnamed}");
    let dora = refusal(&mut Model::new(true), &lora(&["lm_head"]).with_dora(true));
    assert!(dora.contains("it shares factors, and neither DoRA's magnitudes"), "{dora}");
    let both =
        refusal(&mut Model::new(true), &lora(&["lm_head", "lin"]).with_modules_to_save(["embed_tokens"]));
    assert!(both.contains("`lm_head` gets a copy, and is one of the targets as well"), "{both}");
    let excluded = lora(&["lm_head", "lin"]).with_exclude_modules(["embed_tokens"]);
    let excluded = refusal(&mut Model::new(true), &excluded);
    assert!(
        excluded.contains("`lm_head` gets what `embed_tokens` gets, which other fields rule out"),
        "{excluded}"
    );

    let folder = tempfile::tempdir().unwrap();
    let mut model = Model::new(true);
    model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(["lin"]), "default").unwrap();
    model.save_pretrained(folder.path(), "default").unwrap();
    let path = folder.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let tied = text.replace(r#""ensure_weight_tying": false"#, r#""ensure_weight_tying": true"#);
    assert_ne!(text, tied);
    std::fs::write(&path, tied).unwrap();
    for tied in [false, true] {
        let report = Model::new(tied).load_adapter(folder.path(), "default").unwrap();
        assert_eq!(texts(&report.injection.adapted), ["lin"]);
    }
}

#[test]
fn a_tied_head_may_be_named_with_the_tokens_of_the_embedding_or_with_others() {
    let named = |head: &[u32]| {
        let tokens = [("embed_tokens", vec![2u32, 4]), ("lm_head", head.to_vec())];
        lora(&["lin"]).with_weight_tying(false).with_trainable_tokens(tokens)
    };
    let mut same = Model::new(true);
    same.inject_adapter(&named(&[2, 4]), "a").unwrap();
    assert_eq!(keys(&same, "a").len(), 3, "the head has the rows of the embedding");
    let mut other = Model::new(true);
    other.inject_adapter(&named(&[2, 5]), "a").unwrap();
    assert_eq!(keys(&other, "a").len(), 4, "the head has rows of its own");
    let text = refusal(&mut Model::new(true), &named(&[2, 5]).with_weight_tying(true));
    assert!(text.contains("it has other tokens than `embed_tokens`, whose weight it has"), "{text}");
}

#[test]
fn patterns_reach_the_tied_layer() {
    let mut model = Model::new(true);
    let config = lora(&["embed_tokens", "lin"]).with_alpha_pattern([("lm_head", 8.0)]);
    let report = model.inject_adapter(&config, "default").unwrap();
    assert_eq!(report.unmatched_patterns, []);
    assert_eq!(texts(&report.adapted), ["embed_tokens", "lin", "lm_head"]);
}
