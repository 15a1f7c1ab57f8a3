use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(target = "key", feedforward = "output")]
struct Model {
    key: Adapted<Linear>,
    output: Adapted<Linear>,
}

fn main() {}
