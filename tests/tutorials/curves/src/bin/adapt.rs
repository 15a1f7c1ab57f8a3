use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, loss};
use curves::Curve;
use peft_runtime::ModelWeights;
use peft_runtime::prelude::*;
use peft_runtime::train::{AdamW, Schedule, Trainer};

/// What the adapter called `name` learns.
fn wanted(name: &str, x: &Tensor) -> candle_core::Result<Tensor> {
    match name {
        "cosine" => x.cos(),
        "double" => x.sin()? * 2.0,
        "ramp" => x / 3.2,
        _ => candle_core::bail!("no curve is called `{name}`; there are cosine, double and ramp"),
    }
}

const STEPS: u64 = 400;

fn main() -> peft_runtime::Result<()> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "cosine".to_owned());
    let x = Tensor::arange_step(-3.2f32, 3.2, 0.05, &Device::Cpu)?.unsqueeze(1)?;
    let y = wanted(&name, &x)?;

    let vb = ModelWeights::open("base.safetensors")?.var_builder(DType::F32, &Device::Cpu);
    let mut model = Curve::new(vb)?;
    println!("{}", model.inject_adapter(&LoraConfig::new(4, 8.0), &name)?);
    println!("{}", model.trainable_summary());

    let optimizer = AdamW::for_model(&model, 1e-2)?;
    let mut trainer = Trainer::new(&model, optimizer, Schedule::linear(STEPS).with_warm_up(20))?
        .with_clipping(1.0)
        .with_checkpoints(format!("runs/{name}"), 100);
    if let Some(checkpoint) = trainer.resume(&model)? {
        println!("resuming from {}", checkpoint.folder().display());
    }
    while trainer.steps() < STEPS {
        let loss = loss::mse(&model.forward(&x)?, &y)?;
        let report = trainer.step(&model, &loss)?;
        if report.step % 100 == 0 {
            println!("step {}: loss {:.6}", report.step, report.loss);
        }
    }

    let folder = model.save_pretrained("adapters", &name)?;
    println!("saved in {}", folder.display());
    Ok(())
}
