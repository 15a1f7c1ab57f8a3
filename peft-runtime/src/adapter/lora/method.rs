//! LoRA's config as an adapter method.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Var;

use super::dora::{self, Magnitude};
use super::init::{drawn, takes_from_base, worked_out};
use super::{BIAS_KEY, EMBEDDING_KEYS, LAYER_KEYS, Lora, Start};
use crate::ModulePath;
use crate::adapter::keys::KeyedShapes;
use crate::adapter::{
    Adapter, AdapterMethod, Built, Combination, Combined, Geometry, Init, LowRank, Selection, Site,
    TensorSource,
};
use crate::config::{Bias, Chosen, CommonFields, ConfigFields, LoraConfig, LoraInit, PatternMap};
use crate::declared::Declared;
use crate::error::{Error, Fault, Result};
use crate::schema::{Family, LayerKind};
use crate::select::TargetModules;

impl AdapterMethod for LoraConfig {
    fn peft_type(&self) -> &'static str {
        Self::PEFT_TYPE
    }

    fn selection(&self) -> Selection<'_> {
        Selection {
            targets: self.targets(),
            exclude: self.exclude_modules(),
            modules_to_save: self.modules_to_save(),
            layers_to_transform: self.layers_to_transform(),
            layers_pattern: self.layers_pattern(),
            tokens: self.trainable_tokens(),
            parameters: self.target_parameters(),
            replication: self.layer_replication(),
        }
    }

    fn faults(&self) -> Vec<(&'static str, String)> {
        ConfigFields::faults(self)
    }

    fn check(&self, path: &ModulePath, kind: LayerKind, geometry: &Geometry) -> Option<Fault> {
        let rank = match self.size_at(path) {
            Ok((rank, _)) => rank,
            Err(fault) => return Some(fault),
        };
        let reason = match kind.family {
            Family::Parameter => self.unsupported_on_parameters(geometry)?,
            _ => self.unsupported(geometry, rank)?,
        };
        Some(Fault::UnsupportedLayer { path: path.clone(), kind: kind.name, method: "LoRA", reason })
    }

    fn build(&self, site: &Site<'_>, source: &mut dyn TensorSource) -> Result<Built> {
        let (rank, alpha) = size_at(self, site.path)?;
        let geometry = site.geometry.clone();
        let scaling = self.scaling(rank, alpha);
        if let (false, LoraInit::PissaIterations(_)) = (source.is_fresh(), self.init()) {
            let reason = format!(
                "{} took a random part out of the base weights, which cannot be found again; it can be loaded once it is \
                 saved as plain LoRA",
                self.init().describe()
            );
            return Err(Error::Config { field: "init_lora_weights", reason });
        }
        // A file's factors replace the worked-out ones, but the base weight loses its part all the same.
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
        let weight = worked_out.as_ref().map(|worked_out| worked_out.weight.clone());
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

    fn with_declared(&self, declared: &Declared, model_type: Option<&str>) -> Option<Arc<dyn AdapterMethod>> {
        self.targets().is_none().then(|| -> Arc<dyn AdapterMethod> {
            Arc::new(self.completed(declared.target_modules(), model_type))
        })
    }

    fn resolved(&self, targets: TargetModules, transposed: bool) -> Arc<dyn AdapterMethod> {
        Arc::new(self.resolved(targets, transposed))
    }

    fn to_json(&self, _: &[(&ModulePath, &dyn Adapter)]) -> Result<String> {
        self.to_json()
    }

    fn for_tensors(&self, shapes: &BTreeMap<&str, &[usize]>) -> Result<Arc<dyn AdapterMethod>> {
        let keyed = KeyedShapes::new(shapes, "lora_")?;
        let ranks = keyed.sizes(&[LAYER_KEYS.a, EMBEDDING_KEYS.a], 0);
        let config = self
            .clone()
            .with_dora(keyed.any(dora::KEY))
            .with_lora_bias(keyed.any(BIAS_KEY))
            .with_ranks(&ranks)
            .for_modules(keyed.paths(), keyed.modules.clone());
        Ok(Arc::new(config))
    }

    fn combine(&self, request: &Combination<'_>) -> Result<Combined> {
        super::combine::combine(request)
    }

    fn bias(&self) -> Bias {
        self.bias()
    }

    fn changes_bias(&self, _: &ModulePath) -> bool {
        self.lora_bias()
    }

    fn seed(&self) -> u64 {
        self.seed()
    }

    fn rank(&self, path: &ModulePath) -> Option<usize> {
        self.size_at(path).ok().map(|(rank, _)| rank)
    }

    fn common(&self) -> Option<&CommonFields> {
        Some(self.common())
    }

    fn as_lora(&self) -> Option<&LoraConfig> {
        Some(self)
    }
}

/// The rank and alpha that a config gives the layer at `path`.
///
/// # Errors
/// [`Error::Config`] if two of its patterns contradict each other there.
pub(crate) fn size_at(config: &LoraConfig, path: &ModulePath) -> Result<(usize, f64)> {
    let wrong = |fault: Fault| Error::Config { field: "rank_pattern", reason: fault.to_string() };
    config.size_at(path).map_err(wrong)
}

impl LoraConfig {
    /// The rank and alpha of the layer at `path`.
    fn size_at(&self, path: &ModulePath) -> std::result::Result<(usize, f64), Fault> {
        let rank = pattern_value("rank_pattern", self.rank_pattern(), path, self.rank())?;
        let alpha = pattern_value("alpha_pattern", self.alpha_pattern(), path, self.alpha())?;
        Ok((rank, alpha))
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

    /// DoRA's lengths, which start as those of the weight with the fresh factors in it.
    fn magnitude(
        &self,
        site: &Site<'_>,
        weight: Option<&candle_core::Tensor>,
        (a, b, scaling): (&Var, &Var, f64),
        source: &mut dyn TensorSource,
    ) -> Result<Option<Magnitude>> {
        if !self.use_dora() {
            return Ok(None);
        }
        let shape = dora::shape(site.geometry);
        let compute = || {
            let weight = weight.map_or_else(|| site.weight(), |weight| Ok(weight.clone()))?;
            let terms = LowRank { a: a.as_detached_tensor(), b: b.as_detached_tensor(), scaling };
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
                Some("LoftQ quantises linear layers alone".to_owned())
            }
            Geometry::Conv { kernel, settings, .. }
                if settings.dilation != 1 && kernel.iter().any(|size| *size > 1) =>
            {
                Some(format!(
                    "PEFT's LoRA convolution ignores the layer's dilation of {}, so that its output has another size",
                    settings.dilation
                ))
            }
            Geometry::Conv { settings, .. } if !rank.is_multiple_of(settings.groups.max(1)) => {
                Some(format!("rank {rank} is no multiple of the layer's {} groups", settings.groups))
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

fn pattern_value<T: Copy + PartialEq>(
    field: &'static str,
    patterns: &PatternMap<T>,
    path: &ModulePath,
    default: T,
) -> std::result::Result<T, Fault> {
    match patterns.choose(field, path.as_str())? {
        Chosen::Value(value) => Ok(value),
        Chosen::Default => Ok(default),
        Chosen::Ambiguous { written_first, sorted_first } => Err(Fault::Config {
            field,
            reason: format!(
                "`{written_first}` and `{sorted_first}` both match `{path}` with different values, and a saved file, \
                 whose keys are sorted, would let the other one win"
            ),
        }),
    }
}
