//! Weighted combinations without a model.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use safetensors::View;

use super::skeleton::{Skeleton, split_parameter};
use super::{BaseWeights, StoredAdapter};
use crate::config::CombineOptions;
use crate::error::{Error, Result};
use crate::manage::{add_weighted_adapter, method_of};
use crate::path::ModulePath;
use crate::store::keys::with_prefix;
use crate::store::state_dict::adapter_state_dict;

/// The name of the sum, unless one of the parts has that name.
const SUM: &str = "combined";

impl StoredAdapter {
    /// Combines several adapters, each with its weight, into one; the formulas are those of
    /// [`add_weighted_adapter`](crate::PeftModel::add_weighted_adapter).
    ///
    /// What starts again from the base model needs `base`: rows of embeddings, and with
    /// [`with_restarts`](CombineOptions::with_restarts) full copies of modules and DoRA's magnitudes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the adapters cannot be combined or need a base model that is not given, and an error
    /// that names the file if one does not fit its config.
    pub fn combine(
        parts: &[(&Self, f64)],
        options: &CombineOptions,
        base: Option<&BaseWeights>,
    ) -> Result<Self> {
        let adapters: Vec<&Self> = parts.iter().map(|(adapter, _)| *adapter).collect();
        let mut skeleton = Skeleton::of(&adapters, base)?;
        let names = unique_names(&adapters);
        // Base model weights that files have next to embedding adapters; the sum has them too, as its parts do.
        let mut kept: BTreeMap<String, Tensor> = BTreeMap::new();
        for (adapter, name) in adapters.iter().zip(&names) {
            adapter.check_base(base, options)?;
            let report = skeleton.load(adapter, adapter.explicit_method().as_ref(), name)?;
            adapter.keep_base(&report.base_parameters, &mut kept)?;
        }
        let weights = parts.iter().map(|(_, weight)| *weight);
        let weighted: Vec<(&str, f64)> = names.iter().map(String::as_str).zip(weights).collect();
        let sum = if names.iter().any(|name| name == SUM) { "sum" } else { SUM };
        add_weighted_adapter(&mut skeleton, &weighted, sum, options)?;
        let mut tensors = adapter_state_dict(&skeleton, sum)?;
        tensors.extend(kept.into_iter().map(|(key, tensor)| (with_prefix(&key), tensor)));
        let mut combined = Self::new(SUM, method_of(&skeleton, sum)?, tensors)?;
        for adapter in adapters {
            combined.parameters.extend(adapter.parameters.clone());
        }
        Ok(combined)
    }

    /// Adds this adapter's values of the base model's `parameters` to `kept`, or fails if those of other parts differ.
    fn keep_base(&self, parameters: &[String], kept: &mut BTreeMap<String, Tensor>) -> Result<()> {
        let name = |(path, parameter): (ModulePath, &str)| path.parameter(parameter);
        for key in self.parameter_keys() {
            let is_base = split_parameter(key).map(name).is_some_and(|name| parameters.contains(&name));
            let Some(stored) = self.stored_at(key).filter(|_| is_base) else { continue };
            let own = (stored.read)(&Device::Cpu).map_err(|error| self.of_weights(error.into()))?;
            match kept.get(key) {
                Some(other) if !same_bits(&own, other)? => {
                    let reason = format!("its `{key}` differs from that of the adapters before it");
                    return Err(refused(self, reason));
                }
                Some(_) => {}
                None => {
                    kept.insert(key.to_owned(), own);
                }
            }
        }
        Ok(())
    }

    /// Returns an error if a sum would need values of the base model that are not there.
    fn check_base(&self, base: Option<&BaseWeights>, options: &CombineOptions) -> Result<()> {
        let needed = |path: &str, parameter: &str, what: &str| match base {
            Some(base) if base.shape(path, parameter).is_some() => Ok(()),
            Some(_) => {
                let name = ModulePath::from(path).parameter(parameter);
                Err(refused(
                    self,
                    format!("{what} of `{path}` start again from `{name}`, which the base model lacks"),
                ))
            }
            None => Err(refused(
                self,
                format!("{what} of `{path}` start again from the base model; give that too"),
            )),
        };
        for (path, ends) in self.layer_keys() {
            for what in ends.iter().filter_map(|end| self.method().restarts_from_base(end, options)) {
                needed(path, "weight", what)?;
            }
        }
        let selection = self.method().selection();
        for key in self.parameter_keys().filter(|_| options.restarts) {
            let Some((path, parameter)) = split_parameter(key) else { continue };
            if path.parameter(parameter) == key && selection.copied_module(&path).is_some() {
                needed(path.as_str(), parameter, "the full copies")?;
                if base.is_some_and(|base| base.shape(path.as_str(), parameter) != self.shape(key)) {
                    let reason = format!("its copy of `{key}` differs in shape from the base model's");
                    return Err(refused(self, reason));
                }
            }
        }
        Ok(())
    }
}

fn same_bits(a: &Tensor, b: &Tensor) -> Result<bool> {
    let same_form = a.dims() == b.dims() && a.dtype() == b.dtype();
    Ok(same_form && View::data(&a.contiguous()?) == View::data(&b.contiguous()?))
}

fn refused(adapter: &StoredAdapter, reason: String) -> Error {
    Error::Unsupported { operation: "combine", adapter: adapter.name().to_owned(), reason }
}

/// The adapters' names, with a number appended to each that is already taken.
fn unique_names(adapters: &[&StoredAdapter]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for adapter in adapters {
        let mut name = adapter.name().to_owned();
        let mut number = 2;
        while names.contains(&name) {
            name = format!("{}-{number}", adapter.name());
            number += 1;
        }
        names.push(name);
    }
    names
}
