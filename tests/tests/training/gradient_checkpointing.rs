//! Blocks that are recomputed in the backward pass.

use peft_runtime::prelude::*;
use peft_runtime::train::audit;
use peft_tests::tensors::bits;
use peft_tests::training::{Method, Mlp, input};

#[test]
fn recomputed_blocks_have_the_same_gradients_with_dropout() {
    let model = Mlp::adapted(Method::Lora).unwrap();
    // A clone shares the variables, and its dropout starts from where the model's is.
    let twin = model.clone();
    for number in 0..3 {
        let x = input(number).unwrap();
        let plain = model.forward(&x).unwrap().sqr().unwrap().mean_all().unwrap();
        let recomputed = twin.forward_recomputed(&x).unwrap().sqr().unwrap().mean_all().unwrap();
        assert_eq!(bits(&plain).unwrap(), bits(&recomputed).unwrap());
        let (plain, recomputed) = (plain.backward().unwrap(), recomputed.backward().unwrap());
        audit(&twin, &recomputed).ensure_complete().unwrap();
        for (name, var) in model.trainable_parameters() {
            let [a, b] = [&plain, &recomputed].map(|grads| bits(grads.get(&var).unwrap()).unwrap());
            assert_eq!(a, b, "{name}");
        }
    }
}
