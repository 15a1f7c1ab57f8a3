use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
struct Model {
    linear: Adapted<Linear>,
    #[peft(rename = "linear")]
    other: Adapted<Linear>,
}

fn main() {}
