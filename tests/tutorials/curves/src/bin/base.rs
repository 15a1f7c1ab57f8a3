use candle_core::{DType, Device, Tensor};
use candle_nn::{AdamW, Module, Optimizer, VarBuilder, VarMap, loss};
use curves::Curve;
use peft_runtime::prelude::*;

fn main() -> peft_runtime::Result<()> {
    let varmap = VarMap::new();
    let model = Curve::new(VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu))?;
    let x = Tensor::arange_step(-3.2f32, 3.2, 0.05, &Device::Cpu)?.unsqueeze(1)?;
    let y = x.sin()?;

    let mut optimizer = AdamW::new_lr(varmap.all_vars(), 1e-2)?;
    for step in 1..=1000 {
        let loss = loss::mse(&model.forward(&x)?, &y)?;
        optimizer.backward_step(&loss)?;
        if step % 250 == 0 {
            println!("step {step}: loss {:.6}", loss.to_scalar::<f32>()?);
        }
    }
    varmap.save("base.safetensors")?;
    println!("{}", model.module_tree());
    Ok(())
}
