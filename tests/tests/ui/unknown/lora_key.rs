use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(target = "linear", lora(rnk = 8))]
struct Model {
    linear: Adapted<Linear>,
}

fn main() {}
