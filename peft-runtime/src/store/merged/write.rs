//! Merged weights as files: in the base model's shards, written tensor by tensor, in a folder that appears complete.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::View;
use serde_json::{Value, json};

use super::shard::{Planned, Shard};
use super::{MergedWeights, Unadapted};
use crate::error::{Error, Result, ShardsError};
use crate::path::ModulePath;
use crate::store::file::{PendingFile, read_text};
use crate::store::layout::{Layout, TensorEntry};
use crate::store::model_files::{index_in, index_name, is_single};
use crate::store::model_weights::ModelWeights;
use crate::store::new_folder::NewFolder;
use crate::store::tied::Tie;

/// The progress of [`MergedWeights::write`] or [`MergedWeights::verify`], which they pass to the caller's function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteProgress<'a> {
    /// The tensor that has just been done.
    pub tensor: &'a str,
    /// The bytes done so far.
    pub done: u64,
    /// The bytes in total.
    pub total: u64,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteReport {
    /// The weight files.
    pub files: Vec<PathBuf>,
    /// The number of tensors in them.
    pub tensors: usize,
    /// How many of them are not the base model's own.
    pub changed: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// Modules that an adapter's config targets but its file has no tensors for. A base model may have modules that the
    /// adapter's model did not have.
    pub unadapted: Vec<Unadapted>,
}

/// Files that belong to a model in addition to its weights, and fit the merged weights as well.
const COMPANIONS: [&str; 13] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

impl MergedWeights<ModelWeights> {
    /// Writes the merged weights into a new folder: the same files with the same tensors in the same order and
    /// dtypes, the model's config and tokenizer, and the shard index. No more than one layer is in memory at a time.
    ///
    /// The folder appears when all of it is on disk; if anything fails, it does not appear. Modules that only an
    /// adapter has go to the end of the last file. So does a head that the base model ties to its embeddings if an adapter
    /// changes only one of the two; `config.json` then says that they are not tied. It also has the new size of a
    /// vocabulary.
    ///
    /// # Errors
    /// [`Error::Io`], also if the folder exists and is not empty; [`Error::NotFinite`]; [`Error::Tensors`] if an
    /// adapter has tensors that belong nowhere.
    pub fn write(
        &self,
        folder: impl AsRef<Path>,
        progress: &mut dyn FnMut(&WriteProgress<'_>),
    ) -> Result<WriteReport> {
        let shards = self.shards()?;
        let config = self.merged_config(&shards)?;
        let target = NewFolder::next_to(folder.as_ref())?;
        let mut report = WriteReport {
            files: shards.iter().map(|shard| folder.as_ref().join(&shard.name)).collect(),
            tensors: shards.iter().map(|shard| shard.tensors.len()).sum(),
            changed: 0,
            bytes: shards.iter().flat_map(|shard| &shard.tensors).map(|planned| planned.size() as u64).sum(),
            unadapted: Vec::new(),
        };
        let mut done = 0;
        for shard in &shards {
            let path = target.path().join(&shard.name);
            let mut file = shard.create(&path)?;
            for planned in &shard.tensors {
                self.note_asked(&planned.name, planned.shape.len());
                file.write_all(&self.bytes(shard, planned)?).map_err(Error::io("write", &path))?;
                done += planned.size() as u64;
                report.changed += usize::from(planned.kept.is_none());
                progress(&WriteProgress { tensor: &planned.name, done, total: report.bytes });
            }
            let file = file.into_inner().map_err(|error| Error::io("write", &path)(error.into_error()))?;
            file.sync_all().map_err(Error::io("flush", &path))?;
        }
        self.check_used()?;
        report.unadapted = self.unadapted()?;
        write_index(&shards, target.path())?;
        copy_companions(&shards, target.path())?;
        match config {
            Some(config) => write_config(&config, target.path())?,
            None => copy_files(&["config.json"], &shards, target.path())?,
        }
        target.appear()?;
        Ok(report)
    }

    /// The files to write.
    pub(super) fn shards(&self) -> Result<Vec<Shard<'_>>> {
        let mut shards = Vec::new();
        let mut names = BTreeMap::new();
        for file in self.base.files() {
            let layout = Layout::of(file);
            let name = file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(first) = names.insert(name.clone(), file.path()) {
                let same = ShardsError::SameName { first: first.to_owned() };
                return Err(Error::from(same).in_file(file.path()));
            }
            let tensors = layout.tensors.into_iter().map(|entry| self.planned(entry)).collect();
            shards.push(Shard { name, source: file, metadata: layout.metadata, tensors });
        }
        if let Some(last) = shards.last_mut() {
            last.tensors.extend(self.added());
        }
        Ok(shards)
    }

    fn planned(&self, entry: TensorEntry) -> Planned {
        let (name, dtype) = (entry.name.clone(), entry.dtype);
        if !self.changes(&name) {
            return Planned { name, dtype, shape: entry.shape.clone(), kept: Some(entry) };
        }
        let shape = self.new_shape(&name).unwrap_or(entry.shape);
        Planned { name, dtype, shape, kept: None }
    }

    /// The shape of the tensor that adapters have in the place of the base model's.
    fn new_shape(&self, name: &str) -> Option<Vec<usize>> {
        let of = |name: &str| {
            let mut adapters = self.adapters.iter();
            adapters.find_map(|adapter| Some(adapter.stored_as(&adapter.whole(name)?.key)?.0.to_vec()))
        };
        // A tensor that head and embeddings share may come under either name.
        of(name).or_else(|| self.other_names(name).iter().find_map(|other| of(other)))
    }

    /// The tensors that only adapters have.
    fn added(&self) -> Vec<Planned> {
        let known: BTreeSet<&str> = self.base.names().collect();
        let mut added = Vec::new();
        let head = self.tie().map(Tie::head_weight);
        if let Some(head) = head.as_deref().filter(|head| self.parted().is_some() && !known.contains(head)) {
            added.extend(self.own_head(head));
        }
        let is_new = |name: &&str| !known.contains(name) && head.as_deref() != Some(name);
        for adapter in &self.adapters {
            for name in adapter.replaced_names().filter(is_new) {
                let stored = adapter.whole(name).and_then(|replacement| adapter.stored_as(&replacement.key));
                added.extend(stored.map(|(shape, dtype)| Planned {
                    name: name.to_owned(),
                    dtype,
                    shape: shape.to_vec(),
                    kept: None,
                }));
            }
        }
        added
    }

    /// The head that the base model's files do not have, because it has the weight of the embeddings there.
    fn own_head(&self, name: &str) -> Option<Planned> {
        let table = self.tie()?.table_weight();
        let mut entries = self.base.files().iter().flat_map(|file| Layout::of(file).tensors);
        let TensorEntry { dtype, shape, .. } = entries.find(|entry| entry.name == table)?;
        // It begins as the table does, which may have been resized.
        let own = self.new_shape(name).or_else(|| self.shared_shape(self.tie()?));
        Some(Planned { name: name.to_owned(), dtype, shape: own.unwrap_or(shape), kept: None })
    }

    /// The bytes of a tensor: the base model's, or the merged ones.
    pub(super) fn bytes<'s>(&self, shard: &'s Shard<'_>, planned: &Planned) -> Result<Cow<'s, [u8]>> {
        match &planned.kept {
            Some(entry) => Ok(Cow::Borrowed(entry.bytes(shard.source)?)),
            None => Ok(Cow::Owned(View::data(&self.merged(planned)?).into_owned())),
        }
    }

    fn merged(&self, planned: &Planned) -> Result<Tensor> {
        let dtype = DType::try_from(planned.dtype)?;
        let read = || self.base.tensor(&planned.name, &Device::Cpu);
        let tensor = self.tensor(&planned.name, dtype, &Device::Cpu, &read)?.contiguous()?;
        let (module, parameter) = planned.name.rsplit_once('.').unwrap_or_default();
        let path = ModulePath::from(module);
        if tensor.dims() != planned.shape {
            let reason = format!("`{parameter}` would be {:?}, not {:?}", tensor.dims(), planned.shape);
            return Err(self.cannot_merge(&path, reason));
        }
        self.check_finite(&path, parameter, &tensor)?;
        Ok(tensor)
    }
}

/// Writes the shard index, for weights in several files or in one file of another name.
fn write_index(shards: &[Shard<'_>], folder: &Path) -> Result<()> {
    let old = shards.first().and_then(|shard| index_in(shard.source.path().parent()?));
    if shards.len() < 2 && (old.is_none() || shards.iter().all(|shard| is_single(&shard.name))) {
        return Ok(());
    }
    let mut index = json!({});
    if let Some(old) = old {
        let text = read_text(&old)?;
        index = serde_json::from_str(&text)
            .map_err(|error| Error::from(ShardsError::Index(error)).in_file(&old))?;
    }
    let all = || shards.iter().flat_map(|shard| shard.tensors.iter().map(move |planned| (shard, planned)));
    let weight_map: BTreeMap<&str, &str> =
        all().map(|(shard, planned)| (planned.name.as_str(), shard.name.as_str())).collect();
    let total: u64 = all().map(|(_, planned)| planned.size() as u64).sum();
    if let Value::Object(fields) = &mut index {
        fields.insert("weight_map".to_owned(), json!(weight_map));
        let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
        if let Value::Object(metadata) = metadata {
            metadata.insert("total_size".to_owned(), json!(total));
        }
    }
    let text = serde_json::to_string_pretty(&index)?;
    let name = index_name(shards.iter().map(|shard| shard.name.as_str()));
    PendingFile::write(folder.join(name), text.as_bytes())?.persist()
}

fn copy_companions(shards: &[Shard<'_>], folder: &Path) -> Result<()> {
    copy_files(&COMPANIONS, shards, folder)
}

fn write_config(config: &Value, folder: &Path) -> Result<()> {
    let text = format!("{}\n", serde_json::to_string_pretty(config)?);
    PendingFile::write(folder.join("config.json"), text.as_bytes())?.persist()
}

fn copy_files(names: &[&str], shards: &[Shard<'_>], folder: &Path) -> Result<()> {
    let Some(base) = shards.first().and_then(|shard| shard.source.path().parent()) else { return Ok(()) };
    for name in names {
        let file = base.join(name);
        if file.is_file() {
            std::fs::copy(&file, folder.join(name)).map_err(Error::io("copy", &file))?;
        }
    }
    Ok(())
}
