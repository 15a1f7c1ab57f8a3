use candle_core::{Device, Tensor};
use finetune::{Result, continue_text, open};
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;
use peft_runtime::train::{AdamW, Schedule, Trainer};

const STEPS: u64 = 100;
/// Tokens in one step.
const LENGTH: usize = 256;

/// The mean loss on a text, without training on it.
fn loss_on(model: &LlamaModel, tokens: &[u32]) -> Result<f32> {
    let mut losses = Vec::new();
    for piece in tokens.chunks_exact(LENGTH) {
        let ids = Tensor::new(piece, &Device::Cpu)?.unsqueeze(0)?;
        losses.push(no_grad(|| model.loss(&ids, &ids))?.to_scalar::<f32>()?);
    }
    Ok(losses.iter().sum::<f32>() / losses.len() as f32)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, file, prompt] = arguments.as_slice() else {
        return Err("usage: train NAME TEXT-FILE PROMPT".into());
    };
    let (mut model, tokenizer) = open("smollm2")?;
    println!("before: {prompt}{}\n", continue_text(&model, &tokenizer, prompt)?);

    // The last tenth of the text is held out.
    let tokens = tokenizer.encode(std::fs::read_to_string(file)?, false)?;
    let (training, held_out) = tokens.get_ids().split_at(tokens.len() * 9 / 10);
    let pieces: Vec<&[u32]> = training.chunks_exact(LENGTH).collect();
    if held_out.len() < LENGTH {
        return Err(format!("`{file}` has {} tokens; {} are needed", tokens.len(), 10 * LENGTH).into());
    }

    let config = LoraConfig::new(8, 16.0).with_targets("all-linear").with_task_type("CAUSAL_LM");
    println!("{}", model.inject_adapter(&config, name)?);
    println!("{}", model.trainable_summary());
    println!("held-out loss {:.3}", loss_on(&model, held_out)?);

    let optimizer = AdamW::for_model(&model, 5e-4)?;
    let mut trainer = Trainer::new(&model, optimizer, Schedule::cosine(STEPS).with_warm_up(5))?
        .with_clipping(1.0)
        .with_checkpoints(format!("runs/{name}"), 25);
    if let Some(checkpoint) = trainer.resume(&model)? {
        println!("resuming from {}", checkpoint.folder().display());
    }
    model.train();
    while trainer.steps() < STEPS {
        let piece = pieces[trainer.batches() as usize % pieces.len()];
        let ids = Tensor::new(piece, &Device::Cpu)?.unsqueeze(0)?;
        let report = trainer.step(&model, &model.loss(&ids, &ids)?)?;
        if report.step % 20 == 0 {
            println!("step {}: loss {:.3}", report.step, report.loss);
        }
    }

    model.eval();
    println!("held-out loss {:.3}\n", loss_on(&model, held_out)?);
    println!("after: {prompt}{}\n", continue_text(&model, &tokenizer, prompt)?);
    println!("saved in {}", model.save_pretrained("adapters", name)?.display());
    Ok(())
}
