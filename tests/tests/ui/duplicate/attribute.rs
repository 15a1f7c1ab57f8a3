use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
struct Model {
    #[peft(rename = "a")]
    #[peft(rename = "b")]
    linear: Adapted<Linear>,
}

fn main() {}
