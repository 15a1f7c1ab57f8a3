//! IA3 as a method.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Result as CandleResult, Tensor};

use super::config::{Ia3Config, Ia3Settings};
use super::default_targets::default_targets;
use super::{Ia3, KEY, shape};
use crate::adapter::{
    Built, Combination, Combined, CombinedLayer, Geometry, Init, LayerSettings, LayerShapes, Site,
    TensorSource, convolution_of, linear_of,
};
use crate::config::{ConfigFault, ModuleFields};
use crate::declared::Declared;
use crate::error::{Error, Fault, Result};
use crate::method::{AdapterConfig, Method};
use crate::ops::task_vectors::weighted_sum;
use crate::ops::widened_value;
use crate::path::ModulePath;
use crate::schema::LayerKind;
use crate::select::TargetModules;

impl Method for Ia3Settings {
    const PEFT_TYPE: &'static str = "IA3";
    const NAME: &'static str = "IA3";
    const KEY_PREFIX: &'static str = KEY;
    const SHORTENS_TARGETS: bool = false;

    fn key_ends() -> &'static [&'static str] {
        &[KEY]
    }

    fn faults(config: &Ia3Config) -> Vec<ConfigFault> {
        config.feedforward_faults()
    }

    fn default_targets(model_type: &str) -> Option<TargetModules> {
        default_targets(model_type).map(|(targets, _)| targets)
    }

    fn with_declared(config: &Ia3Config, declared: &Declared, model_type: Option<&str>) -> Option<Ia3Config> {
        if config.targets().is_some() && config.feedforward().is_some() {
            return None;
        }
        let declared = declared.target_and_feedforward_modules();
        let (targets, feedforward) = declared.or_else(|| model_type.and_then(default_targets))?;
        let targets = config.targets().cloned().unwrap_or(targets);
        let feedforward = config.feedforward().cloned().unwrap_or_else(|| feedforward.among(&targets));
        let modules = ModuleFields { targets: Some(targets), ..config.modules.clone() };
        Some(AdapterConfig { modules, ..config.clone() }.with_feedforward(feedforward))
    }

    fn plan_layer(
        config: &Ia3Config,
        path: &ModulePath,
        kind: LayerKind,
        geometry: &Geometry,
    ) -> Result<LayerSettings, Fault> {
        if config.feedforward().is_none() {
            return Err(Fault::NoFeedforward);
        }
        let is_feedforward = config.is_feedforward(path)?;
        let supported = match geometry {
            Geometry::Linear { .. } => true,
            Geometry::Conv { kernel, .. } => kernel.len() == 2,
            Geometry::Embedding { .. } | Geometry::Experts { .. } | Geometry::Opaque => false,
        };
        if !supported {
            let reason = "IA3 scales linear layers and two-dimensional convolutions";
            return Err(Fault::unsupported_layer(path, kind, Self::NAME, reason));
        }
        Ok(LayerSettings::new().with_changed_bias(!is_feedforward))
    }

    fn build(
        config: &Ia3Config,
        site: &Site<'_>,
        settings: &LayerSettings,
        source: &mut dyn TensorSource,
    ) -> Result<Built> {
        // The bias is part of the output, which is scaled unless the input is.
        let feedforward = !settings.changes_bias;
        let init = if config.starts_as_ones() { Init::Constant(1.0) } else { Init::Normal(1.0) };
        let vector = source.tensor(KEY, &shape(site.geometry, feedforward), init)?;
        Ok(Built::new(Arc::new(Ia3 { vector, feedforward, geometry: site.geometry.clone() })))
    }

    fn resolved(config: AdapterConfig<Self>) -> AdapterConfig<Self> {
        config.with_feedforward_among_targets()
    }

    fn set_transposed(&mut self, transposed: bool) {
        self.fan_in_fan_out = transposed;
        // A file states explicitly that there are none.
        self.feedforward.get_or_insert_with(|| TargetModules::names(Vec::<String>::new()));
    }

    fn is_transposed(&self) -> bool {
        self.fan_in_fan_out
    }

    /// The weighted sum of the vectors; weights that add up to 1 keep vectors of ones.
    fn combine(_: &Ia3Config, request: &Combination<'_>) -> Result<Combined> {
        let configs = request.configs::<Ia3Config>()?;
        let mut tensors = BTreeMap::new();
        for layer in &request.layers {
            let states = layer.states::<Ia3>(&request.parts);
            let weights: Vec<f64> = states.iter().map(|(part, _)| part.weight).collect();
            let path = layer.site.path;
            let vectors = states.iter().map(|(_, state)| widened_value(&state.vector));
            let vectors: Vec<Tensor> = vectors.collect::<CandleResult<_>>().map_err(Error::on_layer(path))?;
            if let Some((part, _)) = states.iter().find(|(_, state)| {
                Some(state.feedforward) != states.first().map(|(_, first)| first.feedforward)
            }) {
                return Combination::refuse(
                    part,
                    format!("it does not scale the same side of `{path}` as the first one"),
                );
            }
            let sum = weighted_sum(&vectors, &weights).map_err(Error::on_layer(path))?;
            tensors.insert(path.parameter(KEY), sum);
        }
        let sides = sides(request);
        let combined = Ia3Config::combined(&configs, sides.iter().map(|(path, _)| *path));
        let agrees = |(path, side): &(&ModulePath, bool)| Ok(combined.is_feedforward(path)? == *side);
        let agree = sides.iter().map(agrees).collect::<Result<Vec<_>, Fault>>();
        // A name of one config may mean a layer of another, which scales its output.
        let config = match agree {
            Ok(agree) if !agree.contains(&false) => combined,
            _ => combined.exactly(&sides),
        };
        let config = match configs.first().filter(|_| request.options.restarts) {
            Some(first) => config.copying_as((*first).clone()),
            None => config,
        };
        Ok(Combined { method: Arc::new(config), tensors })
    }

    fn check_plain_lora(_: &Ia3Config, _: bool) -> Result<(), String> {
        Err("IA3 scales inputs and outputs, which no low-rank update does".to_owned())
    }

    fn geometry(
        _: &Ia3Config,
        shapes: &LayerShapes,
        weight: Option<&[usize]>,
        transposed: bool,
    ) -> Option<Geometry> {
        scaled(shapes.get(KEY)?, weight, transposed)
    }
}

/// The layers of a combination, each with whether its input is scaled.
fn sides<'r>(request: &'r Combination<'_>) -> Vec<(&'r ModulePath, bool)> {
    let side = |layer: &'r CombinedLayer<'_>| {
        let states = layer.states::<Ia3>(&request.parts);
        Some((layer.site.path, states.first()?.1.feedforward))
    };
    request.layers.iter().filter_map(side).collect()
}

/// A layer with a vector over its outputs, `[out, 1]`, or over its inputs, `[1, in]`; for a convolution, `[1, channels,
/// 1, 1]`.
fn scaled(vector: &[usize], weight: Option<&[usize]>, transposed: bool) -> Option<Geometry> {
    match *vector {
        [out_features, 1] => Some(match weight {
            Some(&[rows, columns]) => {
                let transposed = match (rows == out_features, columns == out_features) {
                    (true, false) => false,
                    (false, true) => true,
                    _ => transposed,
                };
                let in_features = if transposed { rows } else { columns };
                Geometry::Linear { in_features, out_features, transposed }
            }
            _ => Geometry::Linear { in_features: 1, out_features, transposed },
        }),
        [1, in_features] => {
            let Geometry::Linear { transposed, .. } = linear_of(in_features, 1, weight, transposed) else {
                return None;
            };
            let out_features = match weight {
                Some(&[rows, columns]) => {
                    if transposed {
                        columns
                    } else {
                        rows
                    }
                }
                _ => 1,
            };
            Some(Geometry::Linear { in_features, out_features, transposed })
        }
        [1, channels, ref kernel @ ..] => Some(match weight {
            // A vector that may be over the inputs is taken to be: one over the outputs does not depend on groups.
            Some(&[out_channels, own, ref kernel @ ..]) if channels.is_multiple_of(own.max(1)) => {
                convolution_of(channels, out_channels, kernel, channels / own.max(1))
            }
            Some(&[out_channels, own, ref kernel @ ..]) => convolution_of(own, out_channels, kernel, 1),
            _ => convolution_of(channels, channels, kernel, 1),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::method::testing::{linear, shapes};
    use crate::method::{Ia3Config, Ia3Settings, Method};

    #[test]
    fn vectors_are_over_one_side() {
        let out = shapes(&[("ia3_l", &[7, 1])]);
        assert_eq!(
            Ia3Settings::geometry(&Ia3Config::default(), &out, Some(&[7, 5]), true),
            linear(5, 7, false)
        );
        let input = shapes(&[("ia3_l", &[1, 5])]);
        assert_eq!(
            Ia3Settings::geometry(&Ia3Config::default(), &input, Some(&[7, 5]), false),
            linear(5, 7, false)
        );
        assert_eq!(
            Ia3Settings::geometry(&Ia3Config::default(), &input, Some(&[5, 7]), false),
            linear(5, 7, true)
        );
        assert_eq!(Ia3Settings::geometry(&Ia3Config::default(), &shapes(&[]), Some(&[5, 7]), false), None);
    }

    #[test]
    fn a_key_is_taken_apart_before_the_vector() {
        assert_eq!(Ia3Settings::split_key("a.ia3_l"), Some(("a", "ia3_l")));
        assert_eq!(Ia3Settings::split_key("a.weight"), None);
    }
}
