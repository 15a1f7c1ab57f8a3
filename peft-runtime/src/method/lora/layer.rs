//! Which layers LoRA can adapt, and how it makes the adapter for one.

use std::sync::Arc;

use candle_core::{Tensor, Var};

use super::config::{LoraConfig, LoraSettings};
use super::dora::{self, Magnitude};
use super::init::LoraInit;
use super::start::{drawn, takes_from_base, worked_out};
use super::{BIAS_KEY, LAYER_KEYS, Lora, Start};
use crate::adapter::{Built, Geometry, Init, LowRank, Site, TensorSource};
use crate::error::{ConfigError, Error, Fault, Result};
use crate::method::Method;
use crate::ops::widened_value;
use crate::path::ModulePath;
use crate::schema::{Family, LayerKind};

impl LoraSettings {
    /// The rank and alpha of the layer at `path`.
    pub(super) fn size_at(&self, path: &ModulePath) -> Result<(usize, f64), Fault> {
        let rank = self.rank_pattern.value("rank_pattern", path.as_str(), self.rank)?;
        let alpha = self.alpha_pattern.value("alpha_pattern", path.as_str(), self.alpha)?;
        Ok((rank, alpha))
    }
}

impl LoraConfig {
    /// The rank and scaling of the layer at `path`, if LoRA can adapt it.
    pub(super) fn plan(
        &self,
        path: &ModulePath,
        kind: LayerKind,
        geometry: &Geometry,
    ) -> Result<(usize, f64), Fault> {
        let (rank, alpha) = self.settings.size_at(path)?;
        let reason = match kind.family {
            Family::Parameter => self.unsupported_on_parameters(geometry),
            _ => self.unsupported(geometry, rank),
        };
        match reason {
            Some(reason) => Err(Fault::unsupported_layer(path, kind, LoraSettings::NAME, reason)),
            None => Ok((rank, self.scaling(rank, alpha))),
        }
    }

    /// The adapter for one layer, with that rank and scaling.
    pub(super) fn build_layer(
        &self,
        site: &Site<'_>,
        (rank, scaling): (usize, f64),
        source: &mut dyn TensorSource,
    ) -> Result<Built> {
        let geometry = site.geometry.clone();
        if let (false, LoraInit::PissaIterations(_)) = (source.is_fresh(), self.init()) {
            return Err(Error::Config(ConfigError::RandomStart {
                init: self.init().describe(),
                path: site.path.clone(),
            }));
        }
        // A file's factors replace the computed ones, but the base weight is still changed.
        let needed = source.is_fresh() || takes_from_base(self.init()) || self.init() == LoraInit::Loftq;
        let worked_out = if needed { worked_out(self, site, rank, scaling)? } else { None };
        let (keys, a, b) = match &worked_out {
            Some(worked_out) => {
                let LowRank { a, b, .. } = &worked_out.factors;
                let init_a = || Ok(a.clone());
                let init_b = || Ok(b.clone());
                let a = source.tensor(LAYER_KEYS.a, a.dims(), Init::Computed(&init_a))?;
                (LAYER_KEYS, a, source.tensor(LAYER_KEYS.b, b.dims(), Init::Computed(&init_b))?)
            }
            None => {
                let (keys, init_a, init_b) = drawn(self, &geometry, rank);
                let a = source.tensor(keys.a, &geometry.down_shape(rank), init_a)?;
                (keys, a, source.tensor(keys.b, &geometry.up_shape(rank), init_b)?)
            }
        };
        let b_bias = self.b_bias(&geometry, rank, source)?;
        let weight = worked_out.as_ref().and_then(|worked_out| worked_out.weight.clone());
        let magnitude = self.magnitude(site, weight.as_ref(), (&a, &b, scaling), source)?;
        let start = match worked_out {
            Some(worked_out) if takes_from_base(self.init()) => Start::TookOut(worked_out.factors),
            Some(worked_out) if self.init() == LoraInit::Loftq => Start::Quantised(worked_out.factors),
            _ => Start::Untouched,
        };
        let dropout = self.dropout();
        let lora = Lora { keys, rank, a, b, b_bias, magnitude, start, scaling, dropout, geometry };
        Ok(Built { adapter: Arc::new(lora), weight })
    }

    fn b_bias(&self, geometry: &Geometry, rank: usize, source: &mut dyn TensorSource) -> Result<Option<Var>> {
        if !self.lora_bias() {
            return Ok(None);
        }
        let init = match self.init() {
            LoraInit::Random => Init::kaiming(rank),
            _ => Init::Constant(0.0),
        };
        Ok(Some(source.tensor(BIAS_KEY, &[geometry.out_features()], init)?))
    }

    /// DoRA's magnitudes, which start as those of the weight with the fresh factors applied.
    fn magnitude(
        &self,
        site: &Site<'_>,
        weight: Option<&Tensor>,
        (a, b, scaling): (&Var, &Var, f64),
        source: &mut dyn TensorSource,
    ) -> Result<Option<Magnitude>> {
        if !self.use_dora() {
            return Ok(None);
        }
        let shape = dora::shape(site.geometry);
        let compute = || {
            let weight = weight.map_or_else(|| site.weight(), |weight| Ok(weight.clone()))?;
            let terms = LowRank { a: widened_value(a)?, b: widened_value(b)?, scaling };
            Ok(dora::norm(site.geometry, &weight, &terms)?.reshape(shape.as_slice())?)
        };
        let var = source.tensor(dora::KEY, &shape, Init::Computed(&compute))?;
        Ok(Some(Magnitude::new(var)))
    }

    /// Why LoRA cannot adapt a bare weight of that shape, if it cannot.
    fn unsupported_on_parameters(&self, geometry: &Geometry) -> Option<String> {
        let switched_on = [
            ("lora_dropout", self.dropout() > 0.0),
            ("lora_bias", self.lora_bias()),
            ("use_dora", self.use_dora()),
            ("init_lora_weights", !self.init().draws_factors()),
        ];
        match switched_on.into_iter().find(|(_, on)| *on) {
            _ if *geometry == Geometry::Opaque => {
                Some("a weight has two dimensions, or three for experts".to_owned())
            }
            Some((field, _)) => Some(format!("`{field}` needs a layer, and a bare weight has no input")),
            None => None,
        }
    }

    /// Why LoRA cannot adapt a layer of that shape, if it cannot.
    fn unsupported(&self, geometry: &Geometry, rank: usize) -> Option<String> {
        match geometry {
            Geometry::Opaque | Geometry::Experts { .. } => {
                Some("it has no weight matrix; `modules_to_save` can train it in full".to_owned())
            }
            Geometry::Embedding { .. } if self.lora_bias() => {
                Some("an embedding has no place for `lora_bias`".to_owned())
            }
            Geometry::Embedding { .. } if self.init() == LoraInit::Loftq => {
                Some("LoftQ quantises only linear layers".to_owned())
            }
            Geometry::Conv { settings, .. } if !rank.is_multiple_of(settings.groups.max(1)) => {
                Some(format!("rank {rank} is not a multiple of the layer's {} groups", settings.groups))
            }
            Geometry::Conv { .. } if !self.init().draws_factors() => {
                Some(format!("the init {} is for linear layers", self.init().describe()))
            }
            _ if self.init() == LoraInit::Orthogonal
                && geometry.family() == Family::Linear
                && !rank.is_multiple_of(2) =>
            {
                Some(format!("the orthogonal init needs an even rank, and {rank} is odd"))
            }
            _ => None,
        }
    }
}
