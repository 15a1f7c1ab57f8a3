use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
struct Mlp {
    down_proj: Adapted<Linear>,
}

#[derive(Injectable)]
struct Model {
    mlp: Mlp,
}

fn main() {
    let _ = targets!(Model; "mpl.down_proj");
    let _ = targets!(Model; "layers.*.mlp.down_proj");
}
