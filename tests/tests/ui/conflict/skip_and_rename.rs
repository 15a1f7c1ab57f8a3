use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
struct Model {
    linear: Adapted<Linear>,
    #[peft(skip, rename = "settings")]
    steps: usize,
}

fn main() {}
