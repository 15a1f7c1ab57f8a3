use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(lora(rank = 8))]
struct Model {
    linear: Adapted<Linear>,
}

fn main() {}
