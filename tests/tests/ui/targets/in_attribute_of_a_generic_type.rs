use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(target = "valu")]
struct Model<T> {
    value: T,
}

const _: () = {
    // A generic type has no names of its own: they are checked where one of its instances is used.
    let _ = <Model<Adapted<Linear>> as Injectable>::DECLARED;
};

fn main() {}
