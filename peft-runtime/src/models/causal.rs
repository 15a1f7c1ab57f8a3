//! The loss of a language model: how well it predicts each next token.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::Module;

use crate::layer::{Adapted, AnyLinear};
use crate::nn;

/// The label of a token that does not count.
const IGNORED: i64 = -100;

/// The mean cross-entropy of the next tokens, for hidden states `[batch, length, size]` and labels `[batch, length]`.
///
/// The logits are never formed as a whole where the head is a frozen dense layer that never got an adapter.
pub(super) fn next_token_loss(head: &Adapted<AnyLinear>, hidden: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let targets = next_tokens(labels)?;
    match head {
        Adapted::Base(AnyLinear::Dense(dense)) if dense.bias().is_none() && !dense.weight().track_op() => {
            nn::linear_cross_entropy(&hidden.flatten_to(1)?, dense.weight(), &targets, Some(IGNORED))
        }
        _ => nn::cross_entropy(&head.forward(hidden)?.flatten_to(1)?, &targets, Some(IGNORED)),
    }
}

/// What each position should predict, `[batch · length]`: the label after it, and nothing at the end of a row.
fn next_tokens(labels: &Tensor) -> Result<Tensor> {
    let (batch, length) = labels.dims2()?;
    if length < 2 {
        bail!("labels of shape {:?} hold no next token", labels.dims())
    }
    let next = labels.narrow(1, 1, length - 1)?;
    if nn::count_targets(&next, IGNORED)? == 0 {
        let count = next.elem_count();
        bail!("no target counts: all {count} labels of next tokens are {IGNORED}, which is ignored")
    }
    let labels = labels.to_dtype(DType::I64)?;
    let end = Tensor::full(IGNORED, (batch, 1), labels.device())?;
    Tensor::cat(&[labels.narrow(1, 1, length - 1)?, end], 1)?.flatten_all()
}

#[cfg(test)]
mod tests {
    use super::next_tokens;
    use candle_core::{Device, Tensor};

    #[test]
    fn each_place_foretells_the_label_after_it() {
        let labels = Tensor::new(&[[1i64, 2, -100], [4, 5, 6]], &Device::Cpu).unwrap();
        let targets = next_tokens(&labels).unwrap().to_vec1::<i64>().unwrap();
        assert_eq!(targets, [2, -100, -100, 5, 6, -100]);
        let labels = Tensor::new(&[[1u32, 2]], &Device::Cpu).unwrap();
        assert_eq!(next_tokens(&labels).unwrap().to_vec1::<i64>().unwrap(), [2, -100]);
        assert!(next_tokens(&Tensor::new(&[[1u32]], &Device::Cpu).unwrap()).is_err());
        // The first label of a row is nobody's next token.
        let masked = Tensor::new(&[[1i64, -100, -100], [4, -100, -100]], &Device::Cpu).unwrap();
        let text = next_tokens(&masked).unwrap_err().to_string();
        assert!(text.contains("no target counts: all 4 labels"), "{text}");
    }
}
