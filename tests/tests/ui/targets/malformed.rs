use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
struct Model {
    linear: Adapted<Linear>,
}

fn main() {
    let _ = targets!(Model);
    let _ = targets!(Model;);
    let _ = targets!(Model; linear);
    let _ = targets!(Model; 8, "");
}
