//! `save_pretrained`: an adapter as a folder that Python PEFT reads.

use std::path::{Path, PathBuf};

use super::card::model_card;
use super::file::{PendingFile, sync_folder, to_bytes};
use super::keys::{CONFIG_FILE, DEFAULT_ADAPTER, WEIGHTS_FILE};
use super::state_dict::adapter_state_dict;
use crate::error::{Error, Result};
use crate::manage::method_of;
use crate::module::{Injectable, leaves};

/// Writes config, weights and model card; an adapter that is not called `default` gets a folder of its name.
///
/// All files are complete and on the disk before the first takes its place. Returns the adapter's folder.
pub(crate) fn save_pretrained<M: Injectable + ?Sized>(
    model: &M,
    folder: &Path,
    name: &str,
) -> Result<PathBuf> {
    let method = method_of(model, name)?;
    let leaves = leaves(model);
    let adapters: Vec<_> = leaves
        .iter()
        .filter_map(|(path, leaf)| Some((path, leaf.stack()?.slot(name)?.adapter()?.as_ref())))
        .collect();
    let config = method.to_json(&adapters)?;
    let weights = to_bytes(&adapter_state_dict(model, name)?)?;
    let own_folder = adapter_folder(folder, name);
    std::fs::create_dir_all(&own_folder).map_err(Error::io("create", &own_folder))?;
    let mut files = vec![
        PendingFile::write(own_folder.join(WEIGHTS_FILE), &weights)?,
        PendingFile::write(own_folder.join(CONFIG_FILE), config.as_bytes())?,
    ];
    let card = folder.join("README.md");
    if !card.exists() {
        let text = model_card(method.peft_type(), method.common());
        files.push(PendingFile::write(card, text.as_bytes())?);
    }
    for file in files {
        file.persist()?;
    }
    sync_folder(&own_folder)?;
    Ok(own_folder)
}

/// Where the files of the adapter `name` lie below `folder`.
pub(super) fn adapter_folder(folder: &Path, name: &str) -> PathBuf {
    if name == DEFAULT_ADAPTER { folder.to_owned() } else { folder.join(name) }
}
