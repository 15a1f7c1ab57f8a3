//! Whether several adapters can be merged into the same base model.

use std::ops::Range;
use std::sync::Arc;

use super::placed_tensors::PlacedLayer;
use super::weighted_adapter::{WeightedAdapter, unsupported};
use crate::error::{Error, Result};
use crate::path::ModulePath;

impl WeightedAdapter {
    /// Refuses an adapter that cannot be merged together with `others`.
    pub(super) fn check_beside(&self, others: &[Arc<Self>]) -> Result<()> {
        for (module, layers) in &self.layers {
            for (number, layer) in layers.iter().enumerate() {
                if layers[..number].iter().any(|other| !are_apart(&layer.rows, &other.rows)) {
                    let reason = format!("several of its layers are `{module}` in the base model");
                    return Err(unsupported(self.name(), reason));
                }
                for other in others {
                    self.check_layer(module, layer, other)?;
                }
            }
        }
        for (name, replacements) in &self.replaced {
            let module = name.rsplit_once('.').map_or(name.as_str(), |(module, _)| module);
            let clash = |other: &&Arc<Self>| {
                let theirs = || other.replacements_of(name).iter();
                replacements.iter().any(|own| theirs().any(|their| !are_apart(&own.rows, &their.rows)))
            };
            if let Some(other) = others.iter().find(clash) {
                return Err(self.collision(module, other));
            }
        }
        Ok(())
    }

    fn check_layer(&self, module: &str, layer: &PlacedLayer, other: &Self) -> Result<()> {
        for their in other.layers_of(module) {
            if their.rows != layer.rows && !are_apart(&their.rows, &layer.rows) {
                let reason = format!(
                    "the outputs of `{module}` that it changes overlap those of `{}`, and are not the same",
                    other.name()
                );
                return Err(unsupported(self.name(), reason));
            }
            if layer.has_weight && self.changes_base() && other.changes_base() {
                let reason = format!(
                    "its file has what its init left of `{module}`, and `{}` would take another part out",
                    other.name()
                );
                return Err(unsupported(self.name(), reason));
            }
            if self.has_tokens(layer) && other.has_tokens(their) {
                return Err(self.collision(module, other));
            }
        }
        Ok(())
    }

    /// Whether creating the adapter changes the weights that it is on.
    fn changes_base(&self) -> bool {
        self.plan.method.changes_base()
    }

    fn collision(&self, module: &str, other: &Self) -> Error {
        let adapters = vec![other.name().to_owned(), self.name().to_owned()];
        Error::CopiesCollide { path: ModulePath::from(module), adapters }
    }
}

/// Whether two parts of a module's outputs do not overlap.
fn are_apart(a: &Option<Range<usize>>, b: &Option<Range<usize>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.end <= b.start || b.end <= a.start,
        _ => false,
    }
}
