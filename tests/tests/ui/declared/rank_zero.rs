use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(target = "linear", lora(rank = 0, alpha = 16))]
struct Model {
    linear: Adapted<Linear>,
}

fn main() {}
