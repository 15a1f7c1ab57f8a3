use candle_nn::Linear;
use peft_runtime::nn::Dropout;
use peft_runtime::prelude::*;

#[derive(Injectable)]
struct Model {
    linear: Adapted<Linear>,
    dropout: Dropout,
}

fn main() {
    let _ = targets!(Model; "dropout");
}
