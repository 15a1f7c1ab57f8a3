use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
struct Model {
    #[peft(rename = "")]
    first: Adapted<Linear>,
    #[peft(rename = "a..b")]
    second: Adapted<Linear>,
    #[peft(rename = "a b")]
    third: Adapted<Linear>,
}

fn main() {}
