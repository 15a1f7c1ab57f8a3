//! The fields that LoHa's and LoKr's configs have in common.

use serde::{Deserialize, Serialize};

use crate::adapter::{Geometry, LayerSettings};
use crate::config::{
    ConfigFault, PatternMap, as_number, as_numbers, finite_fault, number_or_zero, probability_fault,
    rank_fault, switch, unmatched_sizes,
};
use crate::error::{Fault, Result};
use crate::method::adapter_config::AdapterConfig;
use crate::path::ModulePath;
use crate::schema::LayerKind;

/// The settings of a method that adds a matrix ΔW to the weight: those that all such methods have, and the method's `own`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeltaSettings<M> {
    #[serde(rename = "r", default = "default_rank")]
    rank: usize,
    #[serde(default = "default_alpha", serialize_with = "as_number")]
    alpha: f64,
    #[serde(default, deserialize_with = "number_or_zero")]
    pub(in crate::method) rank_dropout: f64,
    #[serde(default, deserialize_with = "number_or_zero")]
    pub(in crate::method) module_dropout: f64,
    #[serde(default, deserialize_with = "switch")]
    pub(in crate::method) use_effective_conv2d: bool,
    #[serde(default)]
    rank_pattern: PatternMap<usize>,
    #[serde(default, serialize_with = "as_numbers")]
    alpha_pattern: PatternMap<f64>,
    #[serde(flatten)]
    pub(in crate::method) own: M,
}

fn default_rank() -> usize {
    8
}

fn default_alpha() -> f64 {
    8.0
}

impl<M: Default> Default for DeltaSettings<M> {
    /// PEFT's defaults: rank 8, alpha 8.
    fn default() -> Self {
        Self {
            rank: default_rank(),
            alpha: default_alpha(),
            rank_dropout: 0.0,
            module_dropout: 0.0,
            use_effective_conv2d: false,
            rank_pattern: PatternMap::default(),
            alpha_pattern: PatternMap::default(),
            own: M::default(),
        }
    }
}

impl<M: Default> AdapterConfig<DeltaSettings<M>> {
    /// A config with the given rank and alpha and PEFT's defaults for the rest.
    pub fn new(rank: usize, alpha: f64) -> Self {
        Self::of(DeltaSettings { rank, alpha, ..DeltaSettings::default() })
    }
}

impl<M> AdapterConfig<DeltaSettings<M>> {
    /// Drops rows of ΔW with this probability in each training pass.
    ///
    /// LoHa divides the remaining rows by the share of rows that remain; LoKr does so with `with_rank_dropout_scale`.
    #[must_use]
    pub fn with_rank_dropout(mut self, probability: f64) -> Self {
        self.settings.rank_dropout = probability;
        self
    }

    /// Leaves out the adapter of a layer with this probability in each training pass.
    #[must_use]
    pub fn with_module_dropout(mut self, probability: f64) -> Self {
        self.settings.module_dropout = probability;
        self
    }

    /// Uses the form with a core tensor, which has fewer parameters, for convolutions with a window.
    #[must_use]
    pub fn with_effective_conv2d(mut self, effective: bool) -> Self {
        self.settings.use_effective_conv2d = effective;
        self
    }

    /// Other ranks for the modules that a pattern matches.
    #[must_use]
    pub fn with_rank_pattern(mut self, patterns: impl Into<PatternMap<usize>>) -> Self {
        self.settings.rank_pattern = patterns.into();
        self
    }

    /// Other alphas for the modules that a pattern matches.
    #[must_use]
    pub fn with_alpha_pattern(mut self, patterns: impl Into<PatternMap<f64>>) -> Self {
        self.settings.alpha_pattern = patterns.into();
        self
    }

    /// The rank where no pattern says otherwise.
    pub fn rank(&self) -> usize {
        self.settings.rank
    }

    /// Alpha where no pattern says otherwise.
    pub fn alpha(&self) -> f64 {
        self.settings.alpha
    }
}

impl<M> DeltaSettings<M> {
    /// The rank and scaling of the layer at `path`, if it is one that such methods adapt in PEFT.
    pub(in crate::method) fn plan_layer(
        &self,
        method: &'static str,
        path: &ModulePath,
        kind: LayerKind,
        geometry: &Geometry,
    ) -> Result<LayerSettings, Fault> {
        if !matches!(geometry, Geometry::Linear { transposed: false, .. } | Geometry::Conv { .. }) {
            let reason = "it adapts linear layers with a weight `[out, in]` and convolutions";
            return Err(Fault::unsupported_layer(path, kind, method, reason));
        }
        let rank = self.rank_pattern.value("rank_pattern", path.as_str(), self.rank)?;
        let alpha = self.alpha_pattern.value("alpha_pattern", path.as_str(), self.alpha)?;
        #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
        Ok(LayerSettings::new().with_size(rank, alpha / rank as f64))
    }

    /// The patterns that match none of the adapted layers at `paths`, each with its field.
    pub(in crate::method) fn unmatched_patterns(
        &self,
        paths: &[&str],
    ) -> Result<Vec<(&'static str, String)>, Fault> {
        unmatched_sizes(&self.rank_pattern, &self.alpha_pattern, paths)
    }

    /// Everything that is wrong with the values that such methods share.
    pub(in crate::method) fn faults(&self) -> Vec<ConfigFault> {
        let mut faults: Vec<ConfigFault> = rank_fault("r", self.rank).into_iter().collect();
        faults.extend(finite_fault("alpha", self.alpha));
        faults.extend(probability_fault("rank_dropout", self.rank_dropout));
        faults.extend(probability_fault("module_dropout", self.module_dropout));
        faults.extend(self.rank_pattern.faults("rank_pattern", |rank| rank_fault("rank_pattern", *rank)));
        faults.extend(
            self.alpha_pattern.faults("alpha_pattern", |alpha| finite_fault("alpha_pattern", *alpha)),
        );
        faults
    }
}
