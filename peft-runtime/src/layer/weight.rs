//! A bare weight that the user's own code reads.

use candle_core::{Result as CandleResult, Tensor, bail};

use super::adapted::Stacked;
use super::scope;
use super::{Adapted, BaseLayer, ParameterMap};
use crate::adapter::{Call, Geometry};
use crate::error::Result;
use crate::ops::add_promoted;
use crate::schema::{Family, LayerKind};

/// A weight without a layer of its own, such as that of a mixture's fused experts: a matrix `[out, in]` or one for each
/// expert, `[experts, out, in]`.
///
/// It is held as `Adapted<Weight>`, named in `with_target_parameters`, and read with [`Adapted::weight`].
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use peft_runtime::nn::Weight;
/// use peft_runtime::prelude::*;
///
/// #[derive(Injectable)]
/// struct Experts {
///     up: Adapted<Weight>,
/// }
///
/// #[derive(Injectable)]
/// struct Model {
///     experts: Experts,
/// }
///
/// let up = Weight::new(Tensor::zeros((4, 8, 6), DType::F32, &Device::Cpu)?);
/// let mut model = Model { experts: Experts { up: up.into() } };
/// model.inject_adapter(&LoraConfig::new(2, 4.0).with_target_parameters(["experts.up"]), "default")?;
/// assert_eq!(model.experts.up.weight()?.dims(), [4, 8, 6]);
/// # Ok::<(), peft_runtime::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Weight {
    tensor: Tensor,
    transposed: bool,
}

impl Weight {
    /// A weight `[out, in]` or `[experts, out, in]`.
    pub fn new(tensor: Tensor) -> Self {
        Self { tensor, transposed: false }
    }

    /// A weight `[experts, in, out]`, which transformers marks with `is_transposed`.
    pub fn transposed(tensor: Tensor) -> Self {
        Self { tensor, transposed: true }
    }

    /// The weight as it is stored.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }
}

impl BaseLayer for Weight {
    const KIND: LayerKind = LayerKind::new("Weight", Family::Parameter);
    const WEIGHT: &'static str = "";

    fn geometry(&self) -> Geometry {
        match *self.tensor.dims() {
            [out_features, in_features] => Geometry::Linear { in_features, out_features, transposed: false },
            [experts, rows, columns] => {
                let (out_features, in_features) =
                    if self.transposed { (columns, rows) } else { (rows, columns) };
                Geometry::Experts { experts, in_features, out_features, transposed: self.transposed }
            }
            _ => Geometry::Opaque,
        }
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("", &self.tensor)]
    }

    fn map_parameters(&self, map: &mut ParameterMap<'_>) -> Result<Self> {
        Ok(Self { tensor: map("", &self.tensor)?, transposed: self.transposed })
    }

    fn forward_base(&self, _: &Tensor) -> CandleResult<Tensor> {
        bail!("a bare weight has no forward pass; read it with `weight()`")
    }

    fn describe(&self) -> String {
        format!("Weight{:?}", self.tensor.dims())
    }
}

impl Adapted<Weight> {
    /// The weight with what the active adapters add to it, as part of the graph while they train.
    ///
    /// # Errors
    /// If rows are routed to adapters: all rows read the same weight.
    pub fn weight(&self) -> CandleResult<Tensor> {
        match self {
            Self::Base(layer) => Ok(layer.tensor.clone()),
            Self::Stacked(stacked) => stacked.weight().map_err(|error| stacked.stack.on_layer(error)),
        }
    }
}

impl Stacked<Weight> {
    fn weight(&self) -> CandleResult<Tensor> {
        let Self { base, merged, stack } = self;
        if !stack.enabled() {
            return Ok(base.tensor.clone());
        }
        if scope::rows().is_some() {
            bail!("a bare weight is the same for all rows of a batch")
        }
        if let Some(merged) = merged {
            return Ok(merged.tensor.clone());
        }
        let mut weight = base.tensor.clone();
        for slot in stack.active_slots() {
            if let Some(copies) = slot.copy() {
                let tracks = slot.trainable && scope::tracks();
                let copy = copies.first().map(|copy| &copy.var);
                let value =
                    copy.map(|var| if tracks { var.as_tensor().clone() } else { var.as_detached_tensor() });
                weight = value.unwrap_or(weight);
            }
            let Some(adapter) = slot.adapter() else { continue };
            let call = Call {
                geometry: stack.geometry(),
                bias: None,
                weight: &|| Ok(base.tensor.detach()),
                base: &|x| base.forward_base(x),
                training: stack.training(),
                tracks: slot.trainable && scope::tracks(),
                dropout: &slot.dropout,
            };
            if let Some(delta) = adapter.weight_delta(&call)? {
                weight = add_promoted(&weight, &delta)?;
            }
        }
        weight.to_dtype(base.tensor.dtype())
    }
}
