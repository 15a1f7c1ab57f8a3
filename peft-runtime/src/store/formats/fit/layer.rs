//! One layer of an adapter: its factors and its size.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use crate::adapter::Geometry;
use crate::error::{AdapterFileError, Error, Result};
use crate::method::PeftConfig;
use crate::path::ModulePath;
use crate::schema::{Family, LayerKind};
use crate::store::stored_contents::StoredContents;

/// The rank and scaling of an adapter on one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sizes {
    pub(super) rank: usize,
    pub(super) scaling: f64,
}

impl Sizes {
    pub(super) fn rank_as_number(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
        let rank = self.rank as f64;
        rank
    }

    /// The alpha that gives the scaling, with rank stabilisation or without.
    pub(super) fn alpha(&self, stabilised: bool) -> f64 {
        let rank = self.rank_as_number();
        self.scaling * if stabilised { rank.sqrt() } else { rank }
    }
}

/// A pair of factors.
pub(super) struct Layer {
    pub(super) path: String,
    /// `[rank, in]`.
    pub(super) a: Tensor,
    /// `[out, rank]`.
    pub(super) b: Tensor,
    pub(super) rank: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) scaling: f64,
}

impl Layer {
    /// Reads the factors of the linear layer at `path`.
    ///
    /// # Errors
    /// If the layer has something else than two factors.
    pub(super) fn read(
        config: &PeftConfig,
        contents: &StoredContents,
        ends: &BTreeMap<&str, Vec<&str>>,
        path: &str,
    ) -> Result<Self> {
        let refused =
            |reason: String| -> Error { AdapterFileError::Key { key: path.to_owned(), reason }.into() };
        let ends = ends.get(path).map(Vec::as_slice).unwrap_or_default();
        if ends != ["lora_A.weight", "lora_B.weight"] {
            let reason =
                format!("has {}, and fused experts have only the two factors of LoRA", ends.join(", "));
            return Err(refused(reason));
        }
        let read = |end: &str| -> Result<Tensor> {
            let stored = contents.stored_at(&format!("{path}.{end}"));
            let stored = stored.ok_or_else(|| refused(format!("has no `{end}`")))?;
            Ok((stored.read)(&Device::Cpu)?)
        };
        let (a, b) = (read("lora_A.weight")?, read("lora_B.weight")?);
        let ([rank, inputs], [outputs, other]) = (a.dims(), b.dims()) else {
            return Err(refused("has factors that are not matrices".to_owned()));
        };
        let (rank, inputs, outputs) = (*rank, *inputs, *outputs);
        if rank != *other {
            return Err(refused(format!("has factors of ranks {rank} and {other}")));
        }
        let scaling = scaling(config, path, (inputs, outputs))?;
        Ok(Self { path: path.to_owned(), a, b, rank, inputs, outputs, scaling })
    }
}

/// The scaling that the config gives the linear layer at `path`.
fn scaling(config: &PeftConfig, path: &str, (inputs, outputs): (usize, usize)) -> Result<f64> {
    let geometry = Geometry::Linear { in_features: inputs, out_features: outputs, transposed: false };
    let kind = LayerKind::new("Linear", Family::Linear);
    let settings = config.method().plan_layer(&ModulePath::from(path), kind, &geometry)?;
    settings.scaling.ok_or_else(|| {
        AdapterFileError::Key { key: path.to_owned(), reason: "has no scaling".to_owned() }.into()
    })
}
