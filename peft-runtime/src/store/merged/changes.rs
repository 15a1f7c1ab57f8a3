//! Which tensors of a base model the adapters change, and what is wrong with a merged one.

use candle_core::Tensor;

use super::MergedWeights;
use crate::error::{Error, Result};
use crate::manage::is_finite;
use crate::path::ModulePath;

impl<B> MergedWeights<B> {
    /// The other names whose values become values of the tensor called `name`.
    pub(super) fn other_names(&self, name: &str) -> Vec<String> {
        let Some(tie) = self.tie() else { return Vec::new() };
        let (table, head) = (tie.table_weight(), tie.head_weight());
        match self.parted() {
            None if name == table => vec![head],
            None if name == head => vec![table],
            _ => Vec::new(),
        }
    }

    /// Whether any adapter changes the tensor called `name`.
    pub(crate) fn changes(&self, name: &str) -> bool {
        let parted = self.parted().is_some_and(|tie| name == tie.head_weight());
        parted || self.changes_own(name) || self.other_names(name).iter().any(|other| self.changes_own(other))
    }

    fn changes_own(&self, name: &str) -> bool {
        let (module, parameter) = name.rsplit_once('.').unwrap_or_default();
        self.adapters.iter().any(|adapter| {
            let mut layers = adapter.layers_of(module).iter();
            !adapter.replacements_of(name).is_empty()
                // A bare parameter is itself what the adapter is on.
                || !adapter.layers_of(name).is_empty()
                || match parameter {
                    "weight" => layers.next().is_some(),
                    "bias" => layers.any(|layer| adapter.changes_bias(layer)),
                    _ => false,
                }
        })
    }

    /// Why the adapters cannot be merged into the module at `path`.
    pub(crate) fn cannot_merge(&self, path: &ModulePath, reason: String) -> Error {
        Error::CannotMerge { adapter: self.names(), path: path.clone(), reason }
    }

    /// An error if a merged parameter has NaN or infinite values.
    pub(crate) fn check_finite(&self, path: &ModulePath, parameter: &str, merged: &Tensor) -> Result<()> {
        if !merged.dtype().is_float() || is_finite(merged).map_err(Error::on_layer(path))? {
            return Ok(());
        }
        Err(Error::NotFinite { adapter: self.names(), path: path.clone(), parameter: parameter.to_owned() })
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.adapters.iter().map(|adapter| adapter.name()).collect();
        names.join(", ")
    }
}
