use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
struct Model {
    linear: Adapted<Linear>,
    lm_head: Linear,
}

fn main() {
    let _ = targets!(Model; "lm_head");
}
