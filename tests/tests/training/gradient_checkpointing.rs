//! Blocks that are computed once more in the backward pass.

use peft_runtime::prelude::*;
use peft_runtime::train::audit;
use peft_tests::specimen::bits;
use peft_tests::training::{Method, Mlp, input};

#[test]
fn checkpointed_blocks_have_the_same_gradients_with_dropout() {
    let model = Mlp::adapted(Method::Lora).unwrap();
    // A clone shares the variables, and its dropout begins where the model's does.
    let twin = model.clone();
    for number in 0..3 {
        let x = input(number).unwrap();
        let plain = model.forward(&x).unwrap().sqr().unwrap().mean_all().unwrap();
        let checkpointed = twin.forward_checkpointed(&x).unwrap().sqr().unwrap().mean_all().unwrap();
        assert_eq!(bits(&plain).unwrap(), bits(&checkpointed).unwrap());
        let (plain, checkpointed) = (plain.backward().unwrap(), checkpointed.backward().unwrap());
        audit(&twin, &checkpointed).ensure_complete().unwrap();
        for (name, var) in model.trainable_parameters() {
            let [a, b] = [&plain, &checkpointed].map(|grads| bits(grads.get(&var).unwrap()).unwrap());
            assert_eq!(a, b, "{name}");
        }
    }
}
