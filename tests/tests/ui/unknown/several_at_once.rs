use candle_nn::Linear;
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(colour = "red")]
struct Model {
    #[peft(renam = "x")]
    first: Adapted<Linear>,
    #[peft(rank = 0)]
    second: Adapted<Linear>,
}

fn main() {
    // The stub impl keeps uses of the type from failing as well.
    let _ = targets!(Model; "anything");
}
