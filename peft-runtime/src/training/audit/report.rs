//! The audit in words: layers grouped by cause, then what to do about it.

use std::fmt;

use super::{Audit, MissingCause, MissingGradient};
use crate::path::ModulePath;

/// How many layers and norms a report names.
const LISTED: usize = 12;

/// The tensors of one layer that share a cause.
struct Layer<'a> {
    module: &'a ModulePath,
    cause: &'a MissingCause,
    parameters: Vec<&'a str>,
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.trainable == 0 {
            f.write_str("no tensor of the model trains")?;
            return self.write_frozen(f);
        }
        match self.missing.len() {
            0 => write!(f, "all {} tensors that train have a gradient", self.trainable)?,
            count => write!(f, "{count} of {} tensors that train have no gradient", self.trainable)?,
        }
        let layers = layers(&self.missing);
        for layer in layers.iter().take(LISTED) {
            write!(f, "\n  {layer}")?;
        }
        if let Some(more) = layers.len().checked_sub(LISTED).filter(|more| *more > 0) {
            write!(f, "\n  and {more} more layers")?;
        }
        if self.missing.iter().any(|missing| matches!(missing.cause, MissingCause::Cut { .. })) {
            self.write_suspects(f)?;
        }
        if self.stray > 0 {
            let (count, bytes) = (self.stray, self.stray_bytes);
            write!(f, "\n{count} more gradients ({bytes} bytes) belong to none of these tensors; ")?;
            f.write_str("candle's own ops form them for frozen operands too")?;
        }
        Ok(())
    }
}

impl Audit {
    /// The ops that are known to compute without a graph.
    fn write_suspects(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "\na layer whose gradient is lost is followed by an op that computes without a graph: in candle-nn, \
             `softmax_last_dim`, `layer_norm`, `rms_norm`, `rope`, `rope_i`, `rope_thd` or `sdpa`; in candle, \
             `QMatMul`; or by a `detach`\n\
             the ops in `peft_runtime::nn` are differentiable (attention, rotary embedding, norms), and so are \
             candle-nn's `softmax`, `layer_norm_slow`, `rms_norm_slow` and `rope_slow`",
        )?;
        for (path, kind) in self.plain_norms.iter().take(LISTED) {
            write!(
                f,
                "\n  `{path}` is a plain `{kind}`; declared as `Adapted<{kind}>` it is differentiable"
            )?;
        }
        match self.plain_norms.len().checked_sub(LISTED) {
            Some(more) if more > 0 => write!(f, "\n  and {more} more plain norms"),
            _ => Ok(()),
        }
    }

    fn write_frozen(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.frozen_adapters.as_slice() {
            [] => f.write_str(": it has no adapters"),
            names => write!(
                f,
                ": `{}` was loaded for inference or frozen; `set_trainable` or `LoadOptions::trainable` changes that",
                names.join("`, `")
            ),
        }
    }
}

/// Groups neighbouring tensors that share a layer and a cause.
fn layers(missing: &[MissingGradient]) -> Vec<Layer<'_>> {
    let mut layers: Vec<Layer<'_>> = Vec::new();
    for MissingGradient { parameter, module, cause, .. } in missing {
        let own_name = parameter.strip_prefix(module.as_str()).unwrap_or(parameter);
        let own_name = own_name.trim_start_matches('.');
        match layers.last_mut() {
            Some(layer) if layer.module == module && layer.cause == cause => layer.parameters.push(own_name),
            _ => layers.push(Layer { module, cause, parameters: vec![own_name] }),
        }
    }
    layers
}

impl fmt::Display for Layer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ({}): {}", self.module, self.parameters.join(", "), self.cause)
    }
}

impl fmt::Display for MissingCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inactive => "its adapter is not active; see `set_adapter`",
            Self::Disabled => "the adapters are turned off; see `enable_adapters`",
            Self::Merged => "an adapter is merged into the weight, so only the weight takes effect; see `unmerge_adapters`",
            Self::NotCalled => "the layer has not run: the forward pass does not call it",
            Self::OutsideGraph => "the layer ran under `no_grad` only",
            Self::Cut { next: None } => "the layer ran, and its gradient is lost on the way from the loss",
            Self::Cut { next: Some(path) } => {
                return write!(
                    f,
                    "the layer ran, and its gradient is lost on the way from the loss; `{path}` after it has one"
                );
            }
        })
    }
}
