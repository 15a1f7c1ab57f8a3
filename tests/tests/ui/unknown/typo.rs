use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
struct Model {
    #[peft(skp)]
    linear: Adapted<Linear>,
}

fn main() {}
