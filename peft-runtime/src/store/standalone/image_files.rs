//! Adapters written for programs that run image models.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::{StoredAdapter, StoredKind, StoredLayer};
use crate::error::{AdapterFileError, Error, Result};
use crate::store::file::PendingFile;
use crate::store::formats::{ExportedLayer, diffusers_file, kohya_file};

/// A program for image models whose files hold adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageProgram {
    /// kohya's sd-scripts, ComfyUI and LyCORIS: module names with `_` for dots, and an alpha for each module.
    Kohya,
    /// diffusers: module names with dots, and the config in the header.
    Diffusers,
}

/// A model of a pipeline that an adapter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PipelineModel {
    /// The UNet.
    Unet,
    /// The transformer that has the UNet's place, as in FLUX.
    Transformer,
    /// The text encoder, or the first of several.
    TextEncoder,
    /// The second text encoder.
    TextEncoder2,
}

impl PipelineModel {
    /// What names begin with in files of a program.
    fn prefix(self, program: ImageProgram) -> &'static str {
        match (program, self) {
            (ImageProgram::Kohya, Self::Unet | Self::Transformer) => "lora_unet_",
            (ImageProgram::Kohya, Self::TextEncoder) => "lora_te1_",
            (ImageProgram::Kohya, Self::TextEncoder2) => "lora_te2_",
            (ImageProgram::Diffusers, Self::Unet) => "unet.",
            (ImageProgram::Diffusers, Self::Transformer) => "transformer.",
            (ImageProgram::Diffusers, Self::TextEncoder) => "text_encoder.",
            (ImageProgram::Diffusers, Self::TextEncoder2) => "text_encoder_2.",
        }
    }
}

impl StoredAdapter {
    /// Writes the adapter into a safetensors file as `program` has it for the `model` of a pipeline, and returns the number of
    /// tensors. The values are those of the adapter, to the bit.
    ///
    /// # Errors
    /// If such files cannot hold something of it: parameters of the base model, rows of tokens, or a method that the program does
    /// not have; [`Error::Io`].
    pub fn save_for(
        &self,
        path: impl AsRef<Path>,
        program: ImageProgram,
        model: PipelineModel,
    ) -> Result<usize> {
        let layers = self.layers()?;
        for layer in &layers {
            if !matches!(layer.kind, StoredKind::Adapter(_)) {
                let reason = "cannot be written: it is a parameter of the base model".to_owned();
                return Err(AdapterFileError::Key { key: layer.path.to_string(), reason }.into());
            }
        }
        let stored = self.layer_tensors()?;
        let exported: Vec<ExportedLayer<'_>> =
            layers.iter().filter_map(|layer| exported(layer, &stored)).collect();
        let prefix = model.prefix(program);
        let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let tensors = match program {
            ImageProgram::Kohya => kohya_file(&exported, prefix)?,
            ImageProgram::Diffusers => {
                let (tensors, (field, text)) = diffusers_file(&exported, prefix, &self.config().to_json()?)?;
                metadata.insert(field, text);
                tensors
            }
        };
        let contiguous: Vec<(&String, Tensor)> =
            tensors.iter().map(|(key, tensor)| Ok((key, tensor.contiguous()?))).collect::<Result<_>>()?;
        let bytes = safetensors::serialize(contiguous, Some(metadata.into_iter().collect()))
            .map_err(|error| Error::from(error).in_file(path.as_ref()))?;
        PendingFile::write(path.as_ref().to_owned(), &bytes)?.persist()?;
        Ok(tensors.len())
    }

    /// The tensors of every layer as they are stored, by the ends of their keys.
    fn layer_tensors(&self) -> Result<LayerTensors> {
        let mut tensors = LayerTensors::new();
        for (path, ends) in self.layer_keys() {
            let own = tensors.entry(path.to_owned()).or_default();
            for end in ends {
                if let Some(stored) = self.stored_at(&format!("{path}.{end}")) {
                    let tensor =
                        (stored.read)(&Device::Cpu).map_err(|error| self.of_weights(error.into()))?;
                    own.push((end.to_owned(), tensor));
                }
            }
        }
        Ok(tensors)
    }
}

/// Tensors by layer and by the ends of their keys.
type LayerTensors = BTreeMap<String, Vec<(String, Tensor)>>;

fn exported<'l>(layer: &'l StoredLayer, stored: &'l LayerTensors) -> Option<ExportedLayer<'l>> {
    let path = layer.path.as_str();
    let tensors = stored.get(path)?;
    Some(ExportedLayer { path, rank: layer.rank, scaling: layer.scaling, tensors })
}
