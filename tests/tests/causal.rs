//! Language models compared with transformers on tiny random ones; `python/causal_fixture.py` wrote the fixtures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use peft_runtime::ModelWeights;
use peft_runtime::models::generate::{CausalModel, GenerateOptions, generate};
use peft_runtime::models::gpt2::Gpt2Model;
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::randomise;
use serde::de::DeserializeOwned;
use serde_json::json;

/// The relatives of Llama in the fixture.
const LLAMAS: [&str; 5] = ["llama", "biased", "mistral", "qwen2", "qwen3"];
/// The models that are GGUF files.
const GGUFS: [&str; 3] = ["llama_gguf", "qwen2_gguf", "qwen3_gguf"];
const TOLERANCE: Tolerance = Tolerance::absolute(1e-4);
/// How many tokens of the first row are the prompt of the greedy continuations.
const PROMPT: usize = 6;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn fixture() -> ModelWeights {
    ModelWeights::open(path("causal.safetensors")).unwrap()
}

fn tensor(name: &str, key: &str) -> Tensor {
    fixture().tensor(&format!("{name}.{key}"), &Device::Cpu).unwrap()
}

fn config_text(name: &str) -> String {
    String::from_utf8(tensor(name, "config").to_vec1().unwrap()).unwrap()
}

fn config<C: DeserializeOwned>(name: &str) -> C {
    serde_json::from_str(&config_text(name)).unwrap()
}

fn weights(name: &str) -> VarBuilder<'static> {
    fixture().var_builder(DType::F32, &Device::Cpu).pp(name).pp("weights")
}

fn llama(name: &str) -> LlamaModel {
    LlamaModel::new(&config(name), weights(name)).unwrap()
}

fn gpt2() -> Gpt2Model {
    Gpt2Model::new(&config("gpt2"), weights("gpt2")).unwrap()
}

/// What the tests need from both models.
trait Language: CausalModel {
    fn logits(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Tensor>;
    fn next_token_loss(&self, ids: &Tensor, labels: &Tensor) -> Result<Tensor>;
}

impl Language for LlamaModel {
    fn logits(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        self.forward(ids, mask)
    }

    fn next_token_loss(&self, ids: &Tensor, labels: &Tensor) -> Result<Tensor> {
        self.loss(ids, labels)
    }
}

impl Language for Gpt2Model {
    fn logits(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        self.forward(ids, mask)
    }

    fn next_token_loss(&self, ids: &Tensor, labels: &Tensor) -> Result<Tensor> {
        self.loss(ids, labels)
    }
}

fn check_logits(name: &str, model: &impl Language) {
    let mask = tensor(name, "attention_mask");
    let logits = model.logits(&tensor(name, "input_ids"), Some(&mask)).unwrap();
    assert_close(&logits, &tensor(name, "logits"), TOLERANCE, format_args!("the logits of `{name}`"));
}

fn check_loss(name: &str, model: &impl Language) {
    let loss = model.next_token_loss(&tensor(name, "input_ids"), &tensor(name, "labels")).unwrap();
    assert_close(
        &loss.reshape(1).unwrap(),
        &tensor(name, "loss"),
        TOLERANCE,
        format_args!("the loss of `{name}`"),
    );
}

fn prompt(name: &str) -> Vec<u32> {
    let ids = tensor(name, "input_ids").get(0).unwrap().to_dtype(DType::U32).unwrap();
    ids.narrow(0, 0, PROMPT).unwrap().to_vec1().unwrap()
}

fn greedy(name: &str) -> Vec<u32> {
    tensor(name, "greedy").to_dtype(DType::U32).unwrap().to_vec1().unwrap()
}

fn check_generation(name: &str, model: &impl Language) {
    let expected = greedy(name);
    let mut seen = Vec::new();
    let options = GenerateOptions::new(expected.len());
    let tokens = generate(model, &prompt(name), &options, |token| seen.push(token)).unwrap();
    assert_eq!(tokens, expected, "`{name}` continues differently");
    assert_eq!(seen, expected);
}

#[test]
fn logits_are_those_of_transformers() {
    for name in LLAMAS {
        check_logits(name, &llama(name));
    }
    check_logits("gpt2", &gpt2());
}

#[test]
fn the_loss_is_that_of_transformers_whichever_way_the_head_is_computed() {
    for name in LLAMAS {
        let mut model = llama(name);
        check_loss(name, &model);
        // With an adapter on the head, the logits are formed. A fresh one changes nothing.
        model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(["lm_head"]), "default").unwrap();
        check_loss(name, &model);
    }
    let mut model = gpt2();
    check_loss("gpt2", &model);
    model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(["lm_head"]), "default").unwrap();
    check_loss("gpt2", &model);
}

#[test]
fn greedy_continuations_with_the_cache_are_those_of_transformers_without() {
    for name in LLAMAS {
        check_generation(name, &llama(name));
    }
    check_generation("gpt2", &gpt2());
}

#[test]
fn gguf_files_are_read_dense_and_quantized() {
    for name in GGUFS {
        let file = path(&format!("{name}.gguf"));
        for model in [
            LlamaModel::from_gguf(&file, &Device::Cpu).unwrap(),
            LlamaModel::from_gguf_quantized(&file, &Device::Cpu).unwrap(),
        ] {
            check_logits(name, &model);
            check_loss(name, &model);
            check_generation(name, &model);
        }
    }
}

#[test]
fn a_damaged_gguf_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cut.gguf");
    let bytes = std::fs::read(path("llama_gguf.gguf")).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let error = LlamaModel::from_gguf(&file, &Device::Cpu).unwrap_err();
    assert!(error.chain().contains("cut.gguf"), "{}", error.chain());
}

/// Writes a model of the fixture as a HuggingFace folder with two weight files.
fn write_folder(name: &str, folder: &Path) {
    let fixture = fixture();
    let prefix = format!("{name}.weights.");
    let stored = fixture.names().filter_map(|key| Some((key, key.strip_prefix(&prefix)?.to_owned())));
    let mut files: [BTreeMap<String, Tensor>; 2] = Default::default();
    let mut index = BTreeMap::new();
    for (place, (key, name)) in stored.enumerate() {
        let file = place % files.len();
        index.insert(name.clone(), format!("model-{file}.safetensors"));
        files[file].insert(name, fixture.tensor(key, &Device::Cpu).unwrap());
    }
    for (number, tensors) in files.iter().enumerate() {
        let bytes = safetensors::serialize(tensors.iter(), None).unwrap();
        std::fs::write(folder.join(format!("model-{number}.safetensors")), bytes).unwrap();
    }
    let index = json!({"metadata": {}, "weight_map": index}).to_string();
    std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    std::fs::write(folder.join("config.json"), config_text(name)).unwrap();
}

#[test]
fn folders_may_have_several_weight_files() {
    for name in LLAMAS {
        let folder = tempfile::tempdir().unwrap();
        write_folder(name, folder.path());
        let model = LlamaModel::from_folder(folder.path(), DType::F32, &Device::Cpu).unwrap();
        check_logits(name, &model);
    }
    let folder = tempfile::tempdir().unwrap();
    write_folder("gpt2", folder.path());
    check_logits("gpt2", &Gpt2Model::from_folder(folder.path(), DType::F32, &Device::Cpu).unwrap());
}

#[test]
fn the_linear_layers_of_a_folder_are_quantized_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    write_folder("llama", folder.path());
    let quantized = |dtype| LlamaModel::from_folder_quantized(folder.path(), dtype, &Device::Cpu);
    // With blocks of one float, the values are the dense ones.
    let model = quantized(GgmlDType::F32).unwrap();
    check_logits("llama", &model);
    check_loss("llama", &model);
    assert!(model.base_state_dict().keys().all(|name| !name.ends_with("_proj.weight")));
    // No layer of the tiny model has a multiple of 256 inputs.
    assert!(quantized(GgmlDType::Q4K).is_err());
}

#[test]
fn a_config_of_another_model_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    write_folder("gpt2", folder.path());
    let error = LlamaModel::from_folder(folder.path(), DType::F32, &Device::Cpu).unwrap_err().chain();
    assert!(error.contains("config.json") && error.contains("gpt2"), "{error}");
}

#[test]
fn sequences_beyond_the_window_or_the_last_position_are_refused() {
    let ids = Tensor::ones((1, 33), DType::U32, &Device::Cpu).unwrap();
    let error = llama("mistral").forward(&ids, None).unwrap_err().to_string();
    assert!(error.contains("window of 32"), "{error}");
    let error = gpt2().forward(&ids, None).unwrap_err().to_string();
    assert!(error.contains("32 positions"), "{error}");
}

#[test]
fn checkpointing_changes_no_gradient() {
    let mut model = llama("qwen3");
    model.inject_adapter(&LoraConfig::new(2, 4.0).with_dropout(0.1), "default").unwrap();
    randomise(&mut model, "default", 0.2).unwrap();
    let (ids, labels) = (tensor("qwen3", "input_ids"), tensor("qwen3", "labels"));
    model.train();
    // Dropout advances its streams, so each run starts from its own model.
    let gradients = |checkpointing: bool| {
        let mut model = model.clone();
        model.set_gradient_checkpointing(checkpointing);
        let grads = model.loss(&ids, &labels).unwrap().backward().unwrap();
        let variables = model.trainable_parameters().into_iter();
        variables.map(|(name, var)| (name, grads.get(&var).unwrap().clone())).collect::<Vec<_>>()
    };
    let (plain, recomputed) = (gradients(false), gradients(true));
    // `q_proj` and `v_proj` of two blocks, which are the targets of this model type.
    assert_eq!(plain.len(), 8);
    for ((name, plain), (_, recomputed)) in plain.iter().zip(&recomputed) {
        assert_close(plain, recomputed, Tolerance::absolute(1e-6), format_args!("the gradient of `{name}`"));
    }
}

#[test]
fn adapters_are_merged_once_a_quantized_model_is_dense() {
    let mut model = LlamaModel::from_gguf_quantized(path("llama_gguf.gguf"), &Device::Cpu).unwrap();
    model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(["q_proj", "down_proj"]), "default").unwrap();
    randomise(&mut model, "default", 0.2).unwrap();
    let ids = tensor("llama_gguf", "input_ids");
    let adapted = model.forward(&ids, None).unwrap();
    assert!(model.merge_adapters(&MergeOptions::active()).is_err());
    model.dequantize().unwrap();
    model.merge_adapters(&MergeOptions::active()).unwrap();
    let merged = model.forward(&ids, None).unwrap();
    assert_close(&adapted, &merged, TOLERANCE, "merged and not merged");
    model.disable_adapters();
    check_generation("llama_gguf", &model);
}

#[test]
fn drawn_tokens_depend_only_on_the_seed_and_stop_tokens_end_the_text() {
    let model = llama("mistral");
    let prompt = prompt("mistral");
    let draw = |seed| {
        let options = GenerateOptions::new(20).with_temperature(1.0).with_top_p(0.9).with_seed(seed);
        generate(&model, &prompt, &options, |_| ()).unwrap()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    let expected = greedy("mistral");
    let options = GenerateOptions::new(20).with_stop_tokens([expected[3]]);
    let first = expected.iter().position(|token| *token == expected[3]).unwrap();
    assert_eq!(generate(&model, &prompt, &options, |_| ()).unwrap(), expected[..first]);
    assert!(generate(&model, &[], &options, |_| ()).is_err());
}
