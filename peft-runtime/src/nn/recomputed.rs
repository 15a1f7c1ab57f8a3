//! Gradient checkpointing for the blocks of a model.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::layer::Scope;
use crate::ops::recompute;

/// Gradient checkpointing: computes `forward(block, x)`, of which the graph keeps only `x`; the backward pass computes
/// the block again.
///
/// A model of many blocks then holds the activations of one block at a time, at the cost of about one more forward
/// pass. The gradients are the same; adapter dropout drops the same elements in both runs, and rows are routed as
/// before. `block` is cloned, which shares its tensors. What the block trains is found automatically, even behind
/// tensors that `forward` captures.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Linear, Module};
/// use peft_runtime::nn;
/// use peft_runtime::prelude::*;
///
/// #[derive(Clone, Injectable)]
/// struct Block {
///     linear: Adapted<Linear>,
/// }
///
/// #[derive(Injectable)]
/// struct Model {
///     blocks: Vec<Block>,
/// }
///
/// impl Model {
///     fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
///         let mut x = x.clone();
///         for block in &self.blocks {
///             x = nn::recomputed(block, &x, |block, x| block.linear.forward(x)?.tanh())?;
///         }
///         Ok(x)
///     }
/// }
///
/// let block = || Ok::<_, candle_core::Error>(Block {
///     linear: Linear::new(Tensor::randn(0f32, 1., (4, 4), &Device::Cpu)?, None).into(),
/// });
/// let mut model = Model { blocks: vec![block()?, block()?] };
/// model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(targets!(Model; "linear")), "default")?;
/// let x = Tensor::ones((3, 4), DType::F32, &Device::Cpu)?;
/// let grads = model.forward(&x)?.sum_all()?.backward()?;
/// peft_runtime::train::audit(&model, &grads).ensure_complete()?;
/// # Ok::<(), peft_runtime::Error>(())
/// ```
///
/// # Errors
/// If `forward` fails. The backward pass fails if the block computes or trains something else the second time, which
/// happens when it draws unseeded random numbers, as candle's own dropout does.
pub fn recomputed<B, F>(block: &B, x: &Tensor, forward: F) -> Result<Tensor>
where
    B: Clone + Send + Sync + 'static,
    F: Fn(&B, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    let forward = Arc::new(forward);
    let again = {
        let (scope, block, forward) = (Scope::current(), block.clone(), Arc::clone(&forward));
        move |x: &Tensor| scope.enter(|| forward(&block, x))
    };
    recompute::recomputed(x, |x| forward(block, x), again)
}
