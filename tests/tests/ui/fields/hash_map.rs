use candle_nn::Linear;
use peft_runtime::prelude::*;

use std::collections::HashMap;

#[derive(Injectable)]
struct Model {
    experts: HashMap<String, Adapted<Linear>>,
}

fn main() {}
