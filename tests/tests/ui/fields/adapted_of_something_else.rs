use peft_runtime::prelude::*;

#[derive(Injectable)]
struct Model {
    linear: Adapted<String>,
}

fn main() {}
