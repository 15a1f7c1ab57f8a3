use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(target = "linear", lora(rank = 8, dropout = 1.5, bias = "some"))]
struct Model {
    linear: Adapted<Linear>,
}

fn main() {}
