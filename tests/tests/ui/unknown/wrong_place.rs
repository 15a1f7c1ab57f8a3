use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(skip)]
struct Model {
    #[peft(target = "linear")]
    linear: Adapted<Linear>,
}

fn main() {}
