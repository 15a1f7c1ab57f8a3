use peft_runtime::prelude::*;

#[derive(Injectable)]
union Model {
    a: u32,
    b: f32,
}

fn main() {}
