use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(bound = "where T")]
struct Model<T> {
    linear: Adapted<Linear>,
    #[peft(skip)]
    other: T,
}

fn main() {}
