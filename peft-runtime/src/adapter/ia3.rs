//! IA3: the input or the output of a layer times a vector. <https://arxiv.org/abs/2205.05638>

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Tensor, Var};

use super::keys::KeyedShapes;
use super::{
    Adapter, AdapterMethod, AdapterTensor, Built, Call, Combination, Combined, Component, Geometry, Init,
    LinearParameters, MergeError, Selection, Site, TensorSource,
};
use crate::ModulePath;
use crate::config::{CommonFields, ConfigFields, Ia3Config};
use crate::declared::Declared;
use crate::error::{Error, Fault, Result};
use crate::ops::promoted;
use crate::ops::scale::scale_features;
use crate::ops::task_vectors::weighted_sum;
use crate::schema::LayerKind;
use crate::select::{Pattern, TargetModules};

pub(super) const KEY: &str = "ia3_l";

/// The IA3 state of one layer: a vector over its output features or, on feed-forward layers, over its input features.
#[derive(Clone, Debug)]
pub struct Ia3 {
    vector: Var,
    feedforward: bool,
    geometry: Geometry,
}

impl Ia3 {
    fn scale(&self, call: &Call<'_>, x: &Tensor) -> candle_core::Result<Tensor> {
        let vector = call.tensor(&self.vector).flatten_all()?;
        scale_features(x, &vector, self.geometry.feature_axis())?.to_dtype(x.dtype())
    }
}

/// `(out, 1)` or `(1, in)`; for a convolution `(1, channels, 1, 1)`.
fn shape(geometry: &Geometry, feedforward: bool) -> Vec<usize> {
    let features = if feedforward { geometry.in_features() } else { geometry.out_features() };
    match geometry {
        Geometry::Conv { kernel, .. } => {
            let mut shape = vec![1, features];
            shape.resize(2 + kernel.len(), 1);
            shape
        }
        _ if feedforward => vec![1, features],
        _ => vec![features, 1],
    }
}

impl Adapter for Ia3 {
    fn tensors(&self) -> Vec<AdapterTensor<'_>> {
        vec![AdapterTensor::new(KEY, &self.vector)]
    }

    fn adapt_input(&self, call: &Call<'_>, input: &Tensor) -> candle_core::Result<Option<Tensor>> {
        if self.feedforward { self.scale(call, input).map(Some) } else { Ok(None) }
    }

    fn adapt_output(&self, call: &Call<'_>, _: &Tensor, output: Tensor) -> candle_core::Result<Tensor> {
        if self.feedforward { Ok(output) } else { self.scale(call, &output) }
    }

    fn merge(
        &self,
        _: &Site<'_>,
        parameters: LinearParameters,
    ) -> std::result::Result<LinearParameters, MergeError> {
        let LinearParameters { weight, bias } = parameters;
        let vector = self.vector.as_detached_tensor().flatten_all()?;
        let dtype = promoted(weight.dtype(), vector.dtype());
        let vector = vector.to_dtype(dtype)?;
        let matrix = self.geometry.to_matrix(&weight.to_dtype(dtype)?)?;
        let scaled = if self.feedforward {
            self.geometry.scale_matrix_inputs(&matrix, &vector)?
        } else {
            matrix.broadcast_mul(&vector.unsqueeze(1)?)?
        };
        let scaled = self.geometry.stored_from_matrix(&scaled)?.contiguous()?.to_dtype(weight.dtype())?;
        let bias = match bias {
            Some(bias) if !self.feedforward => {
                Some((bias.to_dtype(dtype)? * &vector)?.to_dtype(bias.dtype())?)
            }
            bias => bias,
        };
        Ok(LinearParameters { weight: scaled, bias })
    }

    fn components(&self) -> Vec<Component> {
        vec![Component::tensors(KEY, Some(&self.vector))]
    }

    fn as_ia3(&self) -> Option<&Ia3> {
        Some(self)
    }
}

impl AdapterMethod for Ia3Config {
    fn peft_type(&self) -> &'static str {
        Self::PEFT_TYPE
    }

    fn selection(&self) -> Selection<'_> {
        Selection {
            targets: self.targets(),
            exclude: self.exclude_modules(),
            modules_to_save: self.modules_to_save(),
            ..Selection::default()
        }
    }

    fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = ConfigFields::faults(self);
        if let Some(TargetModules::AllLinear) = self.feedforward() {
            faults.push(("feedforward_modules", "they have to be named".to_owned()));
        }
        faults
    }

    fn with_declared(&self, declared: &Declared, model_type: Option<&str>) -> Option<Arc<dyn AdapterMethod>> {
        if self.targets().is_some() && self.feedforward().is_some() {
            return None;
        }
        Some(Arc::new(self.completed(declared.target_and_feedforward_modules(), model_type)))
    }

    fn check(&self, path: &ModulePath, kind: LayerKind, geometry: &Geometry) -> Option<Fault> {
        if self.feedforward().is_none() {
            let reason = "the feed-forward layers are not named; `with_feedforward([…])` names them, an empty list if none is";
            return Some(Fault::Config { field: "feedforward_modules", reason: reason.to_owned() });
        }
        if let Err(fault) = self.is_feedforward(path) {
            return Some(fault);
        }
        let supported = match geometry {
            Geometry::Linear { .. } => true,
            Geometry::Conv { kernel, .. } => kernel.len() == 2,
            Geometry::Embedding { .. } | Geometry::Experts { .. } | Geometry::Opaque => false,
        };
        let reason = "IA3 scales linear layers and two-dimensional convolutions".to_owned();
        (!supported).then(|| Fault::UnsupportedLayer {
            path: path.clone(),
            kind: kind.name,
            method: "IA3",
            reason,
        })
    }

    fn build(&self, site: &Site<'_>, source: &mut dyn TensorSource) -> Result<Built> {
        let feedforward = self
            .is_feedforward(site.path)
            .map_err(|fault| Error::Config { field: "feedforward_modules", reason: fault.to_string() })?;
        let init = if self.starts_as_ones() { Init::Constant(1.0) } else { Init::Normal(1.0) };
        let vector = source.tensor(KEY, &shape(site.geometry, feedforward), init)?;
        Ok(Built::new(Arc::new(Ia3 { vector, feedforward, geometry: site.geometry.clone() })))
    }

    fn resolved(&self, targets: TargetModules, transposed: bool) -> Arc<dyn AdapterMethod> {
        let feedforward =
            self.feedforward().cloned().unwrap_or_else(|| TargetModules::names(Vec::<String>::new()));
        Arc::new(self.resolved(targets, transposed, feedforward))
    }

    fn to_json(&self, _: &[(&ModulePath, &dyn Adapter)]) -> Result<String> {
        self.to_json()
    }

    fn for_tensors(&self, shapes: &BTreeMap<&str, &[usize]>) -> Result<Arc<dyn AdapterMethod>> {
        let keyed = KeyedShapes::new(shapes, KEY)?;
        Ok(Arc::new(self.clone().for_modules(keyed.paths(), keyed.modules.clone())))
    }

    /// The weighted sum of the vectors; weights that add up to 1 keep ones.
    fn combine(&self, request: &Combination<'_>) -> Result<Combined> {
        let configs = request.configs(Self::PEFT_TYPE, |method| method.as_ia3())?;
        let mut tensors = BTreeMap::new();
        for layer in &request.layers {
            let states = layer.states(&request.parts, |adapter| adapter.as_ia3());
            let weights: Vec<f64> = states.iter().map(|(part, _)| part.weight).collect();
            let vectors: Vec<Tensor> =
                states.iter().map(|(_, state)| state.vector.as_detached_tensor()).collect();
            let path = layer.site.path;
            if let Some((part, _)) = states.iter().find(|(_, state)| {
                Some(state.feedforward) != states.first().map(|(_, first)| first.feedforward)
            }) {
                return Combination::refuse(
                    part,
                    format!("it scales the other side of `{path}` than the first one"),
                );
            }
            let sum = weighted_sum(&vectors, &weights).map_err(Error::on_layer(path))?;
            tensors.insert(path.parameter(KEY), sum);
        }
        let paths = request.layers.iter().map(|layer| layer.site.path);
        Ok(Combined { method: Arc::new(Self::combined(&configs, paths)), tensors })
    }

    fn changes_bias(&self, path: &ModulePath) -> bool {
        !self.is_feedforward(path).unwrap_or_default()
    }

    fn seed(&self) -> u64 {
        self.seed()
    }

    fn common(&self) -> Option<&CommonFields> {
        Some(self.common())
    }

    fn as_ia3(&self) -> Option<&Ia3Config> {
        Some(self)
    }
}

impl Ia3Config {
    /// Whether the layer's input is scaled: names match the end of the path as plain text, as in PEFT.
    fn is_feedforward(&self, path: &ModulePath) -> std::result::Result<bool, Fault> {
        Ok(match self.feedforward() {
            Some(TargetModules::Names(names)) => {
                names.iter().any(|name| path.as_str().ends_with(name.as_str()))
            }
            Some(TargetModules::Regex(pattern)) => {
                Pattern::whole("feedforward_modules", pattern)?.is_match(path.as_str())?
            }
            Some(TargetModules::AllLinear) | None => false,
        })
    }
}
