//! A bare parameter of a skeleton: only its shape.

use candle_core::{DType, Device, Result as CandleResult, Tensor, bail};

use crate::adapter::Geometry;
use crate::error::Result;
use crate::layer::{BaseLayer, ParameterMap};
use crate::schema::{Family, LayerKind};

/// The parameter.
#[derive(Clone, Debug)]
pub(crate) struct EmptyParameter {
    pub(super) geometry: Geometry,
}

impl BaseLayer for EmptyParameter {
    const KIND: LayerKind = LayerKind::new("Weight", Family::Parameter);
    const WEIGHT: &'static str = "";

    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        Vec::new()
    }

    fn map_parameters(&self, _: &mut ParameterMap<'_>) -> Result<Self> {
        Ok(self.clone())
    }

    fn forward_base(&self, _: &Tensor) -> CandleResult<Tensor> {
        bail!("a bare parameter has no forward pass")
    }

    fn dtype_and_device(&self) -> (DType, Device) {
        (DType::F32, Device::Cpu)
    }

    fn dense_weight(&self) -> CandleResult<Tensor> {
        bail!("the weight of a bare parameter is needed; give the base model")
    }

    fn describe(&self) -> String {
        format!("{:?}", self.geometry)
    }
}
