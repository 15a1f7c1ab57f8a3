//! LoHa as a method.

use std::sync::Arc;

use super::config::{LohaConfig, LohaSettings};
use super::{CORES, FACTORS, KEYS, Loha};
use crate::adapter::{
    Built, Geometry, Init, LayerSettings, LayerShapes, Site, TensorSource, convolution_of, linear_of,
};
use crate::config::ConfigFault;
use crate::error::{Fault, Result};
use crate::method::lora::LoraSettings;
use crate::method::weight_delta::{DeltaDropout, core_shape, has_window, weight_sides};
use crate::method::{FiltersBlocks, Method};
use crate::path::ModulePath;
use crate::schema::LayerKind;
use crate::select::TargetModules;

impl FiltersBlocks for LohaSettings {}

impl Method for LohaSettings {
    const PEFT_TYPE: &'static str = "LOHA";
    const NAME: &'static str = "LoHa";
    const KEY_PREFIX: &'static str = "hada_";
    const FILTERS_BLOCKS: bool = true;
    const HAS_SCALING: bool = true;

    fn key_ends() -> &'static [&'static str] {
        &KEYS
    }

    fn faults(config: &LohaConfig) -> Vec<ConfigFault> {
        config.settings.faults()
    }

    fn unmatched_patterns(config: &LohaConfig, paths: &[&str]) -> Result<Vec<(&'static str, String)>, Fault> {
        config.settings.unmatched_patterns(paths)
    }

    /// PEFT uses LoRA's.
    fn default_targets(model_type: &str) -> Option<TargetModules> {
        LoraSettings::default_targets(model_type)
    }

    fn plan_layer(
        config: &LohaConfig,
        path: &ModulePath,
        kind: LayerKind,
        geometry: &Geometry,
    ) -> Result<LayerSettings, Fault> {
        config.settings.plan_layer(Self::NAME, path, kind, geometry)
    }

    fn build(
        config: &LohaConfig,
        site: &Site<'_>,
        settings: &LayerSettings,
        source: &mut dyn TensorSource,
    ) -> Result<Built> {
        let common = &config.settings;
        let (geometry, rank) = (site.geometry.clone(), settings.rank.unwrap_or_default());
        let (outputs, inputs, elements) = weight_sides(&geometry);
        let core = (common.use_effective_conv2d && has_window(&geometry)).then(|| match &geometry {
            Geometry::Conv { kernel, .. } => core_shape(rank, kernel),
            _ => core_shape(rank, &[]),
        });
        let (left, right) = match core {
            Some(_) => ([rank, outputs], [rank, inputs]),
            None => ([outputs, rank], [rank, inputs * elements]),
        };
        let [a1, b1, a2, b2] = FACTORS;
        let random = Init::kaiming_of;
        let last = if common.own.init_weights { Init::Constant(0.0) } else { random(&right) };
        let factors = [
            source.tensor(a1, &left, random(&left))?,
            source.tensor(b1, &right, random(&right))?,
            source.tensor(a2, &left, random(&left))?,
            source.tensor(b2, &right, last)?,
        ];
        let cores = match &core {
            Some(shape) => {
                let [t1, t2] = CORES;
                Some([source.tensor(t1, shape, random(shape))?, source.tensor(t2, shape, random(shape))?])
            }
            None => None,
        };
        let dropout =
            DeltaDropout { rows: common.rank_dropout, rescales: true, module: common.module_dropout };
        let scaling = settings.scaling.unwrap_or_default();
        Ok(Built::new(Arc::new(Loha { factors, cores, scaling, dropout, geometry })))
    }

    fn geometry(
        _: &LohaConfig,
        shapes: &LayerShapes,
        weight: Option<&[usize]>,
        transposed: bool,
    ) -> Option<Geometry> {
        // An empty tensor may have any number of columns, and no adapter contains one.
        if shapes.values().any(|shape| shape.contains(&0)) {
            return None;
        }
        let shape = |key: &str| shapes.get(key).map(Vec::as_slice);
        let (&[left, rank], &[_, right]) = (shape(FACTORS[0])?, shape(FACTORS[1])?) else { return None };
        let core = shape(CORES[0]);
        let (outputs, inputs) = if core.is_some() { (rank, right) } else { (left, right) };
        Some(match (weight, core) {
            (Some(&[outputs, inputs, ref kernel @ ..]), _) if !kernel.is_empty() => {
                convolution_of(inputs, outputs, kernel, 1)
            }
            (_, Some(&[_, _, ref kernel @ ..])) => convolution_of(inputs, outputs, kernel, 1),
            _ => linear_of(inputs, outputs, weight, transposed),
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::adapter::Geometry;
    use crate::method::{LohaConfig, LohaSettings, Method, testing};

    fn geometry(shapes: &[(&str, &[usize])], weight: Option<&[usize]>) -> Option<Geometry> {
        LohaSettings::geometry(&LohaConfig::default(), &testing::shapes(shapes), weight, false)
    }

    #[test]
    fn the_factors_tell_the_sides_and_the_core_the_window() {
        let plain: &[(&str, &[usize])] = &[("hada_w1_a", &[8, 2]), ("hada_w1_b", &[2, 6])];
        let linear = Geometry::Linear { in_features: 6, out_features: 8, transposed: false };
        assert_eq!(geometry(plain, None), Some(linear));
        let core: &[(&str, &[usize])] =
            &[("hada_w1_a", &[2, 8]), ("hada_w1_b", &[2, 6]), ("hada_t1", &[2, 2, 3, 3])];
        let found = geometry(core, None).map(|geometry| geometry.weight_shape());
        assert_eq!(found, Some(vec![8, 6, 3, 3]));
        let found = geometry(plain, Some(&[8, 2, 3])).map(|geometry| geometry.weight_shape());
        assert_eq!(found, Some(vec![8, 2, 3]));
        assert_eq!(geometry(&[], None), None);
    }
}
