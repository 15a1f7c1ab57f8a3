//! LoKr as a method.

use std::sync::Arc;

use super::config::{LokrConfig, LokrInit, LokrSettings};
use super::factorization::factorization;
use super::{KEYS, Lokr, Matrix, T2, W1, W1_A, W1_B, W2, W2_A, W2_B};
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

impl FiltersBlocks for LokrSettings {}

impl Method for LokrSettings {
    const PEFT_TYPE: &'static str = "LOKR";
    const NAME: &'static str = "LoKr";
    const KEY_PREFIX: &'static str = "lokr_";
    const FILTERS_BLOCKS: bool = true;
    const HAS_SCALING: bool = true;

    fn key_ends() -> &'static [&'static str] {
        &KEYS
    }

    fn faults(config: &LokrConfig) -> Vec<ConfigFault> {
        let settings = &config.settings;
        settings.faults().into_iter().chain(settings.own.fault()).collect()
    }

    fn unmatched_patterns(config: &LokrConfig, paths: &[&str]) -> Result<Vec<(&'static str, String)>, Fault> {
        config.settings.unmatched_patterns(paths)
    }

    /// PEFT uses LoRA's.
    fn default_targets(model_type: &str) -> Option<TargetModules> {
        LoraSettings::default_targets(model_type)
    }

    fn plan_layer(
        config: &LokrConfig,
        path: &ModulePath,
        kind: LayerKind,
        geometry: &Geometry,
    ) -> Result<LayerSettings, Fault> {
        config.settings.plan_layer(Self::NAME, path, kind, geometry)
    }

    fn build(
        config: &LokrConfig,
        site: &Site<'_>,
        settings: &LayerSettings,
        source: &mut dyn TensorSource,
    ) -> Result<Built> {
        let common = &config.settings;
        let own = &common.own;
        let (geometry, rank) = (site.geometry.clone(), settings.rank.unwrap_or_default());
        let (outputs, inputs, _) = weight_sides(&geometry);
        let ((a, b), (c, d)) = (factorization(outputs, own.factor()), factorization(inputs, own.factor()));
        let first = common.first_matrix([a, c], rank, source)?;
        let second = common.second_matrix([b, d], &geometry, rank, source)?;
        let dropout = DeltaDropout {
            rows: common.rank_dropout,
            rescales: own.rank_dropout_scale,
            module: common.module_dropout,
        };
        let scaling = settings.scaling.unwrap_or_default();
        Ok(Built::new(Arc::new(Lokr { first, second, rank, scaling, dropout, geometry })))
    }

    fn geometry(
        config: &LokrConfig,
        shapes: &LayerShapes,
        weight: Option<&[usize]>,
        transposed: bool,
    ) -> Option<Geometry> {
        if let Some(&[outputs, inputs, ref kernel @ ..]) = weight
            && !kernel.is_empty()
        {
            return Some(convolution_of(inputs, outputs, kernel, 1));
        }
        // An empty tensor may have any number of columns, and no adapter contains one.
        if shapes.values().any(|shape| shape.contains(&0)) {
            return None;
        }
        let shape = |key: &str| shapes.get(key).map(Vec::as_slice);
        let first = match shape(W1) {
            Some(whole) => whole.to_vec(),
            None => vec![*shape(W1_A)?.first()?, *shape(W1_B)?.get(1)?],
        };
        let &[a, c] = first.as_slice() else { return None };
        let (outputs, inputs) = (|b| a.checked_mul(b), |d| c.checked_mul(d));
        match (shape(W2), shape(W2_A), shape(W2_B), shape(T2)) {
            (Some(&[b, d]), ..) => Some(linear_of(inputs(d)?, outputs(b)?, weight, transposed)),
            (Some(&[b, d, ref kernel @ ..]), ..) => Some(convolution_of(inputs(d)?, outputs(b)?, kernel, 1)),
            (_, Some(&[_, b]), Some(&[_, d]), Some(&[_, _, ref kernel @ ..])) => {
                Some(convolution_of(inputs(d)?, outputs(b)?, kernel, 1))
            }
            (_, Some(&[b, _]), Some(&[_, columns]), None) => {
                let (d, window) = config.settings.window_in(c, columns);
                match window.is_empty() {
                    true => Some(linear_of(inputs(d)?, outputs(b)?, weight, transposed)),
                    false => Some(convolution_of(inputs(d)?, outputs(b)?, &window, 1)),
                }
            }
            _ => None,
        }
    }
}

impl LokrSettings {
    /// W₁ with these dimensions.
    fn first_matrix(&self, [a, c]: [usize; 2], rank: usize, source: &mut dyn TensorSource) -> Result<Matrix> {
        let zero = self.own.init_weights == LokrInit::Default;
        let start = |fan_in: usize| if zero { Init::Constant(0.0) } else { Init::kaiming(fan_in) };
        if self.own.decompose_both && rank < a.max(c).div_ceil(2) {
            let left = source.tensor(W1_A, &[a, rank], start(rank))?;
            return Ok(Matrix::Product(left, source.tensor(W1_B, &[rank, c], Init::kaiming(c))?));
        }
        Ok(Matrix::Whole(source.tensor(W1, &[a, c], start(c))?))
    }

    /// W₂ with these dimensions and, for a convolution, its window.
    fn second_matrix(
        &self,
        [b, d]: [usize; 2],
        geometry: &Geometry,
        rank: usize,
        source: &mut dyn TensorSource,
    ) -> Result<Matrix> {
        let kernel: &[usize] = match geometry {
            Geometry::Conv { kernel, .. } => kernel,
            _ => &[],
        };
        let columns = d * kernel.iter().product::<usize>();
        let zero = self.own.init_weights == LokrInit::Lycoris;
        let start = |fan_in: usize| if zero { Init::Constant(0.0) } else { Init::kaiming(fan_in) };
        if rank >= b.max(d).div_ceil(2) {
            let shape = [&[b, d], kernel].concat();
            return Ok(Matrix::Whole(source.tensor(W2, &shape, start(columns))?));
        }
        if self.use_effective_conv2d && has_window(geometry) {
            let shape = core_shape(rank, kernel);
            let core = source.tensor(T2, &shape, Init::kaiming_of(&shape))?;
            let left = source.tensor(W2_A, &[rank, b], Init::kaiming(b))?;
            return Ok(Matrix::Core { core, left, right: source.tensor(W2_B, &[rank, d], start(d))? });
        }
        let left = source.tensor(W2_A, &[b, rank], Init::kaiming(rank))?;
        Ok(Matrix::Product(left, source.tensor(W2_B, &[rank, columns], start(columns))?))
    }

    /// The second dimension of W₂ and the window of the layer, of which only the product is known; the layer is linear,
    /// or a convolution with a square window.
    fn window_in(&self, c: usize, columns: usize) -> (usize, Vec<usize>) {
        let fits =
            |d: usize| c.checked_mul(d).is_some_and(|side| factorization(side, self.own.factor()) == (c, d));
        if fits(columns) {
            return (columns, Vec::new());
        }
        let windows = (2..=columns).flat_map(|side| [vec![side, side], vec![side]]);
        let found = windows
            .map(|window| (window.iter().product::<usize>(), window))
            .filter(|(elements, _)| columns.is_multiple_of(*elements))
            .find(|(elements, _)| fits(columns / elements));
        found.map_or((columns, Vec::new()), |(elements, window)| (columns / elements, window))
    }
}

#[cfg(test)]
mod tests {
    use crate::method::{LokrConfig, LokrSettings, Method, testing};

    fn weight_shape(shapes: &[(&str, &[usize])]) -> Option<Vec<usize>> {
        let geometry = LokrSettings::geometry(&LokrConfig::default(), &testing::shapes(shapes), None, false)?;
        Some(geometry.weight_shape())
    }

    #[test]
    fn the_matrices_tell_the_sides_of_the_weight() {
        let whole = weight_shape(&[("lokr_w1", &[2, 3]), ("lokr_w2", &[5, 4])]);
        assert_eq!(whole, Some(vec![10, 12]));
        let product = weight_shape(&[("lokr_w1", &[8, 8]), ("lokr_w2_a", &[16, 2]), ("lokr_w2_b", &[2, 16])]);
        assert_eq!(product, Some(vec![128, 128]));
        let window = weight_shape(&[("lokr_w1", &[8, 8]), ("lokr_w2_a", &[16, 2]), ("lokr_w2_b", &[2, 144])]);
        assert_eq!(window, Some(vec![128, 128, 3, 3]));
        let core = weight_shape(&[
            ("lokr_w1", &[8, 8]),
            ("lokr_w2_a", &[2, 16]),
            ("lokr_w2_b", &[2, 16]),
            ("lokr_t2", &[2, 2, 3, 3]),
        ]);
        assert_eq!(core, Some(vec![128, 128, 3, 3]));
        assert_eq!(weight_shape(&[("lokr_w1", &[2, 3])]), None);
    }

    #[test]
    fn sides_that_no_tensor_with_elements_has_make_no_geometry() {
        let far = 1usize << 40;
        assert_eq!(
            weight_shape(&[("lokr_w1", &[2, 3]), ("lokr_w2_a", &[far, 0]), ("lokr_w2_b", &[0, far])]),
            None
        );
        assert_eq!(weight_shape(&[("lokr_w1", &[far, 3]), ("lokr_w2", &[far, 4])]), None);
    }
}
