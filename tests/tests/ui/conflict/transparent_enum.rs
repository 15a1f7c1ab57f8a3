use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(transparent)]
enum Model {
    Linear(Adapted<Linear>),
}

fn main() {}
