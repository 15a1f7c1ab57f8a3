//! candle's `Embedding`, and one with a row for padding.

use candle_core::{D, Result as CandleResult, Tensor};
use candle_nn::{Embedding, Module};

use super::{BaseLayer, ParameterMap};
use crate::adapter::{Geometry, without_padding_gradient};
use crate::error::{Error, Result};
use crate::ops::graph::attach::with_gradient;
use crate::ops::widened;
use crate::schema::{Family, LayerKind};

fn geometry(table: &Tensor, padding: Option<u32>) -> Geometry {
    match *table.dims() {
        [vocabulary, features] => Geometry::Embedding { vocabulary, features, padding },
        _ => Geometry::Opaque,
    }
}

/// The rows of `ids`. A lookup has no gradient for a table that is not a variable; that of a table in half precision is
/// summed in f32.
fn look_up(table: &Tensor, ids: &Tensor) -> CandleResult<Tensor> {
    let features = table.dim(D::Minus1)?;
    let rows = Embedding::new(table.detach(), features).forward(ids)?;
    if !table.track_op() {
        return Ok(rows);
    }
    let (ids, like) = (ids.flatten_all()?, table.detach());
    with_gradient(table, rows, move |grad| {
        let grad = widened(grad)?.reshape(((), features))?;
        let sum = Tensor::zeros(like.shape(), grad.dtype(), grad.device())?.index_add(&ids, &grad, 0)?;
        sum.to_dtype(like.dtype())
    })
}

impl BaseLayer for Embedding {
    const KIND: LayerKind = LayerKind::new("Embedding", Family::Embedding);

    fn geometry(&self) -> Geometry {
        geometry(self.embeddings(), None)
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
        look_up(self.embeddings(), x)
    }

    fn describe(&self) -> String {
        let geometry = self.geometry();
        format!("Embedding({}, {})", geometry.in_features(), geometry.out_features())
    }
}

/// An embedding with a row that stands for padding and never gets a gradient, PyTorch's `padding_idx`.
#[derive(Clone, Debug)]
pub struct PaddedEmbedding {
    table: Embedding,
    padding: Option<u32>,
}

impl PaddedEmbedding {
    /// An embedding whose row `padding` stands for padding.
    pub fn new(table: Embedding, padding: Option<u32>) -> Self {
        Self { table, padding }
    }

    /// The table, `[vocabulary, features]`.
    pub fn embeddings(&self) -> &Tensor {
        self.table.embeddings()
    }

    /// The row that stands for padding.
    pub fn padding(&self) -> Option<u32> {
        self.padding
    }
}

impl Module for PaddedEmbedding {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.forward_base(x)
    }
}

impl BaseLayer for PaddedEmbedding {
    const KIND: LayerKind = Embedding::KIND;

    fn geometry(&self) -> Geometry {
        geometry(self.embeddings(), self.padding)
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        BaseLayer::parameters(&self.table)
    }

    fn map_parameters(&self, map: &mut ParameterMap<'_>) -> Result<Self> {
        Ok(Self { table: BaseLayer::map_parameters(&self.table, map)?, padding: self.padding })
    }

    fn forward_base(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let rows = look_up(self.embeddings(), &x.flatten_all()?)?;
        let dims = [x.dims(), &[rows.dim(D::Minus1)?]].concat();
        without_padding_gradient(rows, &x.flatten_all()?, self.padding)?.reshape(dims)
    }

    fn describe(&self) -> String {
        let geometry = self.geometry();
        let padding = self.padding.map(|padding| format!(", padding_idx={padding}")).unwrap_or_default();
        format!("Embedding({}, {}{padding})", geometry.in_features(), geometry.out_features())
    }
}
