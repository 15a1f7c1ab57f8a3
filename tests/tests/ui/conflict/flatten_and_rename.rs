use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
struct Inner {
    linear: Adapted<Linear>,
}

#[derive(Injectable)]
struct Model {
    #[peft(flatten, rename = "inner")]
    inner: Inner,
}

fn main() {}
