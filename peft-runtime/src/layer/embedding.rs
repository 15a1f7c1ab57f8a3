//! candle's `Embedding`.

use candle_core::{D, Tensor};
use candle_nn::{Embedding, Module};

use super::{BaseLayer, ParameterMap};
use crate::adapter::Geometry;
use crate::error::{Error, Result};
use crate::schema::{Family, LayerKind};

impl BaseLayer for Embedding {
    const KIND: LayerKind = LayerKind::new("Embedding", Family::Embedding);

    fn geometry(&self) -> Geometry {
        match *self.embeddings().dims() {
            [vocabulary, features] => Geometry::Embedding { vocabulary, features },
            _ => Geometry::Opaque,
        }
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("weight", self.embeddings())]
    }

    fn map_parameters(&self, map: &mut ParameterMap<'_>) -> Result<Self> {
        let weight = map("weight", self.embeddings())?;
        let features = weight.dim(D::Minus1).map_err(Error::Candle)?;
        Ok(Self::new(weight, features))
    }

    fn forward_base(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        // A look-up has no gradient for a table that is no variable.
        self.forward(x)
    }

    fn describe(&self) -> String {
        let geometry = self.geometry();
        format!("Embedding({}, {})", geometry.in_features(), geometry.out_features())
    }
}
