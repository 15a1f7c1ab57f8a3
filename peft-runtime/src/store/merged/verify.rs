//! Reads written weights back and compares them with what they should be.

use std::path::Path;

use super::MergedWeights;
use super::shard::{Planned, Shard};
use super::write::WriteProgress;
use crate::error::{Error, Result};
use crate::store::file::MappedFile;
use crate::store::layout::Layout;
use crate::store::model_files::holds_weights;
use crate::store::model_weights::ModelWeights;

impl MergedWeights<ModelWeights> {
    /// Reads what [`write`](Self::write) wrote, merges once more, and compares every byte.
    ///
    /// # Errors
    /// [`Error::Verification`], which names the tensor that is not as it should be, and an error that names the file if
    /// one cannot be read.
    pub fn verify(
        &self,
        folder: impl AsRef<Path>,
        progress: &mut dyn FnMut(&WriteProgress<'_>),
    ) -> Result<()> {
        let shards = self.shards()?;
        let tensors = || shards.iter().flat_map(|shard| &shard.tensors);
        let total = tensors().map(|planned| planned.size() as u64).sum();
        let mut done = 0;
        for shard in &shards {
            let path = folder.as_ref().join(&shard.name);
            let file = MappedFile::open(&path)?;
            let layout = Layout::of(&file);
            if layout.tensors.len() != shard.tensors.len() {
                let reason =
                    format!("it has {} tensors instead of {}", layout.tensors.len(), shard.tensors.len());
                return Err(Error::Verification { path, reason });
            }
            for (planned, entry) in shard.tensors.iter().zip(&layout.tensors) {
                let header = (&entry.name, &entry.shape, entry.dtype);
                if header != (&planned.name, &planned.shape, planned.dtype) {
                    return Err(differs(&path, planned, "its name, shape or dtype differs"));
                }
                if *entry.bytes(&file)? != *self.bytes(shard, planned)? {
                    return Err(differs(&path, planned, "its values are not the merged ones"));
                }
                done += planned.size() as u64;
                progress(&WriteProgress { tensor: &planned.name, done, total });
            }
        }
        check_index(&shards, folder.as_ref())
    }
}

/// Checks that the folder opens as a model with every tensor.
fn check_index(shards: &[Shard<'_>], folder: &Path) -> Result<()> {
    if !holds_weights(folder) {
        // A single file of another name is not found when the folder is opened as a model.
        return Ok(());
    }
    let written_weights = ModelWeights::open(folder)?;
    let written = shards.iter().map(|shard| shard.tensors.len()).sum::<usize>();
    if written_weights.names().count() == written {
        return Ok(());
    }
    let reason = format!("it opens with {} of {written} tensors", written_weights.names().count());
    Err(Error::Verification { path: folder.to_owned(), reason })
}

fn differs(path: &Path, planned: &Planned, how: &str) -> Error {
    Error::Verification { path: path.to_owned(), reason: format!("`{}` is wrong: {how}", planned.name) }
}
