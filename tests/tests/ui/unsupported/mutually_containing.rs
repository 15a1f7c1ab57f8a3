use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
struct Node {
    linear: Adapted<Linear>,
    edges: Vec<Edge>,
}

#[derive(Injectable)]
struct Edge {
    to: Option<Box<Node>>,
}

fn main() {}
