//! An adapter method: the output of a layer times one number.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Result as CandleResult, Tensor, Var};
use peft_runtime::adapter::{
    Adapter, AdapterTensor, Built, Call, Combination, Combined, Component, Geometry, Init, LayerSettings,
    LayerShapes, LinearParameters, MergeError, Site, TensorSource,
};
use peft_runtime::error::Fault;
use peft_runtime::method::{AdapterConfig, Method};
use peft_runtime::schema::LayerKind;
use peft_runtime::{ModulePath, Result};
use serde::{Deserialize, Serialize};

/// The end of the number's key in files.
const KEY: &str = "scale_factor";

/// The config of the method: its settings, and the modules that every config names.
pub type ScaleConfig = AdapterConfig<ScaleSettings>;

/// The settings of the method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScaleSettings {
    /// The number's initial value; with 1, a fresh adapter changes nothing.
    #[serde(default = "one")]
    pub start: f64,
}

fn one() -> f64 {
    1.0
}

/// The adapter of one layer: a number.
#[derive(Debug)]
pub struct Scale {
    factor: Var,
}

impl Adapter for Scale {
    fn tensors(&self) -> Vec<AdapterTensor<'_>> {
        vec![AdapterTensor::new(KEY, &self.factor)]
    }

    fn adapt_output(&self, call: &Call<'_>, _: &Tensor, output: Tensor) -> CandleResult<Tensor> {
        output.broadcast_mul(&call.tensor(&self.factor).to_dtype(output.dtype())?)
    }

    fn merge(
        &self,
        _: &Site<'_>,
        parameters: LinearParameters,
    ) -> std::result::Result<LinearParameters, MergeError> {
        let factor = self.factor.as_detached_tensor();
        let scaled = |tensor: &Tensor| tensor.broadcast_mul(&factor.to_dtype(tensor.dtype())?);
        let bias = parameters.bias.as_ref().map(scaled).transpose()?;
        Ok(LinearParameters { weight: scaled(&parameters.weight)?, bias })
    }

    fn label(&self) -> &'static str {
        "Scale"
    }

    fn components(&self) -> Vec<Component> {
        vec![Component::tensors(KEY, Some(&self.factor))]
    }

    fn tree_prefix(&self) -> Option<&'static str> {
        Some("scale")
    }
}

impl Method for ScaleSettings {
    const PEFT_TYPE: &'static str = "SCALE";
    const NAME: &'static str = "Scale";
    const KEY_PREFIX: &'static str = "scale_";

    fn faults(config: &ScaleConfig) -> Vec<(&'static str, String)> {
        let start = config.settings().start;
        if start.is_finite() {
            Vec::new()
        } else {
            vec![("start", format!("{start} is not a finite number"))]
        }
    }

    fn plan_layer(
        _: &ScaleConfig,
        path: &ModulePath,
        kind: LayerKind,
        geometry: &Geometry,
    ) -> Result<LayerSettings, Fault> {
        match geometry {
            Geometry::Opaque => {
                Err(Fault::unsupported_layer(path, kind, Self::NAME, "it has no output to scale"))
            }
            _ => Ok(LayerSettings::new().with_changed_bias(true)),
        }
    }

    fn build(
        config: &ScaleConfig,
        _: &Site<'_>,
        _: &LayerSettings,
        source: &mut dyn TensorSource,
    ) -> Result<Built> {
        let factor = source.tensor(KEY, &[1], Init::Constant(config.settings().start))?;
        Ok(Built::new(Arc::new(Scale { factor })))
    }

    fn geometry(
        _: &ScaleConfig,
        shapes: &LayerShapes,
        weight: Option<&[usize]>,
        transposed: bool,
    ) -> Option<Geometry> {
        shapes.contains_key(KEY).then(|| Geometry::of_weight(weight, transposed))
    }

    /// 1 plus the weighted sum of each number minus 1, so that an adapter has no effect on layers where it has no number.
    fn combine(config: &ScaleConfig, request: &Combination<'_>) -> Result<Combined> {
        let configs = request.configs::<ScaleConfig>()?;
        let mut tensors = BTreeMap::new();
        for layer in &request.layers {
            let mut sum = Tensor::ones(1, layer.site.adapter_dtype(), layer.site.device)?;
            for (part, state) in layer.states::<Scale>(&request.parts) {
                sum = (sum + ((state.factor.as_detached_tensor() - 1.0)? * part.weight)?)?;
            }
            tensors.insert(format!("{}.{KEY}", layer.site.path), sum);
        }
        let paths = request.layers.iter().map(|layer| layer.site.path);
        let config = ScaleConfig::for_combination(&configs, config.settings().clone(), paths);
        Ok(Combined { method: Arc::new(config), tensors })
    }
}
