//! Fine-tunes a language model on a text: LoRA, QLoRA, DoRA, AdaLoRA or IA3 on Llama, Mistral, Qwen or SmolLM2.

mod arguments;
mod data;
mod language;
mod training;
mod vocabulary;

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use clap::Parser;
use peft_examples::memory::peak_resident_mib;
use peft_examples::progress::{result, say};
use peft_examples::source::model_path;
use peft_examples::threads::on_threads;
use peft_runtime::models::generate::{GenerateOptions, generate};
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;
use serde_json::json;

use arguments::{Arguments, Method};
use data::Data;
use language::Language;
use training::Run;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    on_threads(arguments.threads, || run(&arguments))
}

/// Loads, trains, and shows the result.
fn run(arguments: &Arguments) -> Result<()> {
    let path = model_path(&arguments.model)?;
    let language = Language::open(&path, arguments.tokenizer.as_deref())?;
    let data = Data::load(arguments.data.as_deref(), &language, arguments.seq)?;
    let (training, held_out) = data.sizes();
    say(format!("{training} tokens to train on, {held_out} held out"));

    let mut model = load(arguments, &path)?;
    say(model.inject_adapter(&*arguments.config(), "default")?.to_string());
    say(model.trainable_summary());
    model.set_gradient_checkpointing(arguments.checkpointing);

    let prompt = match &arguments.prompt {
        Some(prompt) => language.encode_prompt(prompt)?,
        None => data.prompt().to_vec(),
    };
    let write = |model: &LlamaModel| -> Result<String> {
        let options = GenerateOptions::new(arguments.new_tokens)
            .with_temperature(arguments.temperature)
            .with_top_p(0.95)
            .with_seed(arguments.seed)
            .with_stop_tokens(language.last.iter().copied());
        let tokens = generate(model, &prompt, &options, |_| ())?;
        Ok(format!("{}|{}", language.decode(&prompt)?, language.decode(&tokens)?))
    };
    // Before the first checkpoint is read, the adapter changes nothing.
    result(format!("before training:\n{}\n", write(&model)?));
    let mut run = Run::new(arguments, &data, &model)?;
    let before = run.evaluate(&mut model)?;
    result(format!("held-out loss at the beginning: {before:.4}"));
    run.train(&mut model)?;
    let after = run.evaluate(&mut model)?;
    model.eval();
    result(format!("held-out loss at the end: {after:.4}\n"));
    result(format!("after training:\n{}\n", write(&model)?));
    if let Some(table) = run.ranks() {
        say(table);
    }

    write_files(arguments, &data, &model, &run)?;
    let trainable: usize = model.trainable_parameters().iter().map(|(_, var)| var.elem_count()).sum();
    let summary = json!({
        "held_out_before": before,
        "held_out_after": after,
        "steps": arguments.steps,
        "seconds": run.seconds(),
        "tokens_per_second": run.tokens_per_second(),
        "peak_rss_mb": peak_resident_mib(),
        "trainable": trainable,
    });
    result(summary.to_string());
    Ok(())
}

/// Writes the files that the options ask for.
fn write_files(arguments: &Arguments, data: &Data, model: &LlamaModel, run: &Run<'_>) -> Result<()> {
    if let Some(folder) = &arguments.save {
        let saved = model.save_pretrained(folder, "default")?;
        say(format!("saved the adapter in {}", saved.display()));
    }
    if let Some(path) = &arguments.logits {
        write_logits(data, model, path).with_context(|| format!("writing {}", path.display()))?;
        say(format!("wrote the logits to {}", path.display()));
    }
    if let Some(path) = &arguments.plot {
        run.draw(path)?;
        say(format!("drew the losses in {}", path.display()));
    }
    Ok(())
}

/// Writes what the model computes for the first sequence of the held-out text, so that others can compare with it.
fn write_logits(data: &Data, model: &LlamaModel, path: &Path) -> Result<()> {
    let ids = data.held_out().next().context("there is no held-out text")??;
    let logits = no_grad(|| model.forward(&ids, None))?;
    // Not every reader of safetensors has unsigned numbers of this size.
    let tensors = [("input_ids", ids.to_dtype(DType::I64)?), ("logits", logits)];
    safetensors::serialize_to_file(tensors, None, path)?;
    Ok(())
}

/// The model in a folder or a GGUF file; with QLoRA its linear layers are quantized.
fn load(arguments: &Arguments, path: &Path) -> Result<LlamaModel> {
    let (dtype, device) = (arguments.dtype, &Device::Cpu);
    let quantized = arguments.method == Method::Qlora;
    Ok(match (path.is_dir(), quantized) {
        (true, false) => LlamaModel::from_folder(path, dtype, device)?,
        (true, true) => LlamaModel::from_folder_quantized_in(path, arguments.quantized, dtype, device)?,
        (false, false) => LlamaModel::from_gguf_in(path, dtype, device)?,
        (false, true) => LlamaModel::from_gguf_quantized_in(path, dtype, device)?,
    })
}
