//! Trainable tokens: some rows of an embedding, and the same rows of the output layer that is tied to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{D, DType, Device, Result as CandleResult, Tensor, Var};

use crate::adapter::{
    Adapter, AdapterTensor, Built, Call, Component, Geometry, Init, LayerShapes, LinearParameters,
    MergeError, Site, TensorSource, without_padding_gradient,
};
use crate::config::TokenIndices;
use crate::error::Result;
use crate::ops::constant::mul_constant;
use crate::ops::{add_promoted, widened};

/// Where PEFT stores the embedding beneath the adapter, relative to the embedding's own path.
pub(super) const BASE_LAYER_PATH: &str = "token_adapter.base_layer";
const BASE_WEIGHT_KEY: &str = "token_adapter.base_layer.weight";

/// Rows of a table that train in place of the base model's: `[tokens, features]`.
#[derive(Clone, Debug)]
pub struct TrainableTokens {
    rows: Var,
    tokens: Vec<u32>,
    /// Whether the rows are those of another layer, which stores them.
    tied: bool,
    geometry: Geometry,
}

/// More rows than any embedding has, used if the number is unknown.
const MANY_ROWS: usize = 0xffff_ffff;

impl TrainableTokens {
    /// The end of the rows' key in files.
    pub(crate) const KEY: &'static str = "token_adapter.trainable_tokens_delta";
    /// The end of the key of the base model's own rows, which PEFT keeps next to them.
    pub(crate) const ORIGINAL_KEY: &'static str = "token_adapter.trainable_tokens_original";

    /// Whether what follows a layer's path in a key is of the adapter on its rows.
    pub(crate) fn has_key(end: &str) -> bool {
        end.starts_with("token_adapter.")
    }

    /// The rows of `tokens`, which start as the layer's own.
    pub(crate) fn build(site: &Site<'_>, tokens: &[u32], source: &mut dyn TensorSource) -> Result<Built> {
        let (geometry, index) = (site.geometry.clone(), Tensor::new(tokens, &Device::Cpu)?);
        let own = || Ok(site.weight()?.index_select(&index.to_device(site.device)?, 0)?);
        let features = geometry.weight_shape().get(1).copied().unwrap_or_default();
        let rows = source.tensor(Self::KEY, &[tokens.len(), features], Init::Computed(&own))?;
        Ok(Built::new(Arc::new(Self { rows, tokens: tokens.to_vec(), tied: false, geometry })))
    }

    /// The layer's own rows, unless they are those of another layer.
    pub(crate) fn base_rows(&self, site: &Site<'_>) -> Result<Option<Tensor>> {
        if self.tied {
            return Ok(None);
        }
        Ok(Some(site.weight()?.index_select(&self.index(site.device)?, 0)?))
    }

    /// The geometry of the embedding that has these tensors and, if it is known, a weight of this shape.
    pub(crate) fn geometry(shapes: &LayerShapes, weight: Option<&[usize]>) -> Option<Geometry> {
        let &[_, features] = shapes.get(Self::KEY)?.as_slice() else { return None };
        let vocabulary = weight.and_then(|weight| weight.first().copied()).unwrap_or(MANY_ROWS);
        Some(Geometry::Embedding { vocabulary, features, padding: None })
    }

    /// Which rows train in the embeddings of a file, by name: rows of the model's input embedding are those of what has rows among
    /// `layers`, which have the ends of their keys: the embedding, and with it an output layer of the same weight.
    pub(super) fn by_name(
        tokens: Option<&TokenIndices>,
        layers: &BTreeMap<&str, Vec<&str>>,
    ) -> Option<TokenIndices> {
        let embeddings: Vec<&str> =
            layers.iter().filter(|(_, ends)| ends.contains(&Self::KEY)).map(|(path, _)| *path).collect();
        match (tokens?, embeddings.as_slice()) {
            (TokenIndices::Input(rows), []) => Some(TokenIndices::Input(rows.clone())),
            (TokenIndices::Input(rows), paths) => {
                let lists = paths.iter().map(|path| ((*path).to_owned(), rows.clone()));
                Some(TokenIndices::ByName(lists.collect()))
            }
            // A tied output layer that has the rows of the embedding is not in the file.
            (TokenIndices::ByName(lists), paths) => {
                let is_there = |name: &str| paths.iter().any(|path| path.ends_with(name));
                let is_repeated =
                    |rows: &Vec<u32>| lists.iter().any(|(other, own)| own == rows && is_there(other));
                let lists = lists.iter().filter(|(name, rows)| is_there(name) || !is_repeated(rows));
                Some(TokenIndices::ByName(lists.map(|(name, rows)| (name.clone(), rows.clone())).collect()))
            }
        }
    }

    /// The tokens, in the order of their rows.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// For every id in `ids`, the position of its row, and 1 if it has one.
    fn places(&self, ids: &Tensor) -> CandleResult<(Tensor, Tensor)> {
        let places = ids.to_dtype(DType::U32)?.to_device(&Device::Cpu)?.to_vec1::<u32>()?;
        let find = |id: &u32| self.tokens.iter().position(|token| token == id);
        let found: Vec<Option<usize>> = places.iter().map(find).collect();
        let place = |place: &Option<usize>| u32::try_from(place.unwrap_or_default()).unwrap_or_default();
        let places: Vec<u32> = found.iter().map(place).collect();
        let mask: Vec<f32> = found.iter().map(|place| f32::from(u8::from(place.is_some()))).collect();
        let device = ids.device();
        let mask = Tensor::from_vec(mask, (found.len(), 1), &Device::Cpu)?.to_device(device)?;
        Ok((Tensor::from_vec(places, found.len(), &Device::Cpu)?.to_device(device)?, mask))
    }

    /// The output with the rows of these tokens replaced.
    fn replace_rows(&self, rows: &Tensor, ids: &Tensor, output: &Tensor) -> CandleResult<Tensor> {
        let features = output.dim(D::Minus1)?;
        let (places, mask) = self.places(&ids.flatten_all()?)?;
        let mask = mask.to_dtype(output.dtype())?.broadcast_as((mask.dim(0)?, features))?.contiguous()?;
        let others = mul_constant(&output.reshape(mask.shape())?, &(1.0 - &mask)?)?;
        let own = rows.index_select(&places, 0)?.to_dtype(output.dtype())?;
        // As in PyTorch, where the row of the padding index never has a gradient.
        let own = without_padding_gradient(own, &ids.flatten_all()?, self.padding())?;
        add_promoted(&others, &mul_constant(&own, &mask)?)?.reshape(output.shape())
    }

    /// The row that stands for padding, if the table has one.
    fn padding(&self) -> Option<u32> {
        match self.geometry {
            Geometry::Embedding { padding, .. } => padding,
            _ => None,
        }
    }

    /// The logits with the columns of these tokens replaced by x·Tᵀ + b.
    fn replace_columns(
        &self,
        rows: &Tensor,
        call: &Call<'_>,
        x: &Tensor,
        output: &Tensor,
    ) -> CandleResult<Tensor> {
        let index = self.index(output.device())?;
        let last = output.rank().saturating_sub(1);
        let flat = x.to_dtype(rows.dtype())?.reshape(((), x.dim(D::Minus1)?))?;
        let mut dims = output.dims().to_vec();
        dims[last] = self.tokens.len();
        // Half precision would lose a small logit next to the large one in whose place it comes.
        let wide = widened(output)?;
        let mut logits = flat.matmul(&rows.t()?)?.reshape(dims)?.to_dtype(wide.dtype())?;
        if let Some(bias) = call.bias {
            logits = logits.broadcast_add(&bias.index_select(&index, 0)?.to_dtype(wide.dtype())?)?;
        }
        let change = (logits - wide.index_select(&index, last)?)?;
        wide.contiguous()?.index_add(&index, &change.contiguous()?, last)?.to_dtype(output.dtype())
    }

    fn index(&self, device: &Device) -> CandleResult<Tensor> {
        Tensor::new(self.tokens.as_slice(), &Device::Cpu)?.to_device(device)
    }
}

impl Adapter for TrainableTokens {
    fn tensors(&self) -> Vec<AdapterTensor<'_>> {
        vec![AdapterTensor { key: Self::KEY, var: &self.rows, trainable: !self.tied, stored: !self.tied }]
    }

    fn adapt_output(&self, call: &Call<'_>, input: &Tensor, output: Tensor) -> CandleResult<Tensor> {
        let rows = call.wide_tensor(&self.rows)?;
        match self.geometry {
            Geometry::Embedding { .. } => self.replace_rows(&rows, input, &output),
            _ => self.replace_columns(&rows, call, input, &output),
        }
    }

    fn merge(&self, _: &Site<'_>, parameters: LinearParameters) -> Result<LinearParameters, MergeError> {
        let LinearParameters { weight, bias } = parameters;
        let index = self.index(weight.device())?;
        let mut keeps = vec![1f32; weight.dim(0)?];
        self.tokens.iter().filter_map(|token| usize::try_from(*token).ok()).for_each(|token| {
            if let Some(keep) = keeps.get_mut(token) {
                *keep = 0.0;
            }
        });
        let keeps = Tensor::from_vec(keeps, (weight.dim(0)?, 1), &Device::Cpu)?.to_device(weight.device())?;
        let others = weight.broadcast_mul(&keeps.to_dtype(weight.dtype())?)?;
        let rows = self.rows.as_detached_tensor().to_dtype(weight.dtype())?;
        Ok(LinearParameters { weight: others.index_add(&index, &rows, 0)?, bias })
    }

    fn components(&self) -> Vec<Component> {
        vec![
            Component::tensors("trainable_tokens_delta", Some(&self.rows)),
            Component::buffers("trainable_tokens_original", &self.rows),
        ]
    }

    fn replaces_values(&self) -> bool {
        true
    }

    fn tied_to(&self, geometry: Geometry) -> Option<Arc<dyn Adapter>> {
        Some(Arc::new(Self { tied: true, geometry, ..self.clone() }))
    }

    fn base_weight_key(&self) -> &'static str {
        BASE_WEIGHT_KEY
    }

    fn label(&self) -> &'static str {
        "tokens"
    }

    fn tree_type(&self) -> Option<&'static str> {
        Some("TrainableTokensLayer")
    }

    fn tree_wrapper(&self) -> Option<(&'static str, &'static str)> {
        Some(("TrainableTokensWrapper", "token_adapter"))
    }
}
