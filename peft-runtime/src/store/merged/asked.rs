//! Which tensors were asked for, and whether that was all that the adapters have.

use std::sync::PoisonError;

use super::MergedWeights;
use crate::error::{Result, TensorReport};

/// A module that an adapter's config targets but its file has no tensors for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unadapted {
    /// The adapter.
    pub adapter: String,
    /// The module.
    pub module: String,
}

impl<B> MergedWeights<B> {
    /// The modules that were asked for and that an adapter's config targets, but its file has no tensors for.
    ///
    /// # Errors
    /// If a pattern in a config takes too long to match.
    pub fn unadapted(&self) -> Result<Vec<Unadapted>> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unadapted = Vec::new();
        for adapter in &self.adapters {
            for module in asked.iter() {
                if adapter.left_out(module)? {
                    let (adapter, module) = (adapter.name().to_owned(), module.clone());
                    unadapted.push(Unadapted { adapter, module });
                }
            }
        }
        Ok(unadapted)
    }

    /// Checks that the loaded model took everything that the adapters have.
    ///
    /// # Errors
    /// [`Error::Tensors`](crate::Error::Tensors) with the tensors that belong to no layer of the model, and with the
    /// layers that the config names but the file has no tensors for.
    pub fn finish(&self) -> Result<()> {
        self.other_half.clear();
        self.check_head_was_asked()?;
        let unadapted = self.unadapted()?;
        for adapter in &self.adapters {
            let missing = unadapted.iter().filter(|missing| missing.adapter == adapter.name());
            let missing = missing.map(|missing| missing.module.clone()).collect();
            adapter.check(TensorReport {
                missing,
                unexpected: adapter.unused(),
                ..TensorReport::default()
            })?;
        }
        Ok(())
    }

    /// Notes that the tensor `name`, which has so many dimensions, was asked for.
    pub(crate) fn note_asked(&self, name: &str, dimensions: usize) {
        if let Some((module, "weight")) = name.rsplit_once('.').filter(|_| dimensions > 1) {
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(module.to_owned());
        }
    }

    /// Whether the weight of a module was asked for.
    pub(super) fn was_asked(&self, module: &str) -> bool {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).contains(module)
    }

    /// Returns an error if an adapter has tensors that were not asked for.
    pub(crate) fn check_used(&self) -> Result<()> {
        for adapter in &self.adapters {
            adapter.check(TensorReport { unexpected: adapter.unused(), ..TensorReport::default() })?;
        }
        Ok(())
    }
}
