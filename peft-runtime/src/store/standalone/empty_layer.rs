//! A layer that stands for one of a model.

use candle_core::{DType, Device, Result as CandleResult, Tensor, bail};

use crate::adapter::Geometry;
use crate::error::Result;
use crate::layer::{BaseLayer, ParameterMap};
use crate::path::ModulePath;
use crate::schema::{Family, LayerKind};
use crate::store::base_weights::BaseWeights;

/// A layer of a skeleton: its shape, and its weight only where a base model has it.
#[derive(Clone, Debug)]
pub(crate) struct EmptyLayer {
    pub(super) path: ModulePath,
    pub(super) geometry: Geometry,
    pub(super) dtype: DType,
    /// The parameters that adapters bring values for.
    pub(super) parameters: Vec<(&'static str, Tensor)>,
    pub(super) base: Option<BaseWeights>,
}

impl BaseLayer for EmptyLayer {
    const KIND: LayerKind = LayerKind::new("Linear", Family::Linear);

    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        self.parameters.iter().map(|(name, tensor)| (*name, tensor)).collect()
    }

    fn map_parameters(&self, map: &mut ParameterMap<'_>) -> Result<Self> {
        let parameters = self.parameters.iter().map(|(name, own)| Ok((*name, map(name, own)?)));
        Ok(Self { parameters: parameters.collect::<Result<_>>()?, ..self.clone() })
    }

    fn forward_base(&self, _: &Tensor) -> CandleResult<Tensor> {
        bail!("`{}` has no weight: it stands for a layer of a model", self.path)
    }

    fn dtype_and_device(&self) -> (DType, Device) {
        (self.dtype, Device::Cpu)
    }

    fn dense_weight(&self) -> CandleResult<Tensor> {
        match &self.base {
            Some(base) => base.read(self.path.as_str(), "weight"),
            None => bail!("the weight of `{}` is needed; give the base model", self.path),
        }
    }

    fn describe(&self) -> String {
        format!("{:?}", self.geometry)
    }
}
