use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(target = "linear", target = "linear")]
struct Model {
    linear: Adapted<Linear>,
}

fn main() {}
