use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(target = 8)]
struct Model {
    #[peft(rename = name)]
    linear: Adapted<Linear>,
    #[peft(rank = "4")]
    other: Adapted<Linear>,
}

fn main() {}
