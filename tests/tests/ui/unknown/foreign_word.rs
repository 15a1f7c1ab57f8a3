use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(target_modules = ["linear"])]
struct Model {
    linear: Adapted<Linear>,
}

fn main() {}
