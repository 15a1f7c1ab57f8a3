//! Which files of a folder are the weights of a model, as transformers and diffusers call them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::file::read_text;
use crate::error::{Error, Result, ShardsError};

/// What a library calls the weights of a model in one file, before the extension.
const STEMS: [&str; 2] = ["model", "diffusion_pytorch_model"];
const EXTENSION: &str = ".safetensors";
const INDEX_EXTENSION: &str = ".safetensors.index.json";
/// What says which models a pipeline of diffusers has.
const PIPELINE: &str = "model_index.json";

/// The index of shards.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// The files that an index names, each once, all of them in the folder of the index.
pub(crate) fn shard_names(index: &Path) -> Result<BTreeSet<String>> {
    let text = read_text(index)?;
    let shards: ShardIndex =
        serde_json::from_str(&text).map_err(|error| Error::from(ShardsError::Index(error)).in_file(index))?;
    let names: BTreeSet<String> = shards.weight_map.into_values().collect();
    if let Some(name) = names.iter().find(|name| !stays_inside(name)) {
        return Err(Error::from(ShardsError::OutsideFolder { name: name.clone() }).in_file(index));
    }
    Ok(names)
}

/// Whether a name from a file stays below the folder that it is joined to, on any system.
fn stays_inside(name: &str) -> bool {
    let normal = |component: Component<'_>| matches!(component, Component::Normal(_));
    !name.is_empty() && !name.contains(['\\', ':', '\0']) && Path::new(name).components().all(normal)
}

/// The names of an index of shards.
fn indexes() -> impl Iterator<Item = String> {
    STEMS.into_iter().map(|stem| format!("{stem}{INDEX_EXTENSION}"))
}

/// Whether a file of this name holds a model's weights whole.
pub(super) fn is_single(name: &str) -> bool {
    STEMS.iter().any(|stem| name.strip_prefix(stem) == Some(EXTENSION))
}

/// The index of shards in `folder`, if there is one.
pub(super) fn index_in(folder: &Path) -> Option<PathBuf> {
    indexes().map(|name| folder.join(name)).find(|index| index.is_file())
}

/// What the index of shards of these names is called.
pub(super) fn index_name<'n>(mut shards: impl Iterator<Item = &'n str>) -> String {
    let [plain, diffusers] = STEMS;
    let stem = if shards.any(|name| name.starts_with(diffusers)) { diffusers } else { plain };
    format!("{stem}{INDEX_EXTENSION}")
}

/// Whether there are weights in `folder`.
pub(super) fn holds_weights(folder: &Path) -> bool {
    index_in(folder).is_some() || single_in(folder).is_some() || !variants(folder).is_empty()
}

fn single_in(folder: &Path) -> Option<PathBuf> {
    STEMS.into_iter().map(|stem| folder.join(format!("{stem}{EXTENSION}"))).find(|file| file.is_file())
}

/// Files like `diffusion_pytorch_model.fp16.safetensors`, in order.
fn variants(folder: &Path) -> Vec<String> {
    let is_variant = |name: &String| {
        STEMS.iter().any(|stem| {
            let variant =
                name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('.')?.strip_suffix(EXTENSION));
            variant.is_some_and(|variant| !variant.is_empty() && !variant.contains(['.', '-']))
        })
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut variants: Vec<String> = names.filter(is_variant).collect();
    variants.sort();
    variants
}

/// The files with the weights of the model in `folder`.
///
/// # Errors
/// If there are several variants of them, or if the folder is that of a pipeline, which has several models; of an index that
/// cannot be read. A folder without weights is said to lack `model.safetensors` when that is opened.
pub(super) fn find(folder: &Path) -> Result<Vec<PathBuf>> {
    if let Some(index) = index_in(folder) {
        return Ok(shard_names(&index)?.into_iter().map(|name| folder.join(name)).collect());
    }
    if let Some(single) = single_in(folder) {
        return Ok(vec![single]);
    }
    match variants(folder).as_slice() {
        [] => {}
        [one] => return Ok(vec![folder.join(one)]),
        several => return Err(Error::from(ShardsError::Variants { files: several.to_vec() }).in_file(folder)),
    }
    if folder.join(PIPELINE).is_file() {
        let models = models_of(folder)?;
        return Err(Error::from(ShardsError::Pipeline { models }).in_file(folder));
    }
    Ok(vec![folder.join(format!("{}{EXTENSION}", STEMS[0]))])
}

/// The folders of a pipeline's models.
fn models_of(folder: &Path) -> Result<Vec<String>> {
    let index = folder.join(PIPELINE);
    let value: Value =
        serde_json::from_str(&read_text(&index)?).map_err(|error| Error::from(error).in_file(&index))?;
    let parts = value.as_object().into_iter().flatten().map(|(name, _)| name);
    // The name of a part is one of a folder, and leads to no other place.
    let is_model = |name: &&String| {
        let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        plain && holds_weights(&folder.join(name))
    };
    Ok(parts.filter(is_model).cloned().collect())
}
