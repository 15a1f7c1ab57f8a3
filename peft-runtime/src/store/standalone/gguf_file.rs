//! Adapters written for llama.cpp.

use std::path::Path;

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QTensor};
use serde_json::Value;

use super::{StoredAdapter, StoredKind, StoredLayer};
use crate::error::{AdapterFileError, Error, Result};
use crate::ops::linear::low_rank::LowRank;
use crate::path::ModulePath;
use crate::store::base_weights::BaseWeights;
use crate::store::file::PendingFile;
use crate::store::formats::GgufNames;

impl StoredAdapter {
    /// Writes a plain LoRA adapter as llama.cpp has it, and returns the number of tensors: f16 with `half`, otherwise f32.
    ///
    /// `model_config` is the base model's `config.json`, which the names and the order of the rows of queries and keys depend on.
    /// With `base`, the size of saved embeddings is compared with the model's own instead of with `vocab_size`.
    /// [`to_plain_lora`](Self::to_plain_lora) gives an adapter that can be written.
    ///
    /// # Errors
    /// If llama.cpp does not know the model type, or the format cannot hold something of the adapter; [`Error::Io`].
    pub fn save_gguf(
        &self,
        path: impl AsRef<Path>,
        model_config: &Value,
        base: Option<&BaseWeights>,
        half: bool,
    ) -> Result<usize> {
        let names = GgufNames::of(model_config)?;
        let dtype = if half { GgmlDType::F16 } else { GgmlDType::F32 };
        let model = Model { names: &names, config: model_config, base };
        let mut tensors: Vec<(String, QTensor)> = Vec::new();
        let mut first: Option<(f32, ModulePath)> = None;
        for layer in &self.layers()? {
            // PEFT also saves the base weights of adapted embeddings; llama.cpp takes them from the base model.
            if layer.kind == StoredKind::Base && layer.tensors.iter().all(|(end, _)| end == "weight") {
                model.check_size(layer)?;
                continue;
            }
            model.check_head(layer)?;
            let LowRank { a, b, scaling } = factors(layer)?;
            let alpha = alpha_of(*scaling, a.dim(0)?);
            let (common, at) = first.get_or_insert_with(|| (alpha, layer.path.clone()));
            if *common != alpha {
                let reason = format!(
                    "has alpha {alpha}, and `{at}` {common}; llama.cpp's adapters have one: `to_plain_lora` gives it"
                );
                return Err(AdapterFileError::Key { key: layer.path.to_string(), reason }.into());
            }
            let (a, b) = (a.to_device(&Device::Cpu)?, b.to_device(&Device::Cpu)?);
            tensors.extend(names.tensors(layer.path.as_str(), &a, &b, dtype)?);
        }
        let alpha = first.map_or(0.0, |(alpha, _)| alpha);
        let file = PendingFile::stream(path.as_ref().to_owned(), &mut |file| {
            names.write(file, self.name(), alpha, half, &tensors)
        });
        file.and_then(PendingFile::persist).map_err(|error| error.in_file(path.as_ref()))?;
        Ok(tensors.len())
    }
}

/// The alpha of which llama.cpp makes this scaling.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "the format has alpha in single precision"
)]
fn alpha_of(scaling: f64, rank: usize) -> f32 {
    (scaling * rank as f64) as f32
}

/// The base model that an adapter is written for.
struct Model<'m> {
    names: &'m GgufNames,
    config: &'m Value,
    base: Option<&'m BaseWeights>,
}

impl Model<'_> {
    /// Refuses weights of the base model that are not those of the GGUF file that the adapter will be used with.
    fn check_size(&self, layer: &StoredLayer) -> Result<()> {
        let path = layer.path.as_str();
        if !self.names.is_outside_of_blocks(path)? {
            return Err(cannot(
                path,
                "has a weight of its own in the adapter's file, which llama.cpp's adapters cannot hold",
            ));
        }
        let rows = layer.tensors.first().and_then(|(_, tensor)| tensor.dims().first().copied());
        let of_base = self.base.and_then(|base| base.shape(path, "weight")?.first().copied());
        let of_config = || usize::try_from(self.config.get("vocab_size")?.as_u64()?).ok();
        match (rows, of_base.or_else(of_config)) {
            (Some(rows), Some(size)) if rows == size => Ok(()),
            (Some(rows), Some(size)) => Err(cannot(
                path,
                &format!(
                    "has {rows} rows in the adapter's file, and {size} in the base model; llama.cpp's adapters have no place for new rows"
                ),
            )),
            _ => Err(cannot(
                path,
                "has a weight in the adapter's file, and the base model's `config.json` has no `vocab_size` to compare it with",
            )),
        }
    }

    /// Refuses adapters of a tensor that is embedding and head at once: llama.cpp finds them by its one name.
    fn check_head(&self, layer: &StoredLayer) -> Result<()> {
        let path = layer.path.as_str();
        let tied = self.config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or_default();
        if !tied || !self.names.is_outside_of_blocks(path)? {
            return Ok(());
        }
        Err(cannot(
            path,
            "is tied to another module of the base model, and the adapter changes only this one; llama.cpp has one tensor for both",
        ))
    }
}

/// A and B of a layer that has nothing else.
fn factors(layer: &StoredLayer) -> Result<&LowRank> {
    match &layer.update {
        Some(update) if matches!(layer.kind, StoredKind::Adapter(_)) && layer.tensors.len() == 2 => {
            Ok(update)
        }
        _ => {
            let what = match layer.kind {
                StoredKind::Adapter(_) => {
                    let ends: Vec<&str> = layer.tensors.iter().map(|(end, _)| end.as_str()).collect();
                    ends.join(", ")
                }
                other => other.to_string(),
            };
            let reason = format!("has {what}; llama.cpp's adapters have only the two factors of LoRA");
            Err(cannot(layer.path.as_str(), &reason))
        }
    }
}

fn cannot(path: &str, reason: &str) -> Error {
    let reason =
        format!("{reason}; merge it into the base model (`peft merge`), and convert the merged model");
    AdapterFileError::Key { key: path.to_owned(), reason }.into()
}
