use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
struct Tree {
    linear: Adapted<Linear>,
    children: Vec<Tree>,
}

fn main() {}
