//! `save_pretrained`: saves an adapter as a folder that Python PEFT reads.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use super::adapter_files;
use super::card::model_card;
use super::embeddings::SaveEmbeddings;
use super::file::{PendingFile, sync_folder, to_bytes};
use super::keys::DEFAULT_ADAPTER;
use super::original_base::for_original_base;
use super::state_dict::state_dict;
use crate::adapter::AdapterMethod;
use crate::error::{Error, Result};
use crate::manage::method_of;
use crate::module::{Injectable, leaves};

/// How to save an adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveOptions {
    plain_lora: bool,
    embeddings: SaveEmbeddings,
}

impl SaveOptions {
    /// Saves as PEFT does.
    pub fn new() -> Self {
        Self::default()
    }

    /// Saves an adapter whose init changed the base weights (PiSSA, OLoRA, LoftQ) as plain LoRA of twice the rank for
    /// the original base model.
    ///
    /// With PiSSA and OLoRA the model computes the same, up to rounding. With LoftQ it does so only at full rank with
    /// alpha equal to the rank; otherwise it differs by the part of the quantisation error that the factors do not
    /// make up for.
    #[must_use]
    pub fn plain_lora(mut self, plain: bool) -> Self {
        self.plain_lora = plain;
        self
    }

    /// Which embedding weights go into the file.
    #[must_use]
    pub fn embeddings(mut self, embeddings: SaveEmbeddings) -> Self {
        self.embeddings = embeddings;
        self
    }
}

/// Writes config, weights and model card; an adapter that is not called `default` gets a subfolder named after it.
///
/// Returns the adapter's folder.
pub(crate) fn save_pretrained<M: Injectable + ?Sized>(
    model: &M,
    folder: &Path,
    name: &str,
    options: SaveOptions,
) -> Result<PathBuf> {
    let method = method_of(model, name)?;
    let (config, weights) = contents(model, method.as_ref(), name, options)?;
    let own_folder = adapter_folder(folder, name);
    write_folder(&own_folder, folder, &config, &weights, method.as_ref())?;
    Ok(own_folder)
}

/// Writes config and weights into `own_folder`, and a model card into `card_folder` unless it already has one.
///
/// All files are complete and on disk before config and weights move into place, both in one step.
pub(super) fn write_folder(
    own_folder: &Path,
    card_folder: &Path,
    config: &str,
    weights: &BTreeMap<String, Tensor>,
    method: &dyn AdapterMethod,
) -> Result<()> {
    let weights = to_bytes(weights)?;
    std::fs::create_dir_all(own_folder).map_err(Error::io("create", own_folder))?;
    check_inside(card_folder, own_folder)?;
    let lock = adapter_files::lock(card_folder);
    if lock.is_some() {
        adapter_files::sweep(card_folder);
        adapter_files::sweep(own_folder);
    }
    let card = card_folder.join("README.md");
    let card = if card.exists() {
        None
    } else {
        Some(PendingFile::write(card, model_card(method.peft_type(), method.common()).as_bytes())?)
    };
    adapter_files::write(own_folder, &weights, config.as_bytes())?;
    if let Some(card) = card {
        card.persist()?;
        sync_folder(card_folder)?;
    }
    Ok(())
}

/// Refuses an adapter's own folder if it is a link that leads out of the folder it should be in.
fn check_inside(folder: &Path, own_folder: &Path) -> Result<()> {
    if own_folder == folder {
        return Ok(());
    }
    let real = |path: &Path| std::fs::canonicalize(path).map_err(Error::io("open", path));
    if real(own_folder)?.starts_with(real(folder)?) {
        return Ok(());
    }
    let refused =
        std::io::Error::new(ErrorKind::PermissionDenied, "it is a link that leads out of its folder");
    Err(Error::io("write", own_folder)(refused))
}

/// The config's text and the tensors.
fn contents<M: Injectable + ?Sized>(
    model: &M,
    method: &dyn AdapterMethod,
    name: &str,
    options: SaveOptions,
) -> Result<(String, BTreeMap<String, Tensor>)> {
    if options.plain_lora {
        let (method, tensors) = for_original_base(model, name, options.embeddings)?;
        return Ok((method.to_json(&[])?, tensors));
    }
    if let Some(reason) = method.unsavable() {
        return Err(Error::Unsupported { operation: "save", adapter: name.to_owned(), reason });
    }
    let leaves = leaves(model);
    let adapters: Vec<_> = leaves
        .iter()
        .filter_map(|(path, leaf)| Some((path, leaf.stack()?.slot(name)?.adapter()?.as_ref())))
        .collect();
    Ok((method.to_json(&adapters)?, state_dict(model, name, options.embeddings)?))
}

/// Where the files of the adapter `name` are below `folder`.
pub(super) fn adapter_folder(folder: &Path, name: &str) -> PathBuf {
    if name == DEFAULT_ADAPTER { folder.to_owned() } else { folder.join(name) }
}
