use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
struct Attention {
    q_proj: Adapted<Linear>,
    k_proj: Adapted<Linear>,
}

#[derive(Injectable)]
struct Llama {
    layers: Vec<Attention>,
}

fn main() {
    let _ = targets!(Llama; "k_proj", "q_prj");
}
