//! An adapter method: the output of a layer times one number.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Result as CandleResult, Tensor, Var};
use peft_runtime::adapter::{
    Adapter, AdapterMethod, AdapterTensor, Built, Call, Component, Geometry, Init, LinearParameters,
    MergeError, Selection, Site, TensorSource,
};
use peft_runtime::error::Fault;
use peft_runtime::schema::LayerKind;
use peft_runtime::{Error, ModulePath, Result, TargetModules};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The method's name in files.
const PEFT_TYPE: &str = "SCALE";
/// The end of the number's key in files.
const KEY: &str = "scale_factor";

/// The settings of the method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScaleConfig {
    target_modules: Option<TargetModules>,
    /// What the number starts as.
    #[serde(default = "one")]
    start: f64,
}

fn one() -> f64 {
    1.0
}

impl ScaleConfig {
    /// Scales the outputs of these modules; without any, of those that the model declares.
    pub fn new(targets: Option<TargetModules>) -> Self {
        Self { target_modules: targets, start: one() }
    }

    /// The number that layers start with; with 1, a fresh adapter changes nothing.
    #[must_use]
    pub fn with_start(mut self, start: f64) -> Self {
        self.start = start;
        self
    }

    /// Reads the text of an `adapter_config.json`.
    ///
    /// # Errors
    /// If it is none of this method's.
    pub fn read(text: &str) -> Result<Arc<dyn AdapterMethod>> {
        let value: Value = serde_json::from_str(text)?;
        if value.get("peft_type").and_then(Value::as_str) != Some(PEFT_TYPE) {
            return Err(Error::Config { field: "peft_type", reason: format!("it is not `{PEFT_TYPE}`") });
        }
        let config: Self = serde_json::from_value(value)?;
        Ok(Arc::new(config))
    }
}

/// What one layer gets: a number.
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

    fn components(&self) -> Vec<Component> {
        vec![Component::tensors(KEY, Some(&self.factor))]
    }

    fn tree_prefix(&self) -> Option<&'static str> {
        Some("scale")
    }
}

impl AdapterMethod for ScaleConfig {
    fn peft_type(&self) -> &'static str {
        PEFT_TYPE
    }

    fn selection(&self) -> Selection<'_> {
        Selection::of(self.target_modules.as_ref())
    }

    fn faults(&self) -> Vec<(&'static str, String)> {
        let fault = ("start", format!("{} is not a finite number", self.start));
        if self.start.is_finite() { Vec::new() } else { vec![fault] }
    }

    fn check(&self, path: &ModulePath, kind: LayerKind, geometry: &Geometry) -> Option<Fault> {
        let reason = "it has no output to scale".to_owned();
        let fault =
            Fault::UnsupportedLayer { path: path.clone(), kind: kind.name, method: PEFT_TYPE, reason };
        (*geometry == Geometry::Opaque).then_some(fault)
    }

    fn build(&self, _: &Site<'_>, source: &mut dyn TensorSource) -> Result<Built> {
        let factor = source.tensor(KEY, &[1], Init::Constant(self.start))?;
        Ok(Built::new(Arc::new(Scale { factor })))
    }

    fn resolved(&self, targets: TargetModules, _: bool) -> Arc<dyn AdapterMethod> {
        Arc::new(Self { target_modules: Some(targets), ..self.clone() })
    }

    fn to_json(&self, _: &[(&ModulePath, &dyn Adapter)]) -> Result<String> {
        let mut value = serde_json::to_value(self)?;
        value["peft_type"] = json!(PEFT_TYPE);
        Ok(serde_json::to_string_pretty(&value)?)
    }

    fn for_tensors(&self, shapes: &BTreeMap<&str, &[usize]>) -> Result<Arc<dyn AdapterMethod>> {
        let marker = format!(".{KEY}");
        let paths: Vec<&str> = shapes.keys().filter_map(|key| key.strip_suffix(marker.as_str())).collect();
        if paths.is_empty() {
            return Err(Error::Config { field: "state_dict", reason: format!("no key ends in `{marker}`") });
        }
        Ok(Arc::new(Self { target_modules: Some(TargetModules::names(paths)), ..self.clone() }))
    }
}
