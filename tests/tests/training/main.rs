//! Training: optimisers, checkpoints of a run, losses that are not finite or of no target, the gradient audit, gradients compared with
//! slopes, gradient checkpointing.

mod audit;
mod gradient_checkpointing;
mod no_targets;
mod not_finite;
mod optimisers;
mod runs;
mod slopes;

use peft_runtime::prelude::*;
use peft_tests::tensors::bits;
use peft_tests::training::Mlp;

/// The bits of everything that is trainable.
fn trained(model: &Mlp) -> Vec<(String, Vec<u64>)> {
    let parameters = model.trainable_parameters().into_iter();
    parameters.map(|(name, var)| (name, bits(&var).unwrap())).collect()
}
