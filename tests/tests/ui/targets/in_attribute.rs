use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(target = ["query", "valu"])]
struct Model {
    query: Adapted<Linear>,
    value: Adapted<Linear>,
}

fn main() {}
