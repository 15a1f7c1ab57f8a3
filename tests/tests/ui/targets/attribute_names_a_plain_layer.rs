use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(target = "lm_head")]
struct Model {
    lm_head: Linear,
}

fn main() {}
