//! What a method needs to know to make one adapter out of several.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::{Adapter, AdapterMethod, Site};
use crate::config::CombineOptions;
use crate::error::{Error, Result};

/// Adapters of a model that are to become one.
pub struct Combination<'a> {
    /// The adapters, in the order given.
    pub parts: Vec<Part<'a>>,
    /// The layers that at least one of them adapts, in model order.
    pub layers: Vec<CombinedLayer<'a>>,
    /// How they are combined.
    pub options: &'a CombineOptions,
}

/// One of the adapters.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its weight in the sum.
    pub weight: f64,
    /// Its settings.
    pub method: &'a dyn AdapterMethod,
}

/// One layer, with what each of the adapters has on it.
pub struct CombinedLayer<'a> {
    /// The layer.
    pub site: Site<'a>,
    /// The state of each adapter, in the order of [`Combination::parts`]; `None` where it does not adapt the layer.
    pub adapters: Vec<Option<&'a dyn Adapter>>,
}

/// The adapter that several became.
pub struct Combined {
    /// Its settings.
    pub method: Arc<dyn AdapterMethod>,
    /// Its tensors, by path and key.
    pub tensors: BTreeMap<String, Tensor>,
}

impl<'a> Combination<'a> {
    /// Why the adapter `part` rules the combination out.
    pub(crate) fn refuse<T>(part: &Part<'_>, reason: impl Into<String>) -> Result<T> {
        Err(Error::Unsupported { operation: "combine", adapter: part.name.to_owned(), reason: reason.into() })
    }

    /// The settings of all parts as those of one method.
    pub(crate) fn configs<C>(
        &self,
        peft_type: &str,
        as_config: impl Fn(&'a dyn AdapterMethod) -> Option<&'a C>,
    ) -> Result<Vec<&'a C>> {
        let config = |part: &Part<'a>| match as_config(part.method) {
            Some(config) => Ok(config),
            None => {
                let other = part.method.peft_type();
                Self::refuse(
                    part,
                    format!("it is an adapter of {other}, and the first one is one of {peft_type}"),
                )
            }
        };
        self.parts.iter().map(config).collect()
    }
}

impl<'a> CombinedLayer<'a> {
    /// The states that the layer has, each with its part.
    pub(crate) fn states<'s, A>(
        &'s self,
        parts: &'s [Part<'a>],
        as_state: impl Fn(&'a dyn Adapter) -> Option<&'a A> + 's,
    ) -> Vec<(&'s Part<'a>, &'a A)> {
        let states = parts.iter().zip(&self.adapters);
        states.filter_map(|(part, state)| Some((part, as_state((*state)?)?))).collect()
    }
}
