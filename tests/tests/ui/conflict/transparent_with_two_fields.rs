use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(transparent)]
struct Model(Adapted<Linear>, Adapted<Linear>);

fn main() {}
