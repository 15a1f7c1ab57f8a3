//! Gradients that ops on the CPU hand to each other past candle.
//!
//! candle adds the gradient of each argument to a tensor of zeros; in bf16 these sums were half of a training step. So an op of this
//! crate has two nodes in candle's graph. The first is its *token*, a scalar whose arguments are the tokens of the op's arguments; the second, the output itself, has the token as its
//! only argument. Ops of this crate that use the output look its token up and depend on that; ops of candle depend on the output.
//! Either way the gradient waits in the token's [`Carrier`](carrier::Carrier), and what candle adds up for the token is how many parts of the
//! gradient there are.
//!
//! Variables and outputs of candle's own ops have no token: they are arguments as for any op.

mod carrier;
mod nodes;
mod op;
#[cfg(any(test, feature = "models"))]
mod view;

use std::sync::Arc;

use candle_core::{CustomOp1, CustomOp2, CustomOp3, Result, Tensor};

use self::carrier::{Carried, Registration, register};
use self::nodes::{Attached, Step, Token};
use self::op::{One, Op, Three, Two};

#[cfg(any(test, feature = "models"))]
pub(crate) use self::view::reshaped;

/// Applies ops so that the gradients of their arguments are carried.
pub(crate) trait ApplyCarried {
    /// The op of this tensor.
    fn carry_op1(&self, op: impl CustomOp1 + Send + Sync + 'static) -> Result<Tensor>;
    /// The op of this tensor and another one.
    fn carry_op2(&self, second: &Tensor, op: impl CustomOp2 + Send + Sync + 'static) -> Result<Tensor>;
    /// The op of this tensor and two others.
    fn carry_op3(
        &self,
        second: &Tensor,
        third: &Tensor,
        op: impl CustomOp3 + Send + Sync + 'static,
    ) -> Result<Tensor>;
}

impl ApplyCarried for Tensor {
    fn carry_op1(&self, op: impl CustomOp1 + Send + Sync + 'static) -> Result<Tensor> {
        let args = [self];
        if !is_carried(args) {
            return self.apply_op1(op);
        }
        let step = Step::new(One(op), args);
        let [x] = step.edges();
        attached(&step, x.apply_op1(Token(Arc::clone(&step)))?)
    }

    fn carry_op2(&self, second: &Tensor, op: impl CustomOp2 + Send + Sync + 'static) -> Result<Tensor> {
        let args = [self, second];
        if !is_carried(args) {
            return self.apply_op2(second, op);
        }
        let step = Step::new(Two(op), args);
        let [x, second] = step.edges();
        attached(&step, x.apply_op2(&second, Token(Arc::clone(&step)))?)
    }

    fn carry_op3(
        &self,
        second: &Tensor,
        third: &Tensor,
        op: impl CustomOp3 + Send + Sync + 'static,
    ) -> Result<Tensor> {
        let args = [self, second, third];
        if !is_carried(args) {
            return self.apply_op3(second, third, op);
        }
        let step = Step::new(Three(op), args);
        let [x, second, third] = step.edges();
        attached(&step, x.apply_op3(&second, &third, Token(Arc::clone(&step)))?)
    }
}

/// Whether gradients of the op are carried: there are some, in main memory.
fn is_carried<const N: usize>(args: [&Tensor; N]) -> bool {
    args.iter().all(|arg| arg.device().is_cpu()) && args.iter().any(|arg| arg.track_op())
}

/// The op's output as an op of its token.
fn attached<O: Op<N>, const N: usize>(step: &Arc<Step<O, N>>, token: Tensor) -> Result<Tensor> {
    let carrier = Arc::clone(&step.carrier);
    let op = Attached { step: Arc::clone(step), _registration: Registration(Arc::clone(&carrier)) };
    let output = token.apply_op1(op)?;
    let _ = step.output.set(output.detach());
    register(&output, Carried { token, carrier });
    Ok(output)
}

#[cfg(test)]
mod tests;
