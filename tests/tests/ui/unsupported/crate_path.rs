use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(crate = "Vec<u8>")]
struct Model {
    linear: Adapted<Linear>,
}

fn main() {}
