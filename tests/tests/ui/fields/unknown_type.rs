use candle_nn::Linear;
use peft_runtime::prelude::*;

struct KvCache;

#[derive(Injectable)]
struct Model {
    linear: Adapted<Linear>,
    cache: KvCache,
}

fn main() {}
