//! Gradient checkpointing: a block that keeps its input alone, and runs again in the backward pass.
//!
//! An op of candle can hand gradients to its arguments only, and a block trains variables that are none: they sit in its
//! layers. So the block's op has two arguments: the input, and all variables of the block in one flat tensor. candle's own
//! backward pass of that flat tensor takes the gradient apart again and carries it on to the variables.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, DType, Layout, MetalStorage, Result, Shape, Storage, Tensor, Var,
    bail,
};

use super::attach::with_gradient;
use super::promoted;
use super::replay::{recording, replaying};

/// `forward(x)`, of which the graph keeps `x` alone. The backward pass computes `again(x)`, which has to be the same, and
/// takes its gradients: they are those of a block that is no checkpoint.
///
/// Variables that `forward` uses get their gradients wherever it has them from, and also through tensors that it captures.
/// Dropout drops in both runs the same.
pub(crate) fn checkpointed(
    x: &Tensor,
    forward: impl FnOnce(&Tensor) -> Result<Tensor>,
    again: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    // The first run keeps its graph for a moment, which tells what it trains; it is the graph of this one block.
    let (y, draws) = recording(|| forward(&x.detach()))?;
    let variables = variables_of(&y)?;
    if variables.is_empty() && !x.track_op() {
        return Ok(y);
    }
    let flat = if variables.is_empty() {
        Tensor::zeros(1, DType::F32, x.device())?
    } else {
        flattened(&variables, |var| Ok(var.as_tensor().clone()))?
    };
    let y = y.detach();
    // The storage is copied as it is, so that it must hold the output and nothing before it.
    let whole = y.is_contiguous() && y.layout().start_offset() == 0;
    let y = if whole { y } else { y.force_contiguous()? };
    x.apply_op2(&flat, Checkpointed { again, draws, variables, output: Mutex::new(Some(y)) })
}

/// The variables that a tensor was computed from, in an order that its graph decides.
fn variables_of(y: &Tensor) -> Result<Vec<Var>> {
    let nodes = y.sorted_nodes().into_iter();
    let variables =
        nodes.filter(|node| node.is_variable() && node.dtype().is_float() && node.elem_count() > 0);
    variables.map(Var::from_tensor).collect()
}

/// One tensor for each variable, all in one vector, in a dtype that holds each of them without loss.
fn flattened(variables: &[Var], tensor: impl Fn(&Var) -> Result<Tensor>) -> Result<Tensor> {
    let dtypes = variables.iter().map(|var| var.dtype());
    let dtype = dtypes.reduce(promoted).unwrap_or(DType::F32);
    let flat = variables.iter().map(|var| tensor(var)?.flatten_all()?.to_dtype(dtype));
    Tensor::cat(&flat.collect::<Result<Vec<_>>>()?, 0)
}

struct Checkpointed<F> {
    again: F,
    draws: Vec<u64>,
    /// What the flat argument consists of.
    variables: Vec<Var>,
    /// The output until it is the op's.
    output: Mutex<Option<Tensor>>,
}

impl<F: Fn(&Tensor) -> Result<Tensor>> Checkpointed<F> {
    /// candle lets an op return fresh storage only, hence the copy.
    fn take_output<S: BackendStorage>(&self, on_device: fn(&Storage) -> Option<&S>) -> Result<(S, Shape)> {
        let Some(y) = self.output.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("a checkpointed block has one forward pass")
        };
        let (storage, layout) = y.storage_and_layout();
        let Some(storage) = on_device(&storage) else {
            bail!("the input and the output of a checkpointed block are on two devices")
        };
        Ok((storage.try_clone(layout)?, layout.shape().clone()))
    }

    /// The output once more, with its graph.
    fn run_again(&self, x: &Tensor, first: &Tensor) -> Result<Tensor> {
        let y = replaying(self.draws.clone(), || (self.again)(x))?;
        // The input is a variable of its own this time.
        let found: Vec<_> = variables_of(&y)?.iter().map(|var| var.id()).filter(|id| *id != x.id()).collect();
        if found.len() != self.variables.len() || !self.variables.iter().all(|var| found.contains(&var.id()))
        {
            bail!("a checkpointed block trains other variables when it runs again")
        }
        if !is_close(&y.detach(), &first.detach())? {
            bail!(
                "a checkpointed block computes something else when it runs again; \
                 does it draw random numbers that no seed decides, as candle's own dropout does?"
            )
        }
        Ok(y)
    }
}

/// Whether two runs gave the same, but for the order of sums. Elsewhere than on the CPU the answer would cost a wait for
/// the device.
fn is_close(a: &Tensor, b: &Tensor) -> Result<bool> {
    if a.dims() != b.dims() || a.dtype() != b.dtype() {
        return Ok(false);
    }
    if !a.device().is_cpu() || a.elem_count() == 0 {
        return Ok(true);
    }
    let size = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.abs()?.max_all()?.to_scalar::<f32>();
    let tolerance = if matches!(a.dtype(), DType::F16 | DType::BF16) { 2e-2 } else { 1e-4 };
    let distance = size(&(a - b)?)?;
    // Two outputs that are NaN at the same place are no reason to complain here.
    Ok(distance.is_nan() || distance <= tolerance * size(b)?)
}

impl<F: Fn(&Tensor) -> Result<Tensor>> CustomOp2 for Checkpointed<F> {
    fn name(&self) -> &'static str {
        "checkpointed-block"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.take_output(|storage| match storage {
            Storage::Cpu(storage) => Some(storage),
            _ => None,
        })
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.take_output(|storage| match storage {
            Storage::Cuda(storage) => Some(storage),
            _ => None,
        })
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.take_output(|storage| match storage {
            Storage::Metal(storage) => Some(storage),
            _ => None,
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        _: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let input = if x.track_op() { Var::from_tensor(&x.detach())?.into_inner() } else { x.detach() };
        let output = self.run_again(&input, y)?;
        let grad = grad.clone();
        // A number whose gradient towards the output is the one that came from above.
        let end = Tensor::zeros((), output.dtype(), output.device())?;
        let mut grads = with_gradient(&output, end, move |_| Ok(grad.clone()))?.backward()?;
        drop(output);
        // candle's gradients may be part of a graph themselves, which would keep the activations alive.
        let grad_x = if x.track_op() { grads.remove(&input).map(|grad| grad.detach()) } else { None };
        if self.variables.is_empty() {
            return Ok((grad_x, None));
        }
        let of_variable =
            |var: &Var| grads.get(var).map_or_else(|| var.zeros_like(), |grad| Ok(grad.detach()));
        Ok((grad_x, Some(flattened(&self.variables, of_variable)?)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::backprop::GradStore;
    use candle_core::{DType, Device, Result, Tensor, Var};

    use super::checkpointed;
    use crate::ops::random::DropoutStream;

    fn random(shape: &[usize], dtype: DType) -> Var {
        let values = Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap();
        Var::from_tensor(&values.to_dtype(dtype).unwrap()).unwrap()
    }

    /// y = x + tanh(x·W + b), with variables of two dtypes.
    #[derive(Clone)]
    struct Block {
        w: Var,
        b: Var,
    }

    impl Block {
        fn new() -> Self {
            Self { w: random(&[4, 4], DType::F32), b: random(&[4], DType::F64) }
        }

        fn forward(&self, x: &Tensor) -> Result<Tensor> {
            x + x.matmul(&self.w)?.broadcast_add(&self.b.to_dtype(DType::F32)?)?.tanh()?
        }

        fn checkpointed(&self, x: &Tensor) -> Result<Tensor> {
            let again = self.clone();
            checkpointed(x, |x| self.forward(x), move |x| again.forward(x))
        }
    }

    fn bits(grads: &GradStore, var: &Var) -> Vec<u64> {
        let grad = grads.get(var).unwrap().to_dtype(DType::F64).unwrap().flatten_all().unwrap();
        grad.to_vec1::<f64>().unwrap().into_iter().map(f64::to_bits).collect()
    }

    #[test]
    fn gradients_of_a_chain_are_those_without_checkpoints_to_the_bit() {
        let (x, blocks) = (random(&[3, 4], DType::F32), [Block::new(), Block::new(), Block::new()]);
        let run = |step: fn(&Block, &Tensor) -> Result<Tensor>| {
            let y = blocks.iter().try_fold(x.as_tensor().clone(), |x, block| step(block, &x)).unwrap();
            let loss = y.sqr().unwrap().mean_all().unwrap();
            (loss.to_scalar::<f32>().unwrap(), loss.backward().unwrap())
        };
        let (plain, checkpoints) = (run(Block::forward), run(Block::checkpointed));
        assert_eq!(plain.0, checkpoints.0);
        let variables = blocks.iter().flat_map(|block| [&block.w, &block.b]).chain([&x]);
        for var in variables {
            assert_eq!(bits(&plain.1, var), bits(&checkpoints.1, var));
        }
    }

    #[test]
    fn a_variable_of_several_blocks_gets_the_sum() {
        let (x, block) = (random(&[3, 4], DType::F32), Block::new());
        let twice = |step: fn(&Block, &Tensor) -> Result<Tensor>| {
            let y = step(&block, &step(&block, &x).unwrap()).unwrap();
            y.sum_all().unwrap().backward().unwrap()
        };
        let (plain, checkpoints) = (twice(Block::forward), twice(Block::checkpointed));
        for var in [&block.w, &block.b, &x] {
            let distance = (plain.get(var).unwrap() - checkpoints.get(var).unwrap()).unwrap().abs().unwrap();
            let distance = distance.flatten_all().unwrap().max(0).unwrap().to_dtype(DType::F64).unwrap();
            assert!(distance.to_scalar::<f64>().unwrap() < 1e-5);
        }
    }

    #[test]
    fn an_input_outside_of_the_graph_needs_no_gradient() {
        let (x, block) = (random(&[3, 4], DType::F32), Block::new());
        let constant = x.as_detached_tensor();
        let grads = block.checkpointed(&constant).unwrap().sum_all().unwrap().backward().unwrap();
        let plain = block.forward(&constant).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(bits(&grads, &block.w), bits(&plain, &block.w));
        assert!(grads.get(&constant).is_none());
        // Nothing trains: there is no graph at all.
        let frozen = checkpointed(&constant, Tensor::sqr, Tensor::sqr).unwrap();
        assert!(!frozen.track_op());
    }

    #[test]
    fn gradients_reach_what_a_block_captures() {
        let (x, w) = (random(&[3, 4], DType::F32), random(&[3, 4], DType::F32));
        let memory = w.sqr().unwrap();
        let captured = memory.clone();
        let y = checkpointed(&x, |x| x * &memory, move |x| x * &captured).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        let plain = (x.as_tensor() * w.sqr().unwrap()).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(bits(&grads, &w), bits(&plain, &w));
        assert_eq!(bits(&grads, &x), bits(&plain, &x));
    }

    #[test]
    fn dropout_drops_the_same_again_and_the_stream_goes_on() {
        let x = random(&[50, 4], DType::F32);
        let stream = DropoutStream::new(3, "layer".to_owned());
        let again = stream.clone();
        let y = checkpointed(&x, |x| stream.apply(x, 0.5), move |x| again.apply(x, 0.5)).unwrap();
        let next = stream.apply(&x, 0.5).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        // The gradient of x∘mask is the mask.
        let mask = (grads.get(&x).unwrap() * x.as_tensor()).unwrap();
        assert_eq!(mask.to_vec2::<f32>().unwrap(), y.to_vec2::<f32>().unwrap());
        assert_ne!(next.to_vec2::<f32>().unwrap(), y.to_vec2::<f32>().unwrap());
        assert_eq!(stream.position(), 2);
    }

    #[test]
    fn a_checkpoint_inside_a_checkpoint_has_the_same_gradients() {
        let (x, block) = (random(&[3, 4], DType::F32), Block::new());
        let again = block.clone();
        let nested = checkpointed(&x, |x| block.checkpointed(x), move |x| again.checkpointed(x)).unwrap();
        let grads = nested.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let plain = block.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for var in [&block.w, &block.b, &x] {
            assert_eq!(bits(&grads, var), bits(&plain, var));
        }
    }

    #[test]
    fn a_block_that_computes_something_else_the_second_time_is_an_error() {
        let x = random(&[3, 4], DType::F32);
        let y = checkpointed(&x, Tensor::sqr, |x| x.sqr()? * 1.1).unwrap();
        let error = y.sum_all().unwrap().backward().unwrap_err().to_string();
        assert!(error.contains("computes something else"), "{error}");
    }
}
