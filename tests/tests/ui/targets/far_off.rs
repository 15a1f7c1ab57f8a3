use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
struct Model {
    query: Adapted<Linear>,
    value: Adapted<Linear>,
}

fn main() {
    let _ = targets!(Model; "convolution");
}
