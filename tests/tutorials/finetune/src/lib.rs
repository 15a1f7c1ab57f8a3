//! What the programs share: reading a model, and continuing a text with it.

use std::error::Error;

use candle_core::{DType, Device};
use peft_runtime::models::generate::{GenerateOptions, generate};
use peft_runtime::models::llama::LlamaModel;
use tokenizers::Tokenizer;

pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Reads a model and its tokenizer from a folder.
pub fn open(folder: &str) -> Result<(LlamaModel, Tokenizer)> {
    let model = LlamaModel::from_folder(folder, DType::F32, &Device::Cpu)?;
    let mut tokenizer = Tokenizer::from_file(format!("{folder}/tokenizer.json"))?;
    // Some tokenizers cut long texts off unless told otherwise.
    tokenizer.with_truncation(None)?;
    Ok((model, tokenizer))
}

/// Continues `prompt` by up to 60 tokens.
pub fn continue_text(model: &LlamaModel, tokenizer: &Tokenizer, prompt: &str) -> Result<String> {
    let prompt = tokenizer.encode(prompt, false)?;
    let options = GenerateOptions::new(60)
        .with_temperature(0.7)
        .with_top_p(0.95)
        .with_stop_tokens(tokenizer.token_to_id("<|im_end|>"));
    let tokens = generate(model, prompt.get_ids(), &options, |_| ())?;
    tokenizer.decode(&tokens, true)
}
